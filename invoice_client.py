"""What can be asked of invoices, without MCP: submit, decide, get the status, list.

Each call of `InvoiceClient` sends as few requests as it can and sets no limit to their time; the
caller does (`asyncio.timeout`), but for a query, which would hang where no worker runs. Besides
`InvoiceError` they raise what the Temporal client raises.
"""

import asyncio
import os
import platform
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import inf
from typing import Any, TypeVar
from uuid import uuid4

from pydantic import ValidationError
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from invoices.answers import InvoiceList, InvoiceStatus, Retry
from invoices.invoice import (
    BEFORE_1_1,
    INVOICE_WORKFLOW,
    Invoice,
    invoice_id_of,
    rule_of_new_id,
    workflow_id,
)
from invoices.refusals import (
    InvoiceError,
    decided_otherwise,
    expect_before_deadline,
    expect_total,
    unknown_invoice,
)
from invoices.status import (
    CANCELLED,
    COMPLETED,
    INVALID_INVOICE,
    PROCESSING,
    REJECTED,
    DecisionDetails,
    Progress,
    RunProgress,
    State,
    state_of_text,
)
from invoices.wording import format_utc, sanitized
from temporal_service.payloads import json_payload
from workflow import INVOICE_STATE, TASK_QUEUE, InvoiceWorkflow

Handle = WorkflowHandle[InvoiceWorkflow, str]
Content = tuple[str, Invoice | None]
"""A run's id, and its invoice if it has one."""
T = TypeVar("T")

MAX_NAME = 200
"""What fits into `DecisionDetails.by`."""
QUERY_SECONDS = 2
"""A running worker answers a query in milliseconds; without one there is never an answer."""
RECENT_SECONDS = 10
"""For so long after an answer it is taken for granted, when submitting, that a worker runs."""
LIST_LIMIT = 50
SCAN_LIMIT = 1000
"""How many invoices `list_invoices` looks at to find those of one state."""


def whoami() -> str:
    """`user@host` of this process: the user as the operating system has it, not the environment."""
    if sys.platform == "win32":
        user = os.getlogin()
    else:
        import pwd

        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:  # no name for the number, as in some containers
            user = str(os.geteuid())
    return f"{user}@{platform.node()}"[:MAX_NAME]


@dataclass(frozen=True)
class InvoiceRun:
    """The latest run for an invoice, as the Temporal Service has it; no worker is needed."""

    description: WorkflowExecutionDescription
    status: InvoiceStatus
    progress: RunProgress | None
    """None if no invoice can be read from the run."""

    @property
    def id(self) -> str:
        return self.description.run_id

    @property
    def is_open(self) -> bool:
        """By Temporal's word; a status text may be anybody's."""
        return self.description.close_time is None


class InvoiceClient:
    """The invoices of one Temporal namespace."""

    def __init__(self, temporal_client: Client) -> None:
        self.temporal = temporal_client
        self._last_worker_answer = -inf
        """By the monotonic clock."""
        self._has_state_attribute = True

    async def submit(self, invoice: Invoice) -> InvoiceStatus:
        """Starts the workflow of an invoice, unless one is open or the invoice is paid.

        The outcome is `started`, or `already_in_process` if the same invoice was.

        Raises:
            InvoiceError: the id is in use by something else, or is new and could be taken for
                another, or the invoice is paid, or a line of it was paid earlier with other
                content.
        """
        if rule := rule_of_new_id(invoice.id):
            await self._expect_known_id(invoice.id, rule)
        progress = RunProgress.of(invoice)
        try:
            # Atomic where the id is new. After a closed run the ledger guards what a race could do.
            handle = await self._start(invoice, progress, WorkflowIDReusePolicy.REJECT_DUPLICATE)
        except WorkflowAlreadyStartedError:
            return await self._submit_again(invoice, progress)
        # Asking takes longer than starting: not again if a worker has answered just now.
        is_recent = time.monotonic() - self._last_worker_answer <= RECENT_SECONDS
        return await self._started(invoice, handle, ask=not is_recent)

    async def _expect_known_id(self, invoice_id: str, rule: str) -> None:
        """Raises `InvoiceError` unless there is a run under an id that a new invoice can't have."""
        try:
            await self._handle(invoice_id).describe()
        except RPCError as error:
            if not _is_unknown_workflow(error):
                raise
            raise InvoiceError(f"Nothing was done. invoice_data.id: {rule}.") from error

    async def _submit_again(self, invoice: Invoice, progress: RunProgress) -> InvoiceStatus:
        last = await self.get_run(invoice.id)
        if last.is_open:
            return self._same_open_run(invoice, last)
        if last.status.state == "completed" and last.description.workflow_type == INVOICE_WORKFLOW:
            when = f" on {format_utc(last.status.closed_at)}" if last.status.closed_at else ""
            raise InvoiceError(f"Invoice {invoice.id} was already paid{when}. Nothing was started.")
        if last.progress:
            progress.ledger = last.progress.ledger  # one invoice, one ledger
        try:
            handle = await self._start(invoice, progress, WorkflowIDReusePolicy.ALLOW_DUPLICATE)
        except WorkflowAlreadyStartedError:  # another client was faster
            return self._same_open_run(invoice, await self.get_run(invoice.id))
        status = await self._started(invoice, handle, ask=True)
        if last.progress is None or last.progress.digest != invoice.digest:
            status.replaces = last.status.amounts
        return status

    async def _start(
        self, invoice: Invoice, progress: RunProgress, policy: WorkflowIDReusePolicy
    ) -> Handle:
        waiting = TypedSearchAttributes([SearchAttributePair(INVOICE_STATE, "waiting")])
        try:
            return await self.temporal.start_workflow(
                InvoiceWorkflow.run,
                json_payload(invoice.to_json()),
                id=workflow_id(invoice.id),
                task_queue=TASK_QUEUE,
                id_reuse_policy=policy,
                memo=progress.to_memo(),
                static_summary=f"{invoice.id}: {invoice.summary}",
                search_attributes=waiting if self._has_state_attribute else None,
            )
        except RPCError as error:
            self._expect_no_state_attribute(error)
            return await self._start(invoice, progress, policy)

    def _expect_no_state_attribute(self, error: RPCError) -> None:
        """The namespace needn't have it; found out by trying, once a process."""
        refused = error.status == RPCStatusCode.INVALID_ARGUMENT
        if not refused or INVOICE_STATE.name not in error.message:
            raise error
        self._has_state_attribute = False

    async def _started(self, invoice: Invoice, handle: Handle, *, ask: bool) -> InvoiceStatus:
        own = self._handle(invoice.id, handle.result_run_id)
        query = self._begin(self._query_worker(own)) if ask else None
        run = await self.get_run(invoice.id, handle.result_run_id)
        status = await self._with_answer(run, await query) if query and run.is_open else run.status
        status.outcome = "started"
        if status.state == "failed":
            raise InvoiceError(
                f"Invoice {invoice.id} failed at its start: {sanitized(status.status, 600)}."
                f" {status.paid} {status.advice}"
            )
        return status

    def _same_open_run(self, invoice: Invoice, run: InvoiceRun) -> InvoiceStatus:
        if run.progress is None:
            raise InvoiceError(
                f"The id {invoice.id} is in use by something that is no invoice: the workflow"
                f" {workflow_id(invoice.id)}. Nothing was started. Use another id, or terminate"
                " that workflow in the Web UI."
            )
        if run.progress.digest != invoice.digest:
            raise InvoiceError(
                f"The id {invoice.id} is in use by a different invoice: {run.status.amounts},"
                f" {sanitized(run.status.status, 600)}; nothing was changed. Use another id, or"
                " have that one rejected first."
            )
        run.status.outcome = "already_in_process"
        return run.status

    async def decide(
        self,
        invoice_id: str,
        *,
        approve: bool,
        reason: str | None = None,
        total: Decimal | None = None,
        run_id: str | None = None,
    ) -> InvoiceStatus:
        """Sends a decision and finds out whether it is the one that stands.

        The outcome is `approved` or `rejected`, `already_approved` or `already_rejected` if it had
        been decided so before, or `decision_kept` without a worker, when the Temporal Service keeps
        the decision.

        Args:
            total: of the invoice that is to be approved; anything else is refused.
            run_id: the run meant, where the person was shown its content.

        Raises:
            InvoiceError: there is no such invoice, it is another than the one meant, its deadline
                has passed, or a decision to the other effect stands.
        """
        # Checked against the content itself: the memo was written by whoever started the run.
        content = None if total is None else self._begin(self._content(workflow_id(invoice_id)))
        run = await self.get_run(invoice_id)
        _expect_invoice(run)
        if run_id and run.id != run_id:
            raise InvoiceError(
                f"Invoice {invoice_id} was submitted anew a moment ago, so nothing was decided."
                " Look at it before you decide on it."
            )
        if run.status.state == "waiting":
            expect_before_deadline(run.status, approve)
        if approve and run.status.state == "waiting":
            if content and total is not None:
                expect_total(await self._readable_invoice(run, content), total)
            elif run_id is None:
                await self._expect_unchanged(run)
        details = DecisionDetails(
            by=whoami(), reason=reason, request=uuid4().hex, sent_at=datetime.now(UTC)
        )
        status = await self._send(run, details, approve) if run.is_open else run.status
        reached: tuple[State, ...] = ("paying", "completed") if approve else ("rejected",)
        if status.decision:
            mine = status.decision.request == details.request
        else:  # the tutorial's worker doesn't tell whose decision it took
            mine = run.is_open and status.state in reached
        if mine:
            status.outcome = "approved" if approve else "rejected"
        elif status.state == "waiting" and status.worker_answers is False:
            status.outcome = "decision_kept"
        elif status.state in reached or (
            # Made, and about to take effect: the workflow still asks the ledger.
            status.state == "waiting"
            and status.decision is not None
            and status.decision.approved == approve
        ):
            status.outcome = "already_approved" if approve else "already_rejected"
        else:
            raise decided_otherwise(status, approve)
        return status

    async def _send(
        self, run: InvoiceRun, details: DecisionDetails, approve: bool
    ) -> InvoiceStatus:
        """Signals the run, and no later one; returns where it stands then."""
        invoice_id = run.status.invoice_id
        handle = self._handle(invoice_id, run.id)
        signal = InvoiceWorkflow.approve_invoice if approve else InvoiceWorkflow.reject_invoice
        try:
            await handle.signal(signal, json_payload(details.model_dump_json().encode()))
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return (await self.get_run(invoice_id)).status  # closed in the meantime
        return await self._with_answer(run, await self._query_worker(handle))

    async def _expect_unchanged(self, run: InvoiceRun) -> None:
        """A host that shows the arguments of a call shows an id: it must not stand for two sums."""
        _, invoice = await self._content(run.description.id, run.id)
        query = f"WorkflowId = '{run.description.id}'"
        async for execution in self.temporal.list_workflows(query):
            if execution.run_id == run.id:
                continue
            progress = await self._noted_progress(execution)
            if progress and invoice and progress.digest != invoice.digest:
                raise InvoiceError(
                    f"The id {run.status.invoice_id} was used before with other content. Nothing"
                    f" was approved. It is now {run.status.amounts}: show the person every line,"
                    " and pass the total that they approve."
                )

    async def get_status(self, invoice_id: str) -> InvoiceStatus:
        """Where the latest run for an invoice stands; from its memo if no worker answers.

        Raises:
            InvoiceError: there is no such invoice.
        """
        # At the same time, since most invoices that are asked about are open.
        query = self._begin(self._query_worker(self._handle(invoice_id)))
        try:
            run = await self.get_run(invoice_id)
            _expect_invoice(run)
            return await self._with_answer(run, await query) if run.is_open else run.status
        finally:
            query.cancel()

    async def invoice_for_approval(
        self, invoice_id: str, total: Decimal | None = None, *, ask_worker: bool = True
    ) -> tuple[InvoiceRun, Invoice]:
        """What a person decides on, as the workflow has it: no worker is needed to see it.

        Args:
            total: of a waiting invoice; anything else is refused.
            ask_worker: where it isn't noted yet whether any of it was paid earlier.

        Raises:
            InvoiceError: there is no such invoice, its content breaks the rules, or its total is
                another.
        """
        content = self._begin(self._content(workflow_id(invoice_id)))
        run = await self.get_run(invoice_id)
        _expect_invoice(run)
        invoice = await self._readable_invoice(run, content)
        if total is not None and run.status.state == "waiting":
            expect_total(invoice, total)
        if ask_worker and run.is_open and run.status.paid_earlier_lines is None:
            answer = await self._query_worker(self._handle(invoice_id, run.id))
            run = replace(run, status=await self._with_answer(run, answer))
        elif run.is_open:
            run.status.retry = _retry(run.description)
        return run, invoice

    async def _readable_invoice(self, run: InvoiceRun, content: asyncio.Task[Content]) -> Invoice:
        """The content of a run, which was asked for at the same time as the run."""
        run_id, invoice = await content
        if run_id != run.id:  # it is another run's, or this one comes from a reset
            _, invoice = await self._content(run.description.id, run.id)
        if invoice is None:
            raise InvoiceError(
                f"The content of invoice {run.status.invoice_id} breaks the rules, so it can't be"
                " shown to a person. Nothing was approved; reject it."
            )
        return invoice

    async def list_invoices(self, state: State | None = None) -> InvoiceList:
        """The latest runs of fifty invoices, or of fifty in one state, from their memos.

        They are those that Temporal lists first: open ones, newest first, then the ones closed
        last. Of runs without the search attribute `InvoiceState`, 1,000 that may be in the state
        are looked at.
        """
        try:
            return await self._list(state, _list_query(state, self._has_state_attribute))
        except RPCError as error:
            self._expect_no_state_attribute(error)
            return await self.list_invoices(state)

    async def _list(self, state: State | None, query: str) -> InvoiceList:
        found: list[InvoiceStatus] = []
        seen: set[str] = set()
        looked_at = 0
        executions = self.temporal.list_workflows(query, limit=SCAN_LIMIT, page_size=LIST_LIMIT)
        async for execution in executions:
            looked_at += 1
            if execution.id in seen:  # in Temporal's order, the first run is an invoice's latest
                continue
            seen.add(execution.id)
            try:
                progress = await self._noted_progress(execution)
                status = await self._status_without_worker(execution, progress)
                if state is None or (status.state == state and await self._is_latest(execution)):
                    found.append(status)
            except RPCError as error:
                if not _is_unknown_workflow(error):  # deleted in the meantime
                    raise
            if len(found) == LIST_LIMIT:
                break
        # Visibility lags a little behind, and the two calls may see different moments.
        not_shown = max(0, (await self.temporal.count_workflows(query)).count - looked_at)
        found.sort(key=lambda invoice: (invoice.is_open, invoice.submitted_at), reverse=True)
        exact = not_shown == 0 or await self._is_exact(state, query)
        return InvoiceList.of(found, not_shown, exact=exact)

    async def _is_exact(self, state: State | None, query: str) -> bool:
        """Whether all that the query finds is in the state."""
        if state in (None, "terminated"):
            return True
        if not self._has_state_attribute:
            return False
        others = await self.temporal.count_workflows(f"{query} AND {INVOICE_STATE.name} IS NULL")
        return others.count == 0

    async def _is_latest(self, execution: WorkflowExecution) -> bool:
        """A list of one state leaves out later runs in another."""
        if execution.close_time is None:
            return True
        latest = await self.temporal.get_workflow_handle(execution.id).describe()
        return latest.run_id == execution.run_id

    def _handle(self, invoice_id: str, run_id: str | None = None) -> Handle:
        return self.temporal.get_workflow_handle_for(
            InvoiceWorkflow.run, workflow_id(invoice_id), run_id=run_id
        )

    async def get_run(self, invoice_id: str, run_id: str | None = None) -> InvoiceRun:
        """One run for an invoice, by default the latest.

        Raises:
            InvoiceError: Temporal has no such run.
        """
        try:
            description = await self._handle(invoice_id, run_id).describe()
        except RPCError as error:
            if not _is_unknown_workflow(error):
                raise
            raise unknown_invoice(invoice_id) from error
        progress = None
        if description.workflow_type == INVOICE_WORKFLOW:
            progress = await self._noted_progress(description)
        status = await self._status_without_worker(description, progress)
        return InvoiceRun(description, status, progress)

    def _begin(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Makes a call at the same time as others."""
        task = asyncio.create_task(call)
        # Where another call fails meanwhile, nobody asks what became of this one.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _query_worker(self, handle: Handle) -> RunProgress | str | None:
        """What a worker says, None if none answers; only the status if it's the tutorial's."""
        answer: RunProgress | str | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(QUERY_SECONDS):
                answer = await self._progress_or_status(handle)
                while isinstance(answer, RunProgress) and answer.status == PROCESSING:
                    await asyncio.sleep(0.02)  # it has just begun and asks the ledger
                    answer = await self._progress_or_status(handle)
        if answer is not None:
            self._last_worker_answer = time.monotonic()
        return answer

    async def _with_answer(
        self, run: InvoiceRun, answer: RunProgress | str | None
    ) -> InvoiceStatus:
        """The status of an open run, with what a worker says about it."""
        if answer is None:  # a worker may have taken it up meanwhile and failed, or ended it
            run = await self.get_run(run.status.invoice_id, run.id)
            if not run.is_open:
                return run.status
        status = run.status
        if isinstance(answer, RunProgress):
            status = _status(status.invoice_id, answer, answer.submitted_at or status.submitted_at)
        elif answer is not None:
            status.status, status.state = answer, state_of_text(answer)
        status.worker_answers = answer is not None
        attempt = run.description.raw_description.pending_workflow_task.attempt
        if answer is None and attempt > 1:
            status.worker_failures = attempt - 1
        status.retry = _retry(run.description)
        return status

    async def _progress_or_status(self, handle: Handle) -> RunProgress | str | None:
        try:
            try:
                return RunProgress.model_validate(await handle.query(InvoiceWorkflow.get_progress))
            except (WorkflowQueryFailedError, ValidationError):
                return str(await handle.query(InvoiceWorkflow.get_status))
        except WorkflowQueryFailedError:
            return None
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:  # whoever describes it says so
                return None
            if error.status in (RPCStatusCode.CANCELLED, RPCStatusCode.FAILED_PRECONDITION):
                return None
            raise

    async def _noted_progress(self, execution: WorkflowExecution) -> RunProgress | None:
        """From the memo; of a run that no client and no worker of ours saw, from its content."""
        memo = await execution.memo()
        try:
            return RunProgress.model_validate(memo)
        except ValidationError:
            _, invoice = await self._content(execution.id, execution.run_id)
            if invoice is None:
                return None
            progress = RunProgress.of(invoice)
            if isinstance(noted := memo.get("status"), str):
                progress.status, progress.state = noted, state_of_text(noted)
            return progress

    async def _content(self, id: str, run_id: str | None = None) -> Content:
        """Of one run, by default the latest: its id, and what it was started with."""
        handle = self.temporal.get_workflow_handle(id, run_id=run_id)
        async for event in handle.fetch_history_events(page_size=1):
            started = event.workflow_execution_started_event_attributes
            return started.original_execution_run_id, invoice_of(started)
        return "", None

    async def _status_without_worker(
        self, execution: WorkflowExecution, progress: RunProgress | None
    ) -> InvoiceStatus:
        """The final status of a closed run, or the one last noted in the memo of an open one."""
        if progress:
            submitted_at = _submitted_at(execution, progress)
            status = _status(invoice_id_of(execution.id), progress, submitted_at)
        else:
            noted = (await execution.memo()).get("status")
            if not isinstance(noted, str):
                noted = INVALID_INVOICE
            status = InvoiceStatus(
                invoice_id=invoice_id_of(execution.id),
                workflow_id=execution.id,
                state=state_of_text(noted),
                status=noted,
                submitted_at=execution.start_time,
                failure="InvalidInvoice" if noted.startswith(INVALID_INVOICE) else None,
            )
        if execution.close_time is None:
            return status
        status.closed_at = execution.close_time
        match execution.status:
            # By the tutorial's worker.
            case WorkflowExecutionStatus.COMPLETED if status.state not in _COMPLETED_STATES:
                handle = self.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
                paid = await handle.result(follow_runs=False) == "COMPLETED"
                status.status, status.state = (
                    (COMPLETED, "completed") if paid else (REJECTED, "rejected")
                )
                if paid and status.line_count and status.total:  # by that worker's word
                    status.paid_lines, status.paid_amount = status.line_count, status.total
            case WorkflowExecutionStatus.FAILED if status.state != "failed":
                status.status, status.state = "Failed", "failed"
            case WorkflowExecutionStatus.CANCELED if status.state != "cancelled":
                status.status, status.state = CANCELLED, "cancelled"
            case WorkflowExecutionStatus.TERMINATED | WorkflowExecutionStatus.TIMED_OUT:
                status.status, status.state = "Terminated by an operator in Temporal", "terminated"
        if not status.is_open:
            status.deadline = None
        return status


def invoice_of(started: WorkflowExecutionStartedEventAttributes) -> Invoice | None:
    """The content that a run was started with, None if it is no invoice."""
    payloads = started.input.payloads
    data = payloads[0].data if payloads else b""
    for context in (None, BEFORE_1_1):
        with suppress(ValidationError):
            return Invoice.model_validate_json(data, context=context)
    return None


def _list_query(state: State | None, has_state_attribute: bool) -> str:
    query = f"WorkflowType='{INVOICE_WORKFLOW}'"
    if state:
        query += f" AND ExecutionStatus IN ({', '.join(map(repr, _EXECUTION_STATUS[state]))})"
        # A run that was terminated keeps the state that it was in.
        if has_state_attribute and state != "terminated":
            name = INVOICE_STATE.name
            query += f" AND ({name} = '{state}' OR {name} IS NULL)"
    return query


def _is_unknown_workflow(error: RPCError) -> bool:
    return error.status == RPCStatusCode.NOT_FOUND and "amespace" not in error.message


def _expect_invoice(run: InvoiceRun) -> None:
    if run.description.workflow_type != INVOICE_WORKFLOW:
        raise InvoiceError(
            f"The id {run.status.invoice_id} is in use by something that is no invoice: the"
            f" workflow {run.description.id} of type {sanitized(run.description.workflow_type)}."
        )


_COMPLETED_STATES: set[State] = {"completed", "rejected", "timed_out"}
_EXECUTION_STATUS: dict[State, list[str]] = {
    "waiting": ["Running"],
    "paying": ["Running"],
    "completed": ["Completed"],
    "rejected": ["Completed"],
    "timed_out": ["Completed"],
    "failed": ["Failed"],
    "cancelled": ["Canceled"],
    "terminated": ["Terminated", "TimedOut"],
}


def _submitted_at(execution: WorkflowExecution, progress: RunProgress) -> datetime:
    """As the workflow has it: after a reset, a run's own start is later than the submission."""
    if isinstance(execution, WorkflowExecutionDescription):
        extended = execution.raw_description.workflow_extended_info
        if extended.HasField("original_start_time"):
            return extended.original_start_time.ToDatetime(UTC)
    return progress.submitted_at or execution.start_time


def _status(invoice_id: str, progress: RunProgress, submitted_at: datetime) -> InvoiceStatus:
    timeout = timedelta(days=progress.approval_timeout_days)
    return InvoiceStatus(
        **progress.model_dump(include=set(Progress.model_fields)),
        invoice_id=invoice_id,
        workflow_id=workflow_id(invoice_id),
        submitted_at=submitted_at,
        deadline=submitted_at + timeout if progress.state == "waiting" else None,
    )


def _retry(description: WorkflowExecutionDescription) -> Retry | None:
    for pending in description.raw_description.pending_activities:
        if pending.attempt > 1:
            scheduled = pending.HasField("next_attempt_schedule_time")
            return Retry(
                line=_line_number(pending.activity_id),
                attempt=pending.attempt,
                next_attempt_at=(
                    pending.next_attempt_schedule_time.ToDatetime(UTC) if scheduled else None
                ),
                last_error=pending.last_failure.message,
            )
    return None


def _line_number(activity_id: str) -> int | None:
    """None for an activity that is about the whole invoice."""
    digits = activity_id.removeprefix("line-")
    return int(digits) if digits.isdecimal() else None
