"""What can be asked of invoices, without MCP: submit, decide, get the status, list.

Each call of `InvoiceClient` sends as few requests as it can and sets no limit to their time; the
caller does (`asyncio.timeout`), but for a query, which would hang where no worker runs. Besides
`InvoiceError` they raise what the Temporal client raises.
"""

import asyncio
import getpass
import platform
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import inf
from uuid import uuid4

from pydantic import ValidationError
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from invoices.answers import InvoiceList, InvoiceStatus, Retry
from invoices.invoice import Invoice, invoice_id_of, workflow_id
from invoices.status import (
    CANCELLED,
    COMPLETED,
    INVALID_INVOICE,
    REJECTED,
    DecisionDetails,
    Progress,
    RunProgress,
    State,
    state_of_text,
)
from invoices.wording import format_utc
from temporal_service.payloads import json_payload
from workflow import TASK_QUEUE, InvoiceWorkflow

Handle = WorkflowHandle[InvoiceWorkflow, str]

QUERY_SECONDS = 2
"""A running worker answers a query in milliseconds; without one there is never an answer."""
RECENT_SECONDS = 10
"""For so long after an answer it is taken for granted, when submitting, that a worker runs."""
LIST_LIMIT = 50
SCAN_LIMIT = 1000
"""How many invoices `list_invoices` looks at to find those of one state."""


class InvoiceError(Exception):
    """Why something can't be done with an invoice and what can be, in words for a person."""


def whoami() -> str:
    """`user@host` of this process, as the machine's login has it."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # no login name, as in some containers
        user = "unknown"
    return f"{user}@{platform.node()}"


@dataclass(frozen=True)
class Submitted:
    status: InvoiceStatus
    started: bool
    """False if the same invoice was in process already."""


@dataclass(frozen=True)
class Decided:
    status: InvoiceStatus
    already_decided: bool
    """True if it had been decided so before."""


@dataclass(frozen=True)
class InvoiceRun:
    """One run for an invoice and what it will pay."""

    run_id: str
    awaiting_decision: bool
    invoice: Invoice


class InvoiceClient:
    """The invoices of one Temporal namespace."""

    def __init__(self, temporal_client: Client) -> None:
        self.temporal = temporal_client
        self._last_worker_answer = -inf
        """By the monotonic clock."""

    async def submit(self, invoice: Invoice) -> Submitted:
        """Starts the workflow of an invoice, unless one is open or the invoice is paid.

        Raises:
            InvoiceError: the id is in use by a different invoice, or the invoice is paid.
        """
        # Atomic where the id is new. After a closed run the ledger guards what a race could do.
        policy = WorkflowIDReusePolicy.REJECT_DUPLICATE
        progress = RunProgress.of(invoice)
        while True:
            try:
                handle = await self.temporal.start_workflow(
                    InvoiceWorkflow.run,
                    json_payload(invoice.to_json()),
                    id=workflow_id(invoice.id),
                    task_queue=TASK_QUEUE,
                    id_reuse_policy=policy,
                    memo=progress.to_memo(),
                    static_summary=f"{invoice.id}: {invoice.summary}",
                )
            except WorkflowAlreadyStartedError:
                if found := await self._open_run_of_the_same(invoice):
                    return Submitted(found, started=False)
                policy = WorkflowIDReusePolicy.ALLOW_DUPLICATE
            else:
                status = _status(invoice.id, progress, datetime.now(UTC))
                # Asking takes longer than starting: not again if a worker has answered just now.
                if time.monotonic() - self._last_worker_answer > RECENT_SECONDS:
                    status.worker_answers = await self._query_worker(handle) is not None
                return Submitted(status, started=True)

    async def _open_run_of_the_same(self, invoice: Invoice) -> InvoiceStatus | None:
        """The status of the open run for the same invoice; None if a new run may start."""
        status, digest = await self._status_and_digest(invoice.id)
        if status.state == "completed":
            when = f" on {format_utc(status.closed_at)}" if status.closed_at else ""
            raise InvoiceError(f"Invoice {invoice.id} was already paid{when}. Nothing was started.")
        if not status.is_open:
            return None
        if digest != invoice.digest:
            raise InvoiceError(
                f"The id {invoice.id} is in use by a different invoice: {status.amounts},"
                f" {status.status}; nothing was changed. Use another id, or have that one rejected"
                " first."
            )
        return status

    async def decide(
        self,
        invoice_id: str,
        *,
        approve: bool,
        reason: str | None = None,
        run_id: str | None = None,
    ) -> Decided:
        """Sends a decision and finds out whether it is the one that stands.

        Without a worker the Temporal Service keeps the decision, and `worker_answers` is False.

        Args:
            run_id: the run meant, where a person was shown its content.

        Raises:
            InvoiceError: there is no such invoice, or a decision to the other effect stands.
        """
        handle = self._handle(invoice_id, run_id)
        details = DecisionDetails(by=whoami(), reason=reason, request=uuid4().hex)
        signal = InvoiceWorkflow.approve_invoice if approve else InvoiceWorkflow.reject_invoice
        try:
            await handle.signal(signal, json_payload(details.model_dump_json().encode()))
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            status = await self.get_status(invoice_id)  # closed; or unknown, and raises
            if status.is_open:
                raise InvoiceError(
                    f"Invoice {invoice_id} was submitted anew a moment ago, so nothing was decided."
                    " Look at it before you decide on it."
                ) from error
        else:
            answer = await self._query_worker(handle)
            if isinstance(answer, RunProgress) and answer.submitted_at:
                status = _status(invoice_id, answer, answer.submitted_at)
            else:
                status = await self.get_status(invoice_id)
        if status.is_open and status.worker_answers is False:
            return Decided(status, already_decided=False)
        mine = status.decision is not None and status.decision.request == details.request
        if not mine and status.state not in (("paying", "completed") if approve else ("rejected",)):
            raise InvoiceError(_too_late(status, approve))
        return Decided(status, already_decided=not mine)

    async def get_status(self, invoice_id: str) -> InvoiceStatus:
        """Where the latest run for an invoice stands; from its memo if no worker answers.

        Raises:
            InvoiceError: there is no such invoice.
        """
        status, _ = await self._status_and_digest(invoice_id)
        return status

    async def _status_and_digest(self, invoice_id: str) -> tuple[InvoiceStatus, str | None]:
        # At the same time, since most invoices that are asked about are open.
        query = asyncio.create_task(self._query_worker(self._handle(invoice_id)))
        try:
            description = await self._describe(invoice_id)
            progress = await self._noted_progress(description)
            status = await self._status_without_worker(description, progress)
            if status.is_open:
                answer = await query
                if isinstance(answer, RunProgress):
                    status = _status(invoice_id, answer, status.submitted_at)
                elif answer is not None:
                    status.status, status.state = answer, state_of_text(answer)
                status.worker_answers = answer is not None
                status.retry = _retry(description)
            return status, progress.digest if progress else None
        finally:
            query.cancel()

    async def _describe(self, invoice_id: str) -> WorkflowExecutionDescription:
        try:
            return await self._handle(invoice_id).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND and "amespace" not in error.message:
                raise InvoiceError(
                    f"There is no invoice {invoice_id}; list_invoices shows the ones there are."
                ) from error
            raise

    async def invoice_for_approval(self, invoice_id: str) -> InvoiceRun:
        """What a person decides on, as the workflow has it: no worker is needed to see it.

        Raises:
            InvoiceError: there is no such invoice, or its content breaks the rules.
        """
        description = await self._describe(invoice_id)
        invoice = await self._invoice(description)
        if invoice is None:
            raise InvoiceError(
                f"The content of invoice {invoice_id} breaks the rules, so it can't be shown to a"
                " person. Nothing was approved; reject it."
            )
        progress = await self._noted_progress(description)
        status = await self._status_without_worker(description, progress)
        return InvoiceRun(description.run_id, status.state == "waiting", invoice)

    async def list_invoices(self, state: State | None = None) -> InvoiceList:
        """Fifty invoices, or fifty of one state, from their memos.

        They are those that Temporal lists first: open ones, newest first, then the ones closed
        last. It can't search memos: for one state, 1,000 that may match are looked at.
        """
        query = "WorkflowType='InvoiceWorkflow'"
        if state:
            query += f" AND ExecutionStatus IN ({', '.join(map(repr, _EXECUTION_STATUS[state]))})"
        invoices: list[InvoiceStatus] = []
        total: dict[str, Decimal] = defaultdict(Decimal)
        looked_at = 0
        executions = self.temporal.list_workflows(query, limit=SCAN_LIMIT, page_size=LIST_LIMIT)
        async for execution in executions:
            looked_at += 1
            progress = await self._noted_progress(execution)
            status = await self._status_without_worker(execution, progress)
            if state is None or status.state == state:
                invoices.append(status)
                if status.currency and status.total is not None:
                    total[status.currency] += status.total
            if len(invoices) == LIST_LIMIT:
                break
        # Visibility lags a little behind, and the two calls may see different moments.
        not_shown = max(0, (await self.temporal.count_workflows(query)).count - looked_at)
        invoices.sort(key=lambda invoice: (invoice.is_open, invoice.submitted_at), reverse=True)
        return InvoiceList(invoices=invoices, not_shown=not_shown, total=total)

    def _handle(self, invoice_id: str, run_id: str | None = None) -> Handle:
        return self.temporal.get_workflow_handle_for(
            InvoiceWorkflow.run, workflow_id(invoice_id), run_id=run_id
        )

    async def _query_worker(self, handle: Handle) -> RunProgress | str | None:
        """What a worker says, None if none answers; only the status if it's the tutorial's."""
        answer: RunProgress | str
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                try:
                    progress = await handle.query(InvoiceWorkflow.get_progress)
                    answer = RunProgress.model_validate(progress)
                except (WorkflowQueryFailedError, ValidationError):
                    answer = await handle.query(InvoiceWorkflow.get_status)
        except TimeoutError:
            return None
        except RPCError as error:
            if error.status in (RPCStatusCode.CANCELLED, RPCStatusCode.FAILED_PRECONDITION):
                return None
            raise
        self._last_worker_answer = time.monotonic()
        return answer

    async def _noted_progress(self, execution: WorkflowExecution) -> RunProgress | None:
        """From the memo; of a run that no client and no worker of ours saw, from its content."""
        memo = await execution.memo()
        try:
            return RunProgress.model_validate(memo)
        except ValidationError:
            invoice = await self._invoice(execution)
            if invoice is None:
                return None
            progress = RunProgress.of(invoice)
            if isinstance(noted := memo.get("status"), str):
                progress.status, progress.state = noted, state_of_text(noted)
            return progress

    async def _invoice(self, execution: WorkflowExecution) -> Invoice | None:
        """The content a run was started with, None if it is no invoice."""
        handle = self.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
        async for event in handle.fetch_history_events(page_size=1):
            payloads = event.workflow_execution_started_event_attributes.input.payloads
            try:
                return Invoice.model_validate_json(payloads[0].data if payloads else b"")
            except ValidationError:
                break
        return None

    async def _status_without_worker(
        self, execution: WorkflowExecution, progress: RunProgress | None
    ) -> InvoiceStatus:
        """The final status of a closed run, or the one last noted in the memo of an open one."""
        if progress:
            status = _status(invoice_id_of(execution.id), progress, execution.start_time)
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
            )
        if execution.close_time is None:
            return status
        status.closed_at = execution.close_time
        match execution.status:
            case WorkflowExecutionStatus.COMPLETED if status.is_open:  # by the tutorial's worker
                handle = self.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
                paid = await handle.result(follow_runs=False) == "COMPLETED"
                status.status, status.state = (
                    (COMPLETED, "completed") if paid else (REJECTED, "rejected")
                )
            case WorkflowExecutionStatus.FAILED if status.is_open:
                status.status, status.state = "Failed", "failed"
            case WorkflowExecutionStatus.CANCELED if status.is_open:
                status.status, status.state = CANCELLED, "cancelled"
            case WorkflowExecutionStatus.TERMINATED | WorkflowExecutionStatus.TIMED_OUT:
                status.status, status.state = "Terminated by an operator in Temporal", "terminated"
        if not status.is_open:
            status.deadline = None
        return status


def _too_late(status: InvoiceStatus, approve: bool) -> str:
    verb = "approved" if approve else "rejected"
    decided = f" ({status.decided.rstrip('.')})" if status.decided else ""
    text = f"Invoice {status.invoice_id} can't be {verb} now, status: {status.status}{decided}."
    if approve:
        return f"{text} To start anew, submit it again."
    if status.state == "paying":
        return (
            f"{text} To stop it before the next line, cancel the workflow {status.workflow_id} in"
            " the Web UI; what is paid stays paid."
        )
    return f"{text} {status.paid}"


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
                line=int(pending.activity_id.removeprefix("line-")),
                attempt=pending.attempt,
                next_attempt_at=(
                    pending.next_attempt_schedule_time.ToDatetime(UTC) if scheduled else None
                ),
                last_error=pending.last_failure.message,
            )
    return None
