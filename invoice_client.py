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
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from pydantic import ValidationError
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowHistoryEventFilterType,
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
    line_number,
    rule_of_new_id,
    workflow_id,
)
from invoices.refusals import (
    InvoiceError,
    NamedTotal,
    arrived_late,
    content_code,
    content_to_be_shown,
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
    TERMINATED,
    UNKNOWN_RESULT,
    DecisionDetails,
    Progress,
    RunProgress,
    State,
    approval_deadline,
    state_of_text,
)
from invoices.wording import format_utc, sanitized
from reports import INVOICE_STATE
from temporal_service.executions import (
    Execution,
    describe_execution,
    list_executions,
    query_execution,
    quoted,
)
from temporal_service.payloads import LenientPayloadConverter, json_payload
from workflow import TASK_QUEUE, InvoiceWorkflow

Handle = WorkflowHandle[InvoiceWorkflow, str]
T = TypeVar("T")

MAX_NAME = 200
"""What fits into `DecisionDetails.by`."""
MAX_TEXT = 2000
"""Of a status; the workflow's own are shorter."""
QUERY_SECONDS = 2
"""A running worker answers a query in milliseconds; without one there is never an answer."""
RECENT_SECONDS = 10
"""For so long after an answer it is taken for granted, when submitting, that a worker runs."""
LIST_LIMIT = 50
SCAN_LIMIT = 1000
"""How many invoices `list_invoices` looks at to find those of one state."""
EARLIER_RUNS = 50
"""How many earlier submissions are compared with one that is to be approved."""
FIRST_EVENTS = 30
"""The workflow writes its memo within the first dozen events, unless signals came before."""
MAX_EVENTS = 1000
"""How many events are looked through for the workflow's first memo."""
READS_AT_ONCE = 10
REMEMBERED_RUNS = 10_000

_converter = LenientPayloadConverter()
_OWN = object()


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

    description: Execution
    status: InvoiceStatus
    progress: RunProgress | None
    """None if no invoice can be read from the run."""
    start: "RunStart | None" = None
    """None if it didn't have to be read."""

    @property
    def id(self) -> str:
        return self.description.run_id

    @property
    def is_open(self) -> bool:
        """By Temporal's word; a status text may be anybody's."""
        return self.description.close_time is None


@dataclass(frozen=True)
class RunStart:
    """What a run's history says of its beginning."""

    run_id: str
    invoice: Invoice | None
    """What it was started with, None if it isn't an invoice."""
    has_noted: bool = False
    """Whether the workflow has written its memo. Before that, the memo is its starter's word."""
    submitted_at: Any = None
    """As the workflow has noted it then. A starter can't know it: the service sets the time."""


class Span(NamedTuple):
    """From before a call until after it, by this computer's clock."""

    begin: datetime
    end: datetime


class InvoiceClient:
    """The invoices of one Temporal namespace."""

    def __init__(self, temporal_client: Client) -> None:
        self.temporal = temporal_client
        self._last_worker_answer = -inf
        """By the monotonic clock."""
        self._has_state_attribute = True
        self._believed: dict[str, tuple[str, Any]] = {}
        """By workflow id: the run whose memo is believed, with the `submitted_at` in it, or `_OWN`
        for one that was started here."""
        self._clock_offset: float | None = None
        """In seconds, from this computer's clock to the Temporal Service's."""

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
            handle, span = await self._start(
                invoice, progress, WorkflowIDReusePolicy.REJECT_DUPLICATE
            )
        except WorkflowAlreadyStartedError:
            return await self._submit_again(invoice, progress)
        # Asking takes longer than starting: not again if a worker has answered just now.
        is_recent = time.monotonic() - self._last_worker_answer <= RECENT_SECONDS
        return await self._started(invoice, handle, span, ask=not is_recent)

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
            handle, span = await self._start(
                invoice, progress, WorkflowIDReusePolicy.ALLOW_DUPLICATE
            )
        except WorkflowAlreadyStartedError:  # another client was faster
            return self._same_open_run(invoice, await self.get_run(invoice.id))
        status = await self._started(invoice, handle, span, ask=True)
        if last.progress is None or last.progress.digest != invoice.digest:
            status.replaces = last.status.amounts
        return status

    async def _start(
        self, invoice: Invoice, progress: RunProgress, policy: WorkflowIDReusePolicy
    ) -> tuple[Handle, Span]:
        waiting = TypedSearchAttributes([SearchAttributePair(INVOICE_STATE, "waiting")])
        begin = datetime.now(UTC)
        try:
            handle = await self.temporal.start_workflow(
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
        if handle.result_run_id:
            self._believe(handle.id, handle.result_run_id, _OWN)
        return handle, Span(begin, datetime.now(UTC))

    def _expect_no_state_attribute(self, error: RPCError) -> None:
        """The namespace needn't have it; found out by trying, once a process."""
        refused = error.status == RPCStatusCode.INVALID_ARGUMENT
        if not refused or INVOICE_STATE.name not in error.message:
            raise error
        self._has_state_attribute = False

    async def _started(
        self, invoice: Invoice, handle: Handle, span: Span, *, ask: bool
    ) -> InvoiceStatus:
        own = self._handle(invoice.id, handle.result_run_id)
        query = self._begin(self._query_worker(own)) if ask else None
        run = await self.get_run(invoice.id, handle.result_run_id)
        self._compare_clocks(span, run.description.start_time)
        run.status.clock_offset_seconds = self._clock_offset
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
        total: NamedTotal | None = None,
        code: str | None = None,
        run_id: str | None = None,
    ) -> InvoiceStatus:
        """Sends a decision and finds out whether it is the one that stands.

        The outcome is `approved` or `rejected`, `already_approved` or `already_rejected` if it had
        been decided so before, or `decision_kept` without a worker, when the Temporal Service keeps
        the decision.

        Args:
            total: of the invoice that is to be approved; anything else is refused.
            code: of its content, from the refusal of an approval where the id had other content
                before.
            run_id: the run meant, where the person was shown its content.

        Raises:
            InvoiceError: there is no such invoice, it is another than the one meant, its deadline
                has passed, or a decision to the other effect stands.
        """
        # A host that shows the arguments of a call shows an id, a total and a code. Where the
        # person was shown more there is a run id.
        is_unseen = approve and run_id is None
        submissions = self._begin(self._submissions(invoice_id)) if is_unseen else None
        run = await self.get_run(invoice_id, with_content=is_unseen)
        _expect_invoice(run)
        if run_id and run.id != run_id:
            raise InvoiceError(
                f"Invoice {invoice_id} was submitted anew a moment ago, so nothing was decided."
                " Look at it before you decide on it."
            )
        if approve and run.status.state == "paying":
            return self.decided_before(run.status, approve=True)
        if run.status.state == "waiting":
            expect_before_deadline(run.status, approve)
        if run.is_open and submissions:
            await self._expect_seen(run, total, code, await submissions)
        details = DecisionDetails(
            by=whoami(), reason=reason, request=uuid4().hex, sent_at=run.status.now
        )
        status = await self._send(run, details, approve) if run.is_open else run.status
        if status.decision:
            mine = status.decision.request == details.request
        else:  # the tutorial's worker doesn't tell whose decision it took
            mine = run.is_open and status.state in _reached(approve)
        if mine:
            status.outcome = "approved" if approve else "rejected"
        elif status.state == "waiting" and status.worker_answers is False:
            status.outcome = "decision_kept"
        else:
            return self.decided_before(status, approve=approve)
        return status

    def decided_before(self, status: InvoiceStatus, *, approve: bool) -> InvoiceStatus:
        """The outcome of a decision on an invoice that has been decided on.

        Raises:
            InvoiceError: a decision to the other effect stands.
        """
        # The second: made, and about to take effect; the workflow still asks the ledger.
        if status.state in _reached(approve) or (
            status.state == "waiting"
            and status.decision is not None
            and status.decision.approved == approve
        ):
            status.outcome = "already_approved" if approve else "already_rejected"
            return status
        raise decided_otherwise(status, approve)

    async def _send(
        self, run: InvoiceRun, details: DecisionDetails, approve: bool
    ) -> InvoiceStatus:
        """Signals the run, and no later one; returns where it stands then."""
        invoice_id = run.status.invoice_id
        handle = self._handle(invoice_id, run.id)
        signal = InvoiceWorkflow.approve_invoice if approve else InvoiceWorkflow.reject_invoice
        begin = datetime.now(UTC)
        try:
            await handle.signal(signal, json_payload(details.model_dump_json().encode()))
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return (await self.get_run(invoice_id)).status  # closed in the meantime
        span = Span(begin, datetime.now(UTC))
        arrival = self._begin(self._arrival(run, details))
        status = await self._with_answer(run, await self._query_worker(handle))
        if arrived_at := await arrival:
            self._compare_clocks(span, arrived_at)
            status.clock_offset_seconds = self._clock_offset
            is_late = status.deadline is not None and arrived_at >= status.deadline
            if is_late and not status.is_decided:
                raise arrived_late(status, approve, arrived_at)
        return status

    async def _arrival(self, run: InvoiceRun, details: DecisionDetails) -> datetime | None:
        """When the Temporal Service got a decision, by its own clock, if the history tells yet."""
        request = GetWorkflowExecutionHistoryReverseRequest(
            namespace=self.temporal.namespace,
            execution=WorkflowExecution(workflow_id=run.description.id, run_id=run.id),
            maximum_page_size=FIRST_EVENTS,
        )
        service = self.temporal.workflow_service
        with suppress(RPCError):  # the decision has been sent, and nothing depends on this
            last = await service.get_workflow_execution_history_reverse(request, retry=True)
            for event in last.history.events:
                signal = event.workflow_execution_signaled_event_attributes
                sent = details.request and details.request.encode()
                if sent and any(sent in payload.data for payload in signal.input.payloads):
                    return event.event_time.ToDatetime(UTC)
        return None

    def _compare_clocks(self, span: Span, at: datetime) -> None:
        """Takes over by how much the clocks differ at least, if `at` was within `span`.

        Args:
            at: by the Temporal Service's clock.
        """
        least, most = (at - span.end).total_seconds(), (at - span.begin).total_seconds()
        if least <= most:  # else this computer's clock was set meanwhile
            self._clock_offset = min(max(self._clock_offset or 0.0, least), most)

    async def _submissions(self, invoice_id: str) -> list[Execution]:
        """The latest under an id, and one more than are compared."""
        query = f"WorkflowId = {quoted(workflow_id(invoice_id))}"
        async for page in list_executions(self.temporal, query, page_size=EARLIER_RUNS + 2):
            return page
        return []

    async def _expect_seen(
        self,
        run: InvoiceRun,
        total: NamedTotal | None,
        code: str | None,
        submissions: list[Execution],
    ) -> None:
        """An id and a total must not stand for two contents, of which the person knows one.

        Raises:
            InvoiceError: the total is another, or the id had other content before and `code` isn't
                that of the present one.
        """
        invoice = await self._readable_invoice(run)
        if total:
            expect_total(invoice, total)
        earlier = [one for one in submissions if one.run_id != run.id]
        problem = ""
        if len(earlier) > EARLIER_RUNS:
            problem = (
                f"Invoice {invoice.id} was submitted more than {EARLIER_RUNS} times before, too"
                " often to compare the contents."
            )
        elif any(content != invoice.digest for content in await self._digests(earlier)):
            problem = f"The id {invoice.id} was used before with other content."
        elif code:
            problem = "The content_code is that of another content."
        expected = content_code(invoice, run.id)
        if problem and (total is None or code is None or code.lower() != expected):
            raise content_to_be_shown(invoice, expected, problem)

    async def _digests(self, executions: list[Execution]) -> list[str | None]:
        """Of what each run was started with; None for what isn't an invoice, or is gone."""

        async def digest(execution: Execution) -> str | None:
            try:
                start = await self._run_start(execution.id, execution.run_id, page_size=1)
            except RPCError as error:
                if not _is_unknown_workflow(error):
                    raise
                return None
            return start.invoice.digest if start.invoice else None

        return await _gather_bounded([digest(execution) for execution in executions])

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
        self, invoice_id: str, total: NamedTotal | None = None, *, ask_worker: bool = True
    ) -> tuple[InvoiceRun, Invoice]:
        """What a person decides on, as the workflow has it: no worker is needed to see it.

        Args:
            total: of an invoice that isn't decided on yet; anything else is refused.
            ask_worker: where it isn't noted yet whether any of it was paid earlier.

        Raises:
            InvoiceError: there is no such invoice, its content breaks the rules, or its total is
                another.
        """
        run = await self.get_run(invoice_id, with_content=True)
        _expect_invoice(run)
        invoice = await self._readable_invoice(run)
        if total is not None and not run.status.is_decided:
            expect_total(invoice, total)
        if ask_worker and run.is_open and run.status.paid_earlier_lines is None:
            answer = await self._query_worker(self._handle(invoice_id, run.id))
            run = replace(run, status=await self._with_answer(run, answer))
        elif run.is_open:
            run.status.retry = _retry(run.description)
        return run, invoice

    async def _readable_invoice(self, run: InvoiceRun) -> Invoice:
        start = run.start or await self._run_start(run.description.id, run.id)
        if start.invoice is None:
            raise InvoiceError(
                f"The content of invoice {run.status.invoice_id} breaks the rules, so it can't be"
                " shown to a person. Nothing was approved; reject it."
            )
        return start.invoice

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
        async for page in list_executions(self.temporal, query, page_size=LIST_LIMIT):
            # In Temporal's order, the first run is an invoice's latest.
            latest = {one.id: one for one in reversed(page) if one.id not in seen}
            reads = [
                self._listed(one, state) if one is latest.get(one.id) else _nothing()
                for one in page
            ]
            seen.update(latest)
            for status in await _gather_bounded(reads):
                looked_at += 1
                if status:
                    found.append(status)
                if len(found) == LIST_LIMIT:
                    break
            if len(found) == LIST_LIMIT or looked_at >= SCAN_LIMIT:
                break
        # Visibility lags a little behind, and the two calls may see different moments.
        not_shown = max(0, (await self.temporal.count_workflows(query)).count - looked_at)
        found.sort(key=lambda invoice: (invoice.is_open, invoice.submitted_at), reverse=True)
        exact = not_shown == 0 or await self._is_exact(state, query)
        return InvoiceList.of(found, not_shown, exact=exact)

    async def _listed(self, execution: Execution, state: State | None) -> InvoiceStatus | None:
        """The status of a run; None if it isn't in the state, or not an invoice's latest one."""
        try:
            progress, _ = await self._read(execution)
            status = await self._status_without_worker(execution, progress)
            if state is None or (status.state == state and await self._is_latest(execution)):
                return status
        except RPCError as error:
            if not _is_unknown_workflow(error):  # deleted in the meantime
                raise
        return None

    async def _is_exact(self, state: State | None, query: str) -> bool:
        """Whether all that the query finds is in the state."""
        if state is None or not _states_beside(state):
            return True
        if not self._has_state_attribute:
            return False
        name = INVOICE_STATE.name
        others = f"{query} AND ({name} IS NULL OR {name} != '{state}')"
        return (await self.temporal.count_workflows(others)).count == 0

    async def _is_latest(self, execution: Execution) -> bool:
        """A list of one state leaves out later runs in another."""
        if execution.close_time is None:
            return True
        return (await describe_execution(self.temporal, execution.id)).run_id == execution.run_id

    def _handle(self, invoice_id: str, run_id: str | None = None) -> Handle:
        return self.temporal.get_workflow_handle_for(
            InvoiceWorkflow.run, workflow_id(invoice_id), run_id=run_id
        )

    async def get_run(
        self, invoice_id: str, run_id: str | None = None, *, with_content: bool = False
    ) -> InvoiceRun:
        """One run for an invoice, by default the latest.

        Args:
            with_content: read what it was started with, too.

        Raises:
            InvoiceError: Temporal has no such run.
        """
        id = workflow_id(invoice_id)
        # At the same time, where it is likely to be needed.
        is_needed = with_content or id not in self._believed
        reading = self._begin(self._run_start(id, run_id)) if is_needed else None
        try:
            description = await describe_execution(self.temporal, id, run_id)
            progress, start = None, None
            if description.workflow_type == INVOICE_WORKFLOW:
                progress, start = await self._read(description, reading)
            status = await self._status_without_worker(description, progress)
        except RPCError as error:
            if not _is_unknown_workflow(error):
                raise
            raise unknown_invoice(invoice_id) from error
        return InvoiceRun(description, status, progress, start)

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
            submitted_at = answer.submitted_at or status.submitted_at
            status = self._status(status.invoice_id, answer, submitted_at)
        elif answer is not None:
            status.status, status.state = answer, state_of_text(answer)
        status.worker_answers = answer is not None
        raw = run.description.raw_description
        attempt = raw.pending_workflow_task.attempt if raw else 0
        if answer is None and attempt > 1:
            status.worker_failures = attempt - 1
        status.retry = _retry(run.description)
        return status

    async def _progress_or_status(self, handle: Handle) -> RunProgress | str | None:
        try:
            with suppress(ValidationError):
                return RunProgress.model_validate(await self._query(handle, "get_progress"))
            return _plain_text(await self._query(handle, "get_status"))
        except RPCError as error:
            if error.status in _NO_ANSWER:
                return None
            raise

    async def _query(self, handle: Handle, query: str) -> Any:
        """None where the workflow doesn't know the query, as the tutorial's."""
        try:
            return await query_execution(self.temporal, handle.id, handle.run_id, query)
        except RPCError as error:
            if error.status != RPCStatusCode.INVALID_ARGUMENT:
                raise
            return None

    async def _read(
        self, execution: Execution, reading: asyncio.Task[RunStart] | None = None
    ) -> tuple[RunProgress | None, RunStart | None]:
        """Where a run stands without a worker, None if it isn't an invoice; and how it began.

        That is what its memo says, if the workflow has written it. What is in a memo before that,
        its starter has put there: then only the content counts.

        Args:
            reading: of its beginning, if that was begun at the same time as the description.
        """
        start = None
        if reading or not self._believes(execution):
            start = await reading if reading else None
            if start is None or start.run_id != execution.run_id:  # another run's, or after a reset
                start = await self._run_start(execution.id, execution.run_id)
            if start.has_noted and not self._believes(execution):
                self._believe(execution.id, execution.run_id, start.submitted_at)
        noted = execution.memo if self._believes(execution) else {}
        with suppress(ValidationError):
            return RunProgress.model_validate(noted), start
        start = start or await self._run_start(execution.id, execution.run_id)
        if start.invoice is None:
            return None, start
        progress = RunProgress.of(start.invoice)
        if status := _plain_text(noted.get("status")):
            progress.status, progress.state = status, state_of_text(status)
        return progress, start

    def _believes(self, execution: Execution) -> bool:
        run_id, submitted_at = self._believed.get(execution.id, ("", None))
        if run_id != execution.run_id:
            return False
        # A memo may be older than the history, above all in a list.
        return submitted_at is _OWN or execution.memo.get("submitted_at") == submitted_at

    def _believe(self, id: str, run_id: str, submitted_at: Any) -> None:
        self._believed.pop(id, None)
        self._believed[id] = (run_id, submitted_at)
        if len(self._believed) > REMEMBERED_RUNS:
            del self._believed[next(iter(self._believed))]

    async def _run_start(
        self, id: str, run_id: str | None = None, *, page_size: int = FIRST_EVENTS
    ) -> RunStart:
        """How one run began, by default the latest; with a page size of 1 only its content."""
        handle = self.temporal.get_workflow_handle(id, run_id=run_id)
        start = RunStart("", None)
        number = 0
        async for event in handle.fetch_history_events(page_size=page_size):
            number += 1
            if number == 1:
                started = event.workflow_execution_started_event_attributes
                start = RunStart(started.original_execution_run_id, invoice_of(started))
            elif event.HasField("workflow_properties_modified_event_attributes"):
                memo = event.workflow_properties_modified_event_attributes.upserted_memo.fields
                submitted_at = memo.get("submitted_at")
                noted = _converter.from_payload(submitted_at) if submitted_at else None
                return replace(start, has_noted=True, submitted_at=noted)
            if number == MAX_EVENTS or page_size == 1:
                break
        return start

    async def _status_without_worker(
        self, execution: Execution, progress: RunProgress | None
    ) -> InvoiceStatus:
        """The final status of a closed run, or the one last noted in the memo of an open one."""
        if progress:
            submitted_at = _submitted_at(execution, progress)
            status = self._status(invoice_id_of(execution.id), progress, submitted_at)
        else:
            noted = None
            if self._believes(execution):
                noted = _plain_text(execution.memo.get("status"))
            noted = noted or INVALID_INVOICE
            status = InvoiceStatus(
                invoice_id=invoice_id_of(execution.id),
                workflow_id=execution.id,
                state=state_of_text(noted),
                status=noted,
                submitted_at=execution.start_time,
                failure="InvalidInvoice" if noted.startswith(INVALID_INVOICE) else None,
                clock_offset_seconds=self._clock_offset,
            )
        if execution.close_time is None:
            return status
        status.closed_at = execution.close_time
        match execution.status:
            # By the tutorial's worker.
            case WorkflowExecutionStatus.COMPLETED if status.state not in _COMPLETED_STATES:
                result = await self._result(execution)
                match result:
                    case "COMPLETED":
                        status.status, status.state = COMPLETED, "completed"
                    case "REJECTED":
                        status.status, status.state = REJECTED, "rejected"
                    case _:
                        status.status, status.state = UNKNOWN_RESULT, "failed"
                paid = result == "COMPLETED"
                if paid and status.line_count and status.total:  # by that worker's word
                    status.paid_lines, status.paid_amount = status.line_count, status.total
            case WorkflowExecutionStatus.FAILED if status.state != "failed":
                status.status, status.state = "Failed", "failed"
            case WorkflowExecutionStatus.CANCELED if status.state != "cancelled":
                status.status, status.state = CANCELLED, "cancelled"
            case WorkflowExecutionStatus.TERMINATED | WorkflowExecutionStatus.TIMED_OUT:
                status.status, status.state = TERMINATED, "terminated"
            case _ if status.is_open:  # continued as new, which ours never is
                status.status, status.state = UNKNOWN_RESULT, "failed"
        if not status.is_open:
            status.deadline = None
        return status

    async def _result(self, execution: Execution) -> Any:
        handle = self.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
        async for event in handle.fetch_history_events(
            event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT
        ):
            result = event.workflow_execution_completed_event_attributes.result
            return _converter.from_payloads(result.payloads[:1])[0] if result.payloads else None
        return None

    def _status(
        self, invoice_id: str, progress: RunProgress, submitted_at: datetime
    ) -> InvoiceStatus:
        deadline = approval_deadline(submitted_at, progress.approval_timeout_days)
        return InvoiceStatus(
            **progress.model_dump(include=set(Progress.model_fields)),
            invoice_id=invoice_id,
            workflow_id=workflow_id(invoice_id),
            submitted_at=submitted_at,
            deadline=deadline if progress.state == "waiting" else None,
            clock_offset_seconds=self._clock_offset,
        )


def invoice_of(started: WorkflowExecutionStartedEventAttributes) -> Invoice | None:
    """The content that a run was started with, None if it is no invoice."""
    payloads = started.input.payloads
    data = payloads[0].data if payloads else b""
    for context in (None, BEFORE_1_1):
        with suppress(ValidationError):
            return Invoice.model_validate_json(data, context=context)
    return None


def _plain_text(value: Any) -> str | None:
    """What a worker or a memo says, if it is a text, and as it can be passed on."""
    if not isinstance(value, str):
        return None
    return value[:MAX_TEXT]


async def _nothing() -> None:
    return None


async def _gather_bounded(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of calls, of which some are made at once."""
    limit = asyncio.Semaphore(READS_AT_ONCE)

    async def limited(call: Coroutine[Any, Any, T]) -> T:
        async with limit:
            return await call

    return await asyncio.gather(*map(limited, calls))


def _reached(approve: bool) -> tuple[State, ...]:
    return ("paying", "completed") if approve else ("rejected",)


def _states_beside(state: State) -> list[State]:
    """The others that an invoice may be in by Temporal's word, where it may be in this one."""
    by_temporal = _EXECUTION_STATUS[state]
    return [
        other
        for other, statuses in _EXECUTION_STATUS.items()
        if other != state and statuses == by_temporal
    ]


def _list_query(state: State | None, has_state_attribute: bool) -> str:
    query = f"WorkflowType='{INVOICE_WORKFLOW}'"
    if state:
        query += f" AND ExecutionStatus IN ({', '.join(map(repr, _EXECUTION_STATUS[state]))})"
        # Only what it can be beside is left out. Whoever started a run has set the attribute, a
        # worker that doesn't know it leaves it as it is, and a terminated run keeps it.
        if has_state_attribute and (others := _states_beside(state)):
            name = INVOICE_STATE.name
            query += f" AND ({name} NOT IN ({', '.join(map(repr, others))}) OR {name} IS NULL)"
    return query


_NO_ANSWER = (
    RPCStatusCode.NOT_FOUND,  # whoever describes it says so
    RPCStatusCode.CANCELLED,
    RPCStatusCode.FAILED_PRECONDITION,
)


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


def _submitted_at(execution: Execution, progress: RunProgress) -> datetime:
    """As the workflow has it: after a reset, a run's own start is later than the submission."""
    if execution.raw_description:
        extended = execution.raw_description.workflow_extended_info
        if extended.HasField("original_start_time"):
            return extended.original_start_time.ToDatetime(UTC)
    return progress.submitted_at or execution.start_time


def _retry(description: Execution) -> Retry | None:
    raw = description.raw_description
    for pending in raw.pending_activities if raw else []:
        if pending.attempt > 1:
            scheduled = pending.HasField("next_attempt_schedule_time")
            return Retry(
                line=line_number(pending.activity_id),
                attempt=pending.attempt,
                next_attempt_at=(
                    pending.next_attempt_schedule_time.ToDatetime(UTC) if scheduled else None
                ),
                last_error=pending.last_failure.message,
            )
    return None
