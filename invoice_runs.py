"""What Temporal has of invoices and their runs, without changing anything there.

Each call of `InvoiceRuns` sends as few requests as it can and sets no limit to their time; the
caller does (`asyncio.timeout`), but for a query, which would hang where no worker runs. Besides
`InvoiceError` they raise what the Temporal client raises.
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import inf
from typing import Any, TypeVar

from pydantic import ValidationError
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHistoryEventFilterType
from temporalio.service import RPCError, RPCStatusCode

from invoices.answers import InvoiceList, InvoiceStatus, Retry
from invoices.invoice import (
    BEFORE_1_1,
    INVOICE_WORKFLOW,
    Invoice,
    invoice_id_of,
    line_number,
    workflow_id,
)
from invoices.refusals import unknown_invoice
from invoices.status import (
    CANCELLED,
    COMPLETED,
    INVALID_INVOICE,
    PROCESSING,
    REJECTED,
    TERMINATED,
    UNKNOWN_RESULT,
    Progress,
    RunProgress,
    State,
    approval_deadline,
    state_of_text,
)
from reports import INVOICE_STATE
from temporal_service.clock import ServiceClock
from temporal_service.executions import (
    Execution,
    describe_execution,
    list_executions,
    query_execution,
    quoted,
)
from temporal_service.payloads import LenientPayloadConverter

T = TypeVar("T")

MAX_TEXT = 2000
"""Of a status; the workflow's own are shorter."""
QUERY_SECONDS = 2
"""A running worker answers a query in milliseconds; without one there is never an answer."""
LIST_LIMIT = 50
SCAN_LIMIT = 1000
"""How many invoices `list_invoices` looks at to find those of one state."""
FIRST_EVENTS = 30
"""The workflow writes its memo within the first dozen events, unless signals came before."""
MAX_EVENTS = 1000
"""How many events are looked through for the workflow's first memo."""
READS_AT_ONCE = 10
REMEMBERED_RUNS = 10_000
MAX_CONTENT_BYTES = 2 * 1024 * 1024
"""Of what a run was started with: Temporal's own limit to a payload. More isn't even parsed."""

WorkerAnswer = RunProgress | str
"""What a worker says where a run stands; the tutorial's has the status text alone."""

_converter = LenientPayloadConverter()


@dataclass(frozen=True)
class RunStart:
    """What a run's history says of its beginning."""

    run_id: str
    content: bytes = b""
    """The JSON that it was started with."""
    progress: RunProgress | None = None
    """Where it stood at first, None if the content isn't an invoice."""
    has_own_memo: bool = False
    """Whether the workflow has written its memo. Before that, the memo is its starter's word."""
    submitted_at: Any = None
    """As the workflow's first memo has it. A starter can't know it: the service sets the time."""

    @property
    def invoice(self) -> Invoice | None:
        """What it was started with. Validates it anew: large ones take long."""
        return read_invoice(self.content) if self.progress else None


@dataclass(frozen=True)
class InvoiceRun:
    """The latest run for an invoice, as the Temporal Service has it; no worker is needed."""

    description: Execution
    status: InvoiceStatus
    progress: RunProgress | None
    """None if no invoice can be read from the run."""
    start: RunStart | None = None
    """None if it didn't have to be read."""

    @property
    def id(self) -> str:
        return self.description.run_id

    @property
    def is_open(self) -> bool:
        """By Temporal's word; a status text may be anybody's."""
        return self.description.close_time is None


@dataclass
class TrustedMemos:
    """The latest run of each invoice whose memo is known to be its workflow's, or our own."""

    _runs: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """By workflow id: the run, with the `submitted_at` in its memo."""

    def __contains__(self, workflow_id: object) -> bool:
        return workflow_id in self._runs

    def add(self, id: str, run_id: str, submitted_at: Any) -> None:
        """Trusts a run's memos that have this `submitted_at`, which its history shows."""
        self._runs.pop(id, None)
        self._runs[id] = (run_id, submitted_at)
        if len(self._runs) > REMEMBERED_RUNS:
            del self._runs[next(iter(self._runs))]

    def add_own(self, id: str, run_id: str) -> None:
        """Trusts every memo of a run that was started here."""
        self.add(id, run_id, _ANY)

    def has_memo_of(self, execution: Execution) -> bool:
        run_id, submitted_at = self._runs.get(execution.id, ("", None))
        if run_id != execution.run_id:
            return False
        # A memo may be older than the history, above all in a list.
        return submitted_at is _ANY or execution.memo.get("submitted_at") == submitted_at


_ANY = object()


@dataclass
class RememberedStarts:
    """What runs were started with, which never changes: no list validates the same ones again.

    Only what a list shows is kept, since the invoices themselves may be large.
    """

    _runs: dict[str, RunProgress | None] = field(default_factory=dict)
    """By the id of the run."""

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._runs

    def progress(self, run_id: str, content: bytes) -> RunProgress | None:
        """Where a run with this content stood at first, None if that isn't an invoice."""
        if run_id not in self._runs:
            invoice = read_invoice(content)
            self._runs[run_id] = RunProgress.of(invoice) if invoice else None
            if len(self._runs) > REMEMBERED_RUNS:
                del self._runs[next(iter(self._runs))]
        return self._runs[run_id]


class InvoiceRuns:
    """The runs for the invoices of one Temporal namespace, read-only."""

    def __init__(self, temporal_client: Client) -> None:
        self.temporal = temporal_client
        self.clock = ServiceClock()
        self.trusted_memos = TrustedMemos()
        self.remembered_starts = RememberedStarts()
        self.has_state_attribute = True
        """Whether the namespace has the search attribute `InvoiceState`, as far as is known."""
        self.last_worker_answer = -inf
        """By the monotonic clock."""

    def expect_missing_state_attribute(self, error: RPCError) -> None:
        """Raises `error` unless it says that the namespace doesn't have `InvoiceState`.

        It needn't; that is found out by trying, once a process.
        """
        refused = error.status == RPCStatusCode.INVALID_ARGUMENT
        if not refused or INVOICE_STATE.name not in error.message:
            raise error
        self.has_state_attribute = False

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
        is_needed = with_content or id not in self.trusted_memos
        reading = in_background(self.read_start(id, run_id)) if is_needed else None
        try:
            description = await describe_execution(self.temporal, id, run_id)
            progress, start = None, None
            if description.workflow_type == INVOICE_WORKFLOW:
                progress, start = await self._read_progress(description, reading)
            status = await self._status_from_memo(description, progress)
        except RPCError as error:
            if not is_unknown_workflow(error):
                raise
            raise unknown_invoice(invoice_id) from error
        return InvoiceRun(description, status, progress, start)

    async def exists(self, invoice_id: str) -> bool:
        """Whether Temporal has a run for an invoice."""
        try:
            await describe_execution(self.temporal, workflow_id(invoice_id))
        except RPCError as error:
            if not is_unknown_workflow(error):
                raise
            return False
        return True

    async def ask_worker(self, invoice_id: str, run_id: str | None = None) -> WorkerAnswer | None:
        """What a worker says where a run stands, None if none answers within `QUERY_SECONDS`."""
        id = workflow_id(invoice_id)
        answer: WorkerAnswer | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(QUERY_SECONDS):
                answer = await self._query_progress_or_status(id, run_id)
                while isinstance(answer, RunProgress) and answer.status == PROCESSING:
                    await asyncio.sleep(0.02)  # it has just begun and asks the ledger
                    answer = await self._query_progress_or_status(id, run_id)
        if answer is not None:
            self.last_worker_answer = time.monotonic()
        return answer

    async def status_with_answer(
        self, run: InvoiceRun, answer: WorkerAnswer | None
    ) -> InvoiceStatus:
        """The status of an open run, with what a worker said about it."""
        if answer is None:  # a worker may have taken it up meanwhile and failed, or ended it
            run = await self.get_run(run.status.invoice_id, run.id)
            if not run.is_open:
                return run.status
        progress: Progress = run.progress or run.status
        if isinstance(answer, RunProgress):
            progress = answer
        elif answer is not None:
            progress = _in_state(progress, state_of_text(answer), answer)
        return self._make_status(run.description, progress, worker_answers=answer is not None)

    async def list_invoices(self, state: State | None = None) -> InvoiceList:
        """The latest runs of fifty invoices, or of fifty in one state, from their memos.

        They are those that Temporal lists first: open ones, newest first, then the ones closed
        last. Of runs without the search attribute `InvoiceState`, 1,000 that may be in the state
        are looked at.
        """
        try:
            return await self._list(state, _list_query(state, self.has_state_attribute))
        except RPCError as error:
            self.expect_missing_state_attribute(error)
            return await self.list_invoices(state)

    async def latest_executions(self, invoice_id: str, limit: int) -> list[Execution]:
        """The latest runs for an invoice, newest first, as Temporal's list has them."""
        query = f"WorkflowId = {quoted(workflow_id(invoice_id))}"
        async for page in list_executions(self.temporal, query, page_size=limit):
            return page
        return []

    async def read_start(
        self, id: str, run_id: str | None = None, *, content_only: bool = False
    ) -> RunStart:
        """How one run began, by default the latest under a workflow id.

        Args:
            content_only: leave out the workflow's first memo, which may be some events later.
        """
        handle = self.temporal.get_workflow_handle(id, run_id=run_id)
        start = RunStart("")
        number = 0
        async for event in handle.fetch_history_events(
            page_size=1 if content_only else FIRST_EVENTS
        ):
            number += 1
            if number == 1:
                started = event.workflow_execution_started_event_attributes
                # A reset copies this event, with the id of the first run.
                run_id, content = started.original_execution_run_id, _content(started)
                progress = self.remembered_starts.progress(run_id, content)
                start = RunStart(run_id, content, progress)
            elif event.HasField("workflow_properties_modified_event_attributes"):
                memo = event.workflow_properties_modified_event_attributes.upserted_memo.fields
                payload = memo.get("submitted_at")
                submitted_at = _converter.from_payload(payload) if payload else None
                return replace(start, has_own_memo=True, submitted_at=submitted_at)
            if content_only or number == MAX_EVENTS:
                break
        return start

    async def digests(self, executions: Sequence[Execution]) -> list[str | None]:
        """Of what each run was started with; None for what isn't an invoice, or is gone."""

        async def digest(execution: Execution) -> str | None:
            try:
                start = await self.read_start(execution.id, execution.run_id, content_only=True)
            except RPCError as error:
                if not is_unknown_workflow(error):
                    raise
                return None
            return start.progress.digest if start.progress else None

        return await _gather_bounded([digest(execution) for execution in executions])

    async def signal_arrival(self, run: InvoiceRun, request: str) -> datetime | None:
        """When the Temporal Service received the signal of a request just sent, by its own clock.

        None if the history doesn't show it yet.
        """
        call = GetWorkflowExecutionHistoryReverseRequest(
            namespace=self.temporal.namespace,
            execution=WorkflowExecution(workflow_id=run.description.id, run_id=run.id),
            maximum_page_size=FIRST_EVENTS,
        )
        service = self.temporal.workflow_service
        with suppress(RPCError):  # the signal has been sent, and nothing depends on this
            last = await service.get_workflow_execution_history_reverse(call, retry=True)
            for event in last.history.events:
                signal = event.workflow_execution_signaled_event_attributes
                if any(request.encode() in payload.data for payload in signal.input.payloads):
                    return event.event_time.ToDatetime(UTC)
        return None

    async def _query_progress_or_status(self, id: str, run_id: str | None) -> WorkerAnswer | None:
        try:
            with suppress(ValidationError):
                progress = await self._query(id, run_id, "get_progress")
                return RunProgress.model_validate(progress)
            return _plain_text(await self._query(id, run_id, "get_status"))
        except RPCError as error:
            if error.status in _NO_ANSWER:
                return None
            raise

    async def _query(self, id: str, run_id: str | None, query: str) -> Any:
        """None where the workflow doesn't know the query, as the tutorial's."""
        try:
            return await query_execution(self.temporal, id, run_id, query)
        except RPCError as error:
            if error.status != RPCStatusCode.INVALID_ARGUMENT:
                raise
            return None

    async def _read_progress(
        self, execution: Execution, reading: asyncio.Task[RunStart] | None = None
    ) -> tuple[RunProgress | None, RunStart | None]:
        """Where a run stands without a worker, None if it isn't an invoice; and how it began.

        That is what its memo says, if the workflow has written it. What is in a memo before that,
        its starter has put there: then only the content counts.

        Args:
            reading: of its beginning, if that was begun at the same time as the description.
        """
        start = None
        if reading or not self.trusted_memos.has_memo_of(execution):
            start = await reading if reading else None
            if start is None or start.run_id != execution.run_id:  # another run's, or after a reset
                start = await self.read_start(execution.id, execution.run_id)
            if start.has_own_memo and not self.trusted_memos.has_memo_of(execution):
                self.trusted_memos.add(execution.id, execution.run_id, start.submitted_at)
        memo = self._trusted_memo(execution)
        with suppress(ValidationError):
            return RunProgress.model_validate(memo), start
        if start is None and execution.run_id in self.remembered_starts:
            progress = self.remembered_starts.progress(execution.run_id, b"")
        else:
            start = start or await self.read_start(execution.id, execution.run_id)
            progress = start.progress
        if progress is None:
            return None, start
        if status := _plain_text(memo.get("status")):
            progress = _in_state(progress, state_of_text(status), status)
        return progress, start

    def _trusted_memo(self, execution: Execution) -> dict[str, Any]:
        return execution.memo if self.trusted_memos.has_memo_of(execution) else {}

    async def _status_from_memo(
        self, execution: Execution, progress: RunProgress | None
    ) -> InvoiceStatus:
        """The final status of a closed run, or the one in the memo of an open one."""
        known: Progress = progress or self._unreadable(execution)
        has_result = execution.status == WorkflowExecutionStatus.COMPLETED
        if has_result and known.state not in _COMPLETED_STATES:  # by the tutorial's worker
            known = _by_result(known, await self._result(execution))
        elif execution.close_time:
            known = _by_temporal(known, execution.status)
        return self._make_status(execution, known)

    def _unreadable(self, execution: Execution) -> Progress:
        """Where a run stands from which no invoice can be read."""
        text = _plain_text(self._trusted_memo(execution).get("status")) or INVALID_INVOICE
        failure = "InvalidInvoice" if text.startswith(INVALID_INVOICE) else None
        return Progress(state=state_of_text(text), status=text, failure=failure)

    async def _result(self, execution: Execution) -> Any:
        handle = self.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
        async for event in handle.fetch_history_events(
            event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT
        ):
            result = event.workflow_execution_completed_event_attributes.result
            return _converter.from_payloads(result.payloads[:1])[0] if result.payloads else None
        return None

    def _make_status(
        self, execution: Execution, progress: Progress, *, worker_answers: bool | None = None
    ) -> InvoiceStatus:
        raw = execution.raw_description
        attempt = raw.pending_workflow_task.attempt if raw else 0
        submitted_at = _submitted_at(execution, progress)
        deadline = None
        if progress.state == "waiting" and isinstance(progress, RunProgress):
            deadline = approval_deadline(submitted_at, progress.approval_timeout_days)
        return InvoiceStatus(
            **progress.model_dump(include=set(Progress.model_fields)),
            invoice_id=invoice_id_of(execution.id),
            workflow_id=execution.id,
            submitted_at=submitted_at,
            deadline=deadline,
            closed_at=execution.close_time,
            retry=_retry(execution),
            worker_answers=worker_answers,
            worker_failures=attempt - 1 if worker_answers is False and attempt > 1 else None,
            clock_offset_seconds=self.clock.offset_seconds,
        )

    async def _list(self, state: State | None, query: str) -> InvoiceList:
        found: list[InvoiceStatus] = []
        seen: set[str] = set()
        scanned = 0
        async for page in list_executions(self.temporal, query, page_size=LIST_LIMIT):
            # In Temporal's order, the first run is an invoice's latest.
            latest = {one.id: one for one in reversed(page) if one.id not in seen}
            seen.update(latest)
            calls = [self._status_in(state, execution) for execution in latest.values()]
            statuses = dict(zip(latest, await _gather_bounded(calls), strict=True))
            for execution in page:
                scanned += 1
                is_latest = execution is latest.get(execution.id)
                if is_latest and (status := statuses[execution.id]):
                    found.append(status)
                if len(found) == LIST_LIMIT:
                    break
            if len(found) == LIST_LIMIT or scanned >= SCAN_LIMIT:
                break
        # Visibility lags a little behind, and the two calls may see different moments.
        not_shown = max(0, (await self.temporal.count_workflows(query)).count - scanned)
        found.sort(key=lambda invoice: (invoice.is_open, invoice.submitted_at), reverse=True)
        exact = not_shown == 0 or await self._is_exact(state, query)
        return InvoiceList.of(found, not_shown, exact=exact)

    async def _status_in(self, state: State | None, execution: Execution) -> InvoiceStatus | None:
        """The status of a run; None if it isn't in the state, or not an invoice's latest one."""
        try:
            progress, _ = await self._read_progress(execution)
            status = await self._status_from_memo(execution, progress)
            if state is None or (status.state == state and await self._is_latest(execution)):
                return status
        except RPCError as error:
            if not is_unknown_workflow(error):  # deleted in the meantime
                raise
        return None

    async def _is_exact(self, state: State | None, query: str) -> bool:
        """Whether all that the query finds is in the state."""
        if state is None or not _states_beside(state):
            return True
        if not self.has_state_attribute:
            return False
        name = INVOICE_STATE.name
        others = f"{query} AND ({name} IS NULL OR {name} != '{state}')"
        return (await self.temporal.count_workflows(others)).count == 0

    async def _is_latest(self, execution: Execution) -> bool:
        """A list of one state leaves out later runs in another."""
        if execution.close_time is None:
            return True
        return (await describe_execution(self.temporal, execution.id)).run_id == execution.run_id


def invoice_of(started: WorkflowExecutionStartedEventAttributes) -> Invoice | None:
    """The content that a run was started with, None if it isn't an invoice."""
    return read_invoice(_content(started))


def read_invoice(content: bytes) -> Invoice | None:
    """The invoice that a run of any version was started with, None if it isn't one."""
    if len(content) > MAX_CONTENT_BYTES:
        return None
    try:
        return Invoice.model_validate_json(content)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Only these had no rules before 1.1; anything else isn't validated twice.
    if any(one["loc"][:1] not in (("customer",), ("payment_method",)) for one in errors):
        return None
    with suppress(ValidationError):
        return Invoice.model_validate_json(content, context=BEFORE_1_1)
    return None


def _content(started: WorkflowExecutionStartedEventAttributes) -> bytes:
    payloads = started.input.payloads
    return payloads[0].data if payloads else b""


def is_unknown_workflow(error: RPCError) -> bool:
    return error.status == RPCStatusCode.NOT_FOUND and "amespace" not in error.message


def in_background(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Makes a call at the same time as others."""
    task = asyncio.create_task(call)
    # Where another call fails meanwhile, nobody asks what became of this one.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _gather_bounded(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of calls, of which some are made at once."""
    limit = asyncio.Semaphore(READS_AT_ONCE)

    async def limited(call: Coroutine[Any, Any, T]) -> T:
        async with limit:
            return await call

    return await asyncio.gather(*map(limited, calls))


def _plain_text(value: Any) -> str | None:
    """What a worker or a memo says, if it is a text, and as it can be passed on."""
    if not isinstance(value, str):
        return None
    return value[:MAX_TEXT]


P = TypeVar("P", bound=Progress)


def _in_state(progress: P, state: State, status: str) -> P:
    return progress.model_copy(update={"state": state, "status": status})


def _by_result(progress: Progress, result: Any) -> Progress:
    """Where a run of the tutorial's workflow stands, by the result that it completed with."""
    match result:
        case "COMPLETED":
            ended = _in_state(progress, "completed", COMPLETED)
            if ended.line_count and ended.total:  # all is paid, by that worker's word
                paid = {"paid_lines": ended.line_count, "paid_amount": ended.total}
                ended = ended.model_copy(update=paid)
            return ended
        case "REJECTED":
            return _in_state(progress, "rejected", REJECTED)
        case _:
            return _in_state(progress, "failed", UNKNOWN_RESULT)


def _by_temporal(progress: Progress, status: WorkflowExecutionStatus | None) -> Progress:
    """Where a closed run stands, if its workflow hadn't time to write it into its memo."""
    match status:
        case WorkflowExecutionStatus.FAILED if progress.state != "failed":
            return _in_state(progress, "failed", "Failed")
        case WorkflowExecutionStatus.CANCELED if progress.state != "cancelled":
            return _in_state(progress, "cancelled", CANCELLED)
        case WorkflowExecutionStatus.TERMINATED | WorkflowExecutionStatus.TIMED_OUT:
            return _in_state(progress, "terminated", TERMINATED)
        case _ if progress.is_open:  # continued as new, which ours never is
            return _in_state(progress, "failed", UNKNOWN_RESULT)
        case _:
            return progress


def _submitted_at(execution: Execution, progress: Progress) -> datetime:
    """As the workflow has it: after a reset, a run's own start is later than the submission."""
    if execution.raw_description:
        extended = execution.raw_description.workflow_extended_info
        if extended.HasField("original_start_time"):
            return extended.original_start_time.ToDatetime(UTC)
    known = progress.submitted_at if isinstance(progress, RunProgress) else None
    return known or execution.start_time


def _retry(execution: Execution) -> Retry | None:
    """The payment of an open run that is being tried again, as far as it was described."""
    raw = execution.raw_description if execution.close_time is None else None
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
