"""Reads invoices and their runs from Temporal, and changes nothing there.

Each method of `InvoiceRuns` sends as few requests as possible. Only queries have a time limit,
because a query hangs if no worker runs; for the rest, the caller sets one (`asyncio.timeout`).
The methods raise `InvoiceError` and whatever the Temporal client raises.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import CORO_CREATED, getcoroutinestate
from math import inf
from threading import Lock
from typing import Any, TypeVar
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import to_jsonable_python
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent, WorkflowExecutionStartedEventAttributes
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHistoryEventFilterType
from temporalio.service import RPCError, RPCStatusCode

from invoices.answers import InvoiceStatus, Retry
from invoices.approvals import that_matter
from invoices.invoice import (
    AS_STARTED,
    BEFORE_1_1,
    INVOICE_WORKFLOW,
    Invoice,
    invoice_id_of,
    line_number,
    workflow_id,
)
from invoices.refusals import InvoiceError, unknown_invoice
from invoices.status import (
    CANCELLED,
    COMPLETED,
    DECISIONS,
    INVALID_INVOICE,
    MAX_TEXT,
    NOT_KNOWN,
    NOT_READ,
    PROCESSING,
    REJECTED,
    REJECTED_OR_TIMED_OUT,
    TERMINATED,
    TIMED_OUT_IN_TEMPORAL,
    UNKNOWN_RESULT,
    Cancellation,
    Decision,
    Progress,
    RunProgress,
    State,
    approval_deadline,
    state_of_text,
)
from temporal_service.clock import ServiceClock
from temporal_service.executions import (
    Execution,
    Memo,
    cancel_request,
    date_by_originals,
    describe_execution,
    events_back_to,
    has_no_poller,
    is_unknown_workflow,
    last_events,
    list_executions,
    query_execution,
    quoted,
    unknown_workflow_suppressed,
)
from temporal_service.payloads import LenientPayloadConverter, first_data
from workflow import TASK_QUEUE

K = TypeVar("K")
T = TypeVar("T")

QUERY_SECONDS = 1.8
"""How long a call waits for a worker at most, so that it takes no more than 2 s with its other
requests. A running worker answers in milliseconds.
"""
LOOKING_SHARE = 1 / 4
"""For this share of that time a call looks whether a worker that has answered recently has
processed what the call sent. A busy worker is then asked nothing in addition.
"""
PROMPT_SECONDS = 0.15
"""An idle worker answers within this time. After it, the client finds out whether there is one."""
RECENT_SECONDS = 10
"""For this long after a worker's answer, a client assumes that a worker runs."""
FIRST_EVENTS = 30
"""The workflow writes its memo within the first dozen events, unless signals arrive earlier."""
MAX_EVENTS = 1000
"""How many events are searched for the workflow's first memo, from the start of the history."""
LAST_EVENTS = 50
"""How many are searched from the end of the history if the first ones don't have it."""
RESET_AFTER = timedelta(milliseconds=10)
"""A run that starts by more than this after its submission is one that a reset has made."""
READS_AT_ONCE = 10
REMEMBERED_RUNS = 10_000
REMEMBERED_INVOICES = 100
SMALL_CONTENT_BYTES = 64 * 1024
"""Only invoices up to this size are remembered, since nested fields take many times that in memory,
and only these are validated in the event loop. A megabyte of nested fields takes half a second.
"""
MAX_LISTED_MARKS = 20_000
"""How many brackets and commas a content may have that is validated for a list. New invoices have
fewer, except in texts, and a list of strangers' invoices that have more would take a minute.
"""
MAX_CONTENT_BYTES = 2 * 1024 * 1024
"""Of what a run was started with: Temporal's own limit to a payload. More isn't even parsed."""

WorkerAnswer = RunProgress | str
"""A worker's answer about a run. The tutorial's worker answers only with the status text."""

_converter = LenientPayloadConverter()
_validating = ThreadPoolExecutor(1, "validating")
"""One at a time, so that calls that were cut off don't go on validating what they asked for."""


@dataclass(frozen=True)
class RunStart:
    """What a run's history says about its start."""

    run_id: str
    content: bytes = b""
    """The JSON that it was started with."""
    has_own_memo: bool | None = False
    """Whether the workflow has written its memo. Until then, the memo is what the starter wrote.

    None if that isn't known, because other clients sent too many signals.
    """
    started_at: datetime | None = None
    """The time of its first event, which a reset copies."""
    submitted_at: Any = None
    """From the workflow's first memo. A starter can't know it: the service sets the time."""
    ledger: str | None = None
    """The id of the payment ledger that its starter named."""

    @property
    def is_small(self) -> bool:
        return len(self.content) <= SMALL_CONTENT_BYTES

    @property
    def is_simple(self) -> bool:
        """Whether its content can be validated quickly."""
        return sum(map(self.content.count, (b"[", b"{", b","))) <= MAX_LISTED_MARKS


@dataclass(frozen=True)
class InvoiceRun:
    """A run for an invoice, as the Temporal Service has it. It can be read without a worker."""

    description: Execution
    status: InvoiceStatus
    progress: RunProgress | None
    """None if the run's input isn't an invoice and its memo has no progress."""
    start: RunStart | None = None
    """None if it wasn't needed."""

    @property
    def id(self) -> str:
        return self.description.run_id

    @property
    def is_open(self) -> bool:
        """What Temporal says. The status text may come from another client."""
        return self.description.close_time is None

    @property
    def has_own_memo(self) -> bool:
        """Whether a worker of version 1.1 or later has written the memo. Earlier versions and the
        tutorial's worker don't write all of their progress into it.
        """
        return self.progress is not None and self.progress.submitted_at is not None

    @property
    def is_up_to_date(self) -> bool:
        """Whether the memo says all that a worker would answer."""
        # A paused run has no workflow task, whatever it was sent.
        execution = self.description
        may_have_unread = execution.has_pending_workflow_task or execution.is_paused
        return self.has_own_memo and not may_have_unread

    @property
    def is_rule_known(self) -> bool:
        """Whether a worker has told whose approvals it needs: with its gateway or its ledger."""
        told = self.progress
        is_told = told and (told.gateway or told.ledger or told.required_approvals)
        return bool(self.has_own_memo and is_told)

    @property
    def ledger(self) -> str | None:
        """The id of its payment ledger, as far as the run has told it."""
        return self.progress.ledger if self.progress else None

    @property
    def has_begun_to_pay(self) -> bool:
        """Whether its ledger has, or may have, payments of the invoice."""
        return bool(self.progress and (self.progress.paid_lines or self.progress.current_line))


@dataclass
class TrustedMemos:
    """The latest run of each invoice, if its memo is known to come from its workflow or from us."""

    _runs: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Workflow id to run id, and the `submitted_at` that the memo must have."""

    def __contains__(self, workflow_id: object) -> bool:
        return workflow_id in self._runs

    def add(self, id: str, run_id: str, submitted_at: Any) -> None:
        """Trusts memos of this run that have this `submitted_at`, which its history shows."""
        keep_latest(self._runs, id, (run_id, submitted_at), REMEMBERED_RUNS)

    def add_own(self, id: str, run_id: str) -> None:
        """Trusts every memo of a run that this process started."""
        self.add(id, run_id, _ANY)

    def run_id(self, workflow_id: str) -> str:
        """The id of that run; empty if there is none."""
        return self._runs.get(workflow_id, ("", None))[0]

    def has_memo_of(self, execution: Execution) -> bool:
        run_id, submitted_at = self._runs.get(execution.id, ("", None))
        if run_id != execution.run_id:
            return False
        # A memo can be older than the history, especially one from a list.
        return submitted_at is _ANY or execution.memo.get("submitted_at") == submitted_at


_ANY = object()


@dataclass
class RememberedStarts:
    """What runs were started with, which never changes: no list validates the same ones again.

    What a list shows is kept for many, and of the small invoices the latest ones themselves.
    """

    _runs: dict[str, RunProgress | None] = field(default_factory=dict)
    """By the id of the run."""
    _invoices: dict[str, Invoice] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)
    """Large ones are validated in a thread."""

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._runs

    def invoice(self, run_id: str) -> Invoice | None:
        """The content of a run; None if it isn't remembered."""
        return self._invoices.get(run_id)

    def add(self, run_id: str, invoice: Invoice, size: int) -> None:
        """Keeps the content of a run, which has `size` bytes, unless it is large."""
        if size <= SMALL_CONTENT_BYTES:
            with self._lock:
                keep_latest(self._invoices, run_id, invoice, REMEMBERED_INVOICES)

    def progress(self, run_id: str, content: bytes = b"", id: str = "") -> RunProgress | None:
        """Where a run with this content and workflow id stood at first; None if it isn't an
        invoice's.
        """
        with suppress(KeyError):
            return self._runs[run_id]
        invoice = _read_own_invoice(content, id)
        progress = RunProgress.of(invoice) if invoice else None
        if invoice:
            self.add(run_id, invoice, len(content))
        with self._lock:
            keep_latest(self._runs, run_id, progress, REMEMBERED_RUNS)
        return progress


class InvoiceRuns:
    """The runs for the invoices in one Temporal namespace, read-only."""

    def __init__(self, temporal_client: Client) -> None:
        self.temporal = temporal_client
        self.clock = ServiceClock()
        self.trusted_memos = TrustedMemos()
        self.remembered_starts = RememberedStarts()
        self.missing_attributes: set[str] = set()
        """The search attributes that the namespace doesn't have, as far as is known."""
        self._last_worker_answer = -inf
        """When a worker last answered, by the monotonic clock."""
        self._paid_from: dict[str, str | None] = {}
        """By the id of a run, the payment ledger from which earlier submissions began to pay."""

    @property
    def has_recent_answer(self) -> bool:
        """Whether a worker has answered within the last `RECENT_SECONDS`."""
        return time.monotonic() - self._last_worker_answer <= RECENT_SECONDS

    def expect_missing_attribute(self, error: RPCError, *used: str) -> None:
        """Raises `error` unless it says that the namespace doesn't have a search attribute.

        These are optional. Each process finds out once, by trying to use them.

        Args:
            used: the names of those that the failed call used, so that its repetition uses fewer.
        """
        missing = {name for name in used if name in error.message}
        if error.status != RPCStatusCode.INVALID_ARGUMENT or not missing:
            raise error
        self.missing_attributes |= missing

    async def get_run(
        self,
        invoice_id: str,
        run_id: str | None = None,
        *,
        with_content: bool = False,
        described: Callable[[Execution], None] | None = None,
    ) -> InvoiceRun:
        """One run for an invoice, by default the latest.

        Args:
            with_content: also read the content that it was started with, for `content`.
            described: called with the description, before the rest has been read.

        Raises:
            InvoiceError: Temporal has no such run.
        """
        id = workflow_id(invoice_id)
        # Read the start at the same time if it will probably be needed.
        latest = run_id or self.trusted_memos.run_id(id)
        is_remembered = self.remembered_starts.invoice(latest) is not None
        is_needed = (with_content and not is_remembered) or id not in self.trusted_memos
        reading = in_background(self.read_start(id, run_id)) if is_needed else None
        try:
            description = await describe_execution(self.temporal, id, run_id)
            if described:
                described(description)
            progress, start = None, None
            if description.workflow_type == INVOICE_WORKFLOW:
                progress, start = await self._read_progress(description, reading)
            status = await self._status_from_memo(description, progress, start)
            status = await self._with_cancellation(description, status)
        except RPCError as error:
            if not is_unknown_workflow(error):
                raise
            raise unknown_invoice(invoice_id) from error
        return InvoiceRun(description, status, progress, start)

    async def content(self, run: InvoiceRun) -> Invoice | None:
        """What a run was started with; None if it isn't an invoice."""
        first_id = run.start.run_id if run.start else run.id
        if remembered := self.remembered_starts.invoice(first_id):
            return remembered
        id = run.description.id
        start = run.start or await self.read_start(id, run.id, content_only=True)
        return await _validate(start, lambda: _read_own_invoice(start.content, id))

    async def exists(self, invoice_id: str) -> bool:
        """Whether Temporal has a run for an invoice."""
        with unknown_workflow_suppressed():
            await describe_execution(self.temporal, workflow_id(invoice_id))
            return True
        return False

    async def ask_worker(
        self, invoice_id: str, run_id: str | None = None, *, has_waited: bool = False
    ) -> WorkerAnswer | None:
        """A worker's answer about a run. None if there is none within `QUERY_SECONDS`, or as soon
        as it is known that no worker runs.

        Args:
            has_waited: the caller has called `processed_run` before, so don't wait as long, also
                before finding out whether a worker runs.
        """
        seconds = QUERY_SECONDS * (1 - LOOKING_SHARE if has_waited else 1)
        asking = in_background(self._answer(workflow_id(invoice_id), run_id, seconds))
        try:
            done, _ = await asyncio.wait(
                [asking], timeout=PROMPT_SECONDS / 5 if has_waited else PROMPT_SECONDS
            )
            if not done and await has_no_poller(self.temporal, TASK_QUEUE):
                return None
            answer = await asking
        finally:
            asking.cancel()
        if answer is not None:
            self._last_worker_answer = time.monotonic()
        return answer

    async def _answer(self, id: str, run_id: str | None, seconds: float) -> WorkerAnswer | None:
        answer: WorkerAnswer | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                answer = await self._query_progress_or_status(id, run_id)
                while isinstance(answer, RunProgress) and answer.status == PROCESSING:
                    await asyncio.sleep(0.02)  # it has just started and is asking the ledger
                    answer = await self._query_progress_or_status(id, run_id)
        return answer

    async def processed_run(self, invoice_id: str, run_id: str | None) -> InvoiceRun | None:
        """A run as soon as a worker has processed what the run was just sent.

        Its memo is up to date then, and reading it is quicker than a query, which the worker has to
        answer. None if that takes longer than a running worker needs, or if the memo doesn't tell.
        """
        pause = 0.003
        looking = QUERY_SECONDS * LOOKING_SHARE if self.has_recent_answer else PROMPT_SECONDS
        until = time.monotonic() + looking
        while time.monotonic() < until:
            await asyncio.sleep(pause)
            pause *= 1.3
            run = await self.get_run(invoice_id, run_id)
            if run.is_open and run.description.has_pending_workflow_task:
                continue
            if not run.has_own_memo or run.status.state == "terminated":
                return None
            if run.description.is_paused:
                return None
            self._last_worker_answer = time.monotonic()
            if not run.is_open:
                return run
            return replace(run, status=run.status.model_copy(update={"worker_answers": True}))
        return None

    def new_run(self, id: str, run_id: str, progress: RunProgress, sent: datetime) -> InvoiceRun:
        """A run that has just been started, without asking the Temporal Service for it.

        Args:
            sent: when the call that started it was sent, by this computer's clock. Unless the
                run's id has the time, the times in the status are at most one second and the length
                of that call too early.
        """
        started_at = _time_of(run_id) or self.clock.service_time(sent).replace(microsecond=0)
        running = WorkflowExecutionStatus.RUNNING
        execution = Execution(id, run_id, INVOICE_WORKFLOW, running, started_at, None, Memo())
        return InvoiceRun(execution, self._make_status(execution, progress), progress)

    async def status_with_answer(
        self, run: InvoiceRun, answer: WorkerAnswer | None
    ) -> InvoiceStatus:
        """The status of an open run, updated with a worker's answer about it."""
        unread: list[Decision] | None = []
        if run.description.is_paused:  # a worker's answer wouldn't have what the run was sent
            answer = None
        if answer is None:  # meanwhile a worker may have failed to process it, or completed it
            reading = in_background(self._unread_decisions(run))
            run = await self.get_run(run.status.invoice_id, run.id)
            if not run.is_open:
                return run.status
            unread = await reading
        progress: Progress = run.progress or run.status
        if isinstance(answer, RunProgress):
            progress = answer
        elif answer is not None:
            progress = _in_state(progress, state_of_text(answer), answer)
            # That worker knows no payment date.
            progress = progress.model_copy(update={"pay_on": None})
        status = self._make_status(
            run.description, progress, run.start, worker_answers=answer is not None
        )
        # The workflow reports its cancellation only when it ends.
        cancellation = status.cancellation or run.status.cancellation
        status = status.model_copy(update={"cancellation": cancellation})
        return _with_unread(run, status, unread)

    async def status_with_unread(self, run: InvoiceRun) -> InvoiceStatus:
        """The status of an open run with the decisions that no worker has read, so without one."""
        return _with_unread(run, run.status, await self._unread_decisions(run))

    async def _unread_decisions(self, run: InvoiceRun) -> list[Decision] | None:
        """The decisions that a worker will take when it runs; None if that isn't known."""
        status = run.status
        if status.state != "waiting" or status.decision:
            return []
        id = run.description.id
        events = await events_back_to(
            self.temporal, id, run.id, lambda event: event.event_type == _TASK_COMPLETED
        )
        read = partial(events_back_to, self.temporal, id)
        if events is None or not await date_by_originals(events, read):
            return None
        return unread_decisions(events, status.deadline)

    async def _with_cancellation(
        self, execution: Execution, status: InvoiceStatus
    ) -> InvoiceStatus:
        """Adds who has asked to cancel a run that is open, or whose worker hasn't reported it."""
        raw = execution.raw_description
        is_requested = raw and raw.workflow_extended_info.cancel_requested
        told = status.cancellation
        if (told and told.at) or not is_requested or not (status.is_open or status.is_cancelled):
            return status
        found = await cancel_request(self.temporal, execution.id, execution.run_id)
        if found is None:  # too many signals came after it
            cancellation = told or Cancellation()
        else:
            cancellation = Cancellation.from_request(found.identity, found.reason, found.at)
        return status.model_copy(update={"cancellation": cancellation})

    async def latest_executions(self, invoice_id: str, limit: int) -> list[Execution]:
        """The latest runs for an invoice, newest first, from Temporal's visibility store."""
        query = f"WorkflowId = {quoted(workflow_id(invoice_id))}"
        async for page in list_executions(self.temporal, query, page_size=limit):
            return page
        return []

    async def read_status(self, execution: Execution) -> InvoiceStatus | None:
        """The status of a run that a search has found; None if it was deleted in the meantime.

        It is `NOT_READ` if only the content tells it, and that is too complex to be validated.
        """
        with unknown_workflow_suppressed():
            progress, start = await self._read_progress(execution, only_simple=True)
            if progress is None and start and start.run_id not in self.remembered_starts:
                not_read = Progress(state="waiting", status=NOT_READ)
                return await self._status_from_memo(execution, not_read, start)
            return await self._status_from_memo(execution, progress, start)
        return None

    async def ledger_of(self, last: InvoiceRun, limit: int) -> str | None:
        """The id of the payment ledger that an invoice belongs to; None if no run tells it.

        It is the ledger of the newest run that had begun to pay, else that of the newest that knows
        one: another client's run may know none, or have met the worker of another ledger.

        Args:
            last: the invoice's latest run.
            limit: of the earlier runs that are looked at.
        """
        if last.ledger and last.has_begun_to_pay:
            return last.ledger
        invoice_id = last.status.invoice_id
        executions = await self.latest_executions(invoice_id, limit + 1)
        known = [last, *await self._find_runs(invoice_id, executions)]
        return _paying_ledger(known) or next((run.ledger for run in known if run.ledger), None)

    def note_first_submission(self, run_id: str) -> None:
        """Remembers that no earlier submission of the invoice began to pay."""
        keep_latest(self._paid_from, run_id, None, REMEMBERED_RUNS)

    async def with_earlier_ledger(
        self,
        run: InvoiceRun,
        status: InvoiceStatus,
        limit: int,
        submissions: Sequence[Execution] | None = None,
    ) -> InvoiceStatus:
        """The status, with the ledger from which an earlier submission began to pay if the run is
        open and isn't bound to it.

        Without `submissions`, it costs no request where the memo of the run's starter is that of a
        first submission by our client. Another client can copy such a memo.

        Args:
            limit: of the earlier runs that are looked at.
            submissions: the latest ones, if they have been read.
        """
        if not status.is_open:
            return status
        first_id = run.start.run_id if run.start else run.id
        invoice_id = status.invoice_id
        if submissions is not None or first_id not in self._paid_from:
            if submissions is None:
                submissions = await self.latest_executions(invoice_id, limit + 1)
            earlier = [one for one in submissions if one.run_id not in (run.id, first_id)]
            ledger = _paying_ledger(await self._find_runs(invoice_id, earlier))
            keep_latest(self._paid_from, first_id, ledger, REMEMBERED_RUNS)
        earlier_ledger = self._paid_from[first_id]
        if earlier_ledger in (None, run.ledger):
            return status
        start = run.start or await self.read_start(run.description.id, run.id, content_only=True)
        if run.ledger is None and start.ledger == earlier_ledger:
            return status
        update = dict.fromkeys(_PAID_EARLIER) | {"earlier_ledger": earlier_ledger}
        return status.model_copy(update=update)

    async def _find_runs(
        self, invoice_id: str, executions: Sequence[Execution]
    ) -> list[InvoiceRun]:
        calls = [self._find_run(invoice_id, one.run_id) for one in executions]
        return [run for run in await gather_bounded(calls) if run]

    async def _find_run(self, invoice_id: str, run_id: str) -> InvoiceRun | None:
        with suppress(InvoiceError):  # deleted in the meantime
            return await self.get_run(invoice_id, run_id)
        return None

    async def read_start(
        self, id: str, run_id: str | None = None, *, content_only: bool = False
    ) -> RunStart:
        """How a run started, by default the latest one with a workflow id.

        Args:
            content_only: don't look for the workflow's first memo, which comes some events later.
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
                first_id, content = started.original_execution_run_id, first_data(started.input)
                started_at = event.event_time.ToDatetime(UTC)
                memo = Memo(started.memo.fields).read(("digest", "ledger"))
                ledger = _plain_text(memo.get("ledger"))
                start = RunStart(first_id, content, started_at=started_at, ledger=ledger)
                if memo.get("digest") and not ledger:
                    self.note_first_submission(first_id)
            elif (own := _upserted_memo(event)) is not None:
                return replace(start, has_own_memo=True, submitted_at=own.get("submitted_at"))
            if content_only:
                break
            if number == FIRST_EVENTS:
                last = await self._last_events(id, run_id or start.run_id, LAST_EVENTS)
                memos = [memo for memo in map(_upserted_memo, last) if memo is not None]
                if memos:
                    # Later ones have only what has changed since, so not the time of submission.
                    known = [memo for memo in memos if "submitted_at" in memo]
                    submitted_at = (
                        known[-1]["submitted_at"] if known else to_jsonable_python(started_at)
                    )
                    return replace(start, has_own_memo=True, submitted_at=submitted_at)
            if number >= MAX_EVENTS:
                return replace(start, has_own_memo=None)
        return start

    async def _first_progress(self, start: RunStart, id: str) -> RunProgress | None:
        """Where a run with this workflow id stood at first; None if it isn't an invoice's."""
        if start.run_id in self.remembered_starts:
            return self.remembered_starts.progress(start.run_id)
        remember = self.remembered_starts.progress
        return await _validate(start, lambda: remember(start.run_id, start.content, id))

    async def _last_events(self, id: str, run_id: str, count: int) -> Sequence[HistoryEvent]:
        """About the last `count` events of a run, newest first."""
        return await last_events(self.temporal, id, run_id, count)

    async def digests(self, executions: Sequence[Execution]) -> list[str | None]:
        """The digest of each run's content; None if it isn't an invoice or was deleted."""

        async def digest(execution: Execution) -> str | None:
            with unknown_workflow_suppressed():
                start = await self.read_start(execution.id, execution.run_id, content_only=True)
                progress = await self._first_progress(start, execution.id)
                return progress.digest if progress else None
            return None

        return await gather_bounded([digest(execution) for execution in executions])

    async def signal_arrival(self, run: InvoiceRun, request: str) -> datetime | None:
        """When the Temporal Service received the signal that has just been sent, by its own clock.

        Args:
            request: the id that the signal carries.

        Returns:
            None if the history doesn't show the signal yet.
        """
        with suppress(RPCError):  # the signal was sent, and nothing else depends on its time
            for event in await self._last_events(run.description.id, run.id, FIRST_EVENTS):
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
        """The answer, or None if the workflow doesn't have the query, as in the tutorial."""
        try:
            return await query_execution(self.temporal, id, run_id, query)
        except RPCError as error:
            if error.status != RPCStatusCode.INVALID_ARGUMENT:
                raise
            return None

    async def _read_progress(
        self,
        execution: Execution,
        reading: asyncio.Task[RunStart] | None = None,
        *,
        only_simple: bool = False,
    ) -> tuple[RunProgress | None, RunStart | None]:
        """A run's progress, found without a worker, and its start, if that was read.

        The progress comes from the memo once the workflow has written it. Until then the memo is
        what the starter wrote, so only the content counts. Without an invoice it is None.

        Args:
            reading: the task that reads the start, if the caller has begun to read it.
            only_simple: don't validate other content.
        """
        start = None
        if reading or not self.trusted_memos.has_memo_of(execution):
            start = await reading if reading else None
            if start is None or start.run_id != execution.run_id:  # a different run, or a reset one
                start = await self.read_start(execution.id, execution.run_id)
            if start.has_own_memo and not self.trusted_memos.has_memo_of(execution):
                self.trusted_memos.add(execution.id, execution.run_id, start.submitted_at)
        memo = self._trusted_memo(execution)
        with suppress(ValidationError):
            return RunProgress.model_validate(memo), start
        if start is None and execution.run_id in self.remembered_starts:
            progress = self.remembered_starts.progress(execution.run_id)
        else:
            start = start or await self.read_start(execution.id, execution.run_id)
            if only_simple and not start.is_simple and start.run_id not in self.remembered_starts:
                return None, start
            progress = await self._first_progress(start, execution.id)
        if progress is None:
            return None, start
        if start and start.has_own_memo is None:
            progress = _in_state(progress, "waiting", NOT_KNOWN)
        if status := _plain_text(memo.get("status")):
            progress = _in_state(progress, state_of_text(status), status)
        return progress, start

    def _trusted_memo(self, execution: Execution) -> dict[str, Any]:
        is_trusted = self.trusted_memos.has_memo_of(execution)
        return execution.memo.read(RunProgress.model_fields) if is_trusted else {}

    async def _status_from_memo(
        self,
        execution: Execution,
        progress: Progress | None,
        start: RunStart | None = None,
    ) -> InvoiceStatus:
        """The final status of a closed run, or the last recorded status of an open one."""
        known = progress or self._unreadable(execution)
        has_result = execution.status == WorkflowExecutionStatus.COMPLETED
        if has_result and known.state not in _COMPLETED_STATES:  # the tutorial's worker ran it
            known = _by_result(known, await self._result(execution))
        elif execution.close_time:
            known = _by_temporal(known, execution.status)
        return self._make_status(execution, known, start)

    def _unreadable(self, execution: Execution) -> Progress:
        """The progress of a run whose input can't be read as an invoice."""
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

    def _later_start(self, execution: Execution, progress: Progress) -> datetime | None:
        """When a run starts that its starter has delayed or scheduled; None if it has started."""
        has_started = isinstance(progress, RunProgress) and progress.submitted_at is not None
        if execution.close_time or execution.has_pending_workflow_task or has_started:
            return None
        at = execution.execution_time
        return at if at and at > max(self.clock.now, execution.start_time) else None

    def _make_status(
        self,
        execution: Execution,
        progress: Progress,
        start: RunStart | None = None,
        *,
        worker_answers: bool | None = None,
    ) -> InvoiceStatus:
        raw = execution.raw_description
        attempt = raw.pending_workflow_task.attempt if raw else 0
        submitted_at = _submitted_at(execution, progress, start)
        deadline = None
        is_waiting = progress.state == "waiting" and progress.status != NOT_KNOWN
        if is_waiting and isinstance(progress, RunProgress):
            deadline = approval_deadline(submitted_at, progress.approval_timeout_days)
        # A run that was reset repeats what the ledger had answered before, and may have paid since.
        was_reset = execution.start_time - submitted_at > RESET_AFTER
        if was_reset and not progress.paid_lines:
            progress = progress.model_copy(update=dict.fromkeys(_PAID_EARLIER))
        elif was_reset and progress.paid_lines < (progress.line_count or 0):
            progress = progress.model_copy(update={"more_may_be_paid": True})
        return InvoiceStatus(
            **progress.model_dump(include=set(Progress.model_fields)),
            invoice_id=invoice_id_of(execution.id),
            workflow_id=execution.id,
            submitted_at=submitted_at,
            deadline=deadline,
            closed_at=execution.close_time,
            paused=execution.is_paused or None,
            starts_at=self._later_start(execution, progress),
            retry=read_retry(execution),
            worker_answers=worker_answers,
            worker_failures=attempt - 1 if worker_answers is False and attempt > 1 else None,
            clock_offset_seconds=self.clock.offset_seconds,
        )


def _paying_ledger(runs: Sequence[InvoiceRun]) -> str | None:
    """The ledger of the first of these runs that had begun to pay; None if none had."""
    return next((run.ledger for run in runs if run.ledger and run.has_begun_to_pay), None)


async def _validate(start: RunStart, read: Callable[[], T]) -> T:
    """What `read` makes of a run's content: in a thread if that may take long."""
    if start.is_small:
        return read()
    return await asyncio.get_running_loop().run_in_executor(_validating, read)


def invoice_of(started: WorkflowExecutionStartedEventAttributes, id: str) -> Invoice | None:
    """The content that a run was started with; None if it isn't an invoice.

    Nor is it one if the run's workflow id, `id`, belongs to another invoice. The workflow refuses
    it as well.
    """
    return _read_own_invoice(first_data(started.input), id)


def read_invoice(content: bytes) -> Invoice | None:
    """The invoice that a run of any version was started with, None if it isn't one."""
    if len(content) > MAX_CONTENT_BYTES:
        return None
    try:
        return Invoice.model_validate_json(content, context=AS_STARTED)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Only these had no rules before 1.1; anything else isn't validated twice.
    if any(one["loc"][:1] not in (("customer",), ("payment_method",)) for one in errors):
        return None
    with suppress(ValidationError):
        return Invoice.model_validate_json(content, context=BEFORE_1_1)
    return None


def _read_own_invoice(content: bytes, id: str) -> Invoice | None:
    """The same for the workflow id of the run: None if that belongs to another invoice."""
    invoice = read_invoice(content)
    return invoice if invoice and workflow_id(invoice.id) == id else None


def _with_unread(
    run: InvoiceRun, status: InvoiceStatus, unread: list[Decision] | None
) -> InvoiceStatus:
    if unread is None:
        return status.model_copy(update={"kept_decision_unknown": True})
    return status.with_unread(unread, is_rule_known=run.is_rule_known)


def unread_decisions(latest: Sequence[HistoryEvent], deadline: datetime | None) -> list[Decision]:
    """The decisions that were received after the last completed workflow task, in time, of those
    that can matter. In their order.

    Args:
        latest: the last events of the history, newest first.

    Returns:
        Nothing if the events don't reach back far enough.
    """
    found: list[Decision] = []
    for event in latest:
        signal = event.workflow_execution_signaled_event_attributes
        if signal.signal_name in DECISIONS:
            at = event.event_time.ToDatetime(UTC)
            if deadline is None or at < deadline:
                approved = DECISIONS[signal.signal_name]
                found.append(Decision.from_signal(approved, first_data(signal.input), at))
        elif event.event_id == 1 or event.event_type == _TASK_COMPLETED:
            return that_matter(found[::-1])
    return []


def _upserted_memo(event: HistoryEvent) -> dict[str, Any] | None:
    """The time of submission in the memo that the workflow wrote with this event, as a dictionary,
    since later ones don't have it; None if it wrote none.
    """
    if not event.HasField("workflow_properties_modified_event_attributes"):
        return None
    fields = event.workflow_properties_modified_event_attributes.upserted_memo.fields
    return Memo(fields).read(["submitted_at"])


def keep_latest(kept: dict[K, T], key: K, value: T, most: int) -> None:
    """Adds a value, and forgets the one that was added first if there are more than `most`."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


def in_background(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Starts a call without waiting for it."""
    task = asyncio.create_task(call)
    # If another call fails first, nobody reads this one's exception, and asyncio would log it.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def gather_bounded(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of the calls, of which at most `READS_AT_ONCE` run at the same time."""
    limit = asyncio.Semaphore(READS_AT_ONCE)

    async def limited(call: Coroutine[Any, Any, T]) -> T:
        async with limit:
            return await call

    tasks = [asyncio.create_task(limited(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        # If one fails or all are cancelled, the others end too, and also those that haven't begun.
        for task, call in zip(tasks, calls, strict=True):
            task.cancel()
            if getcoroutinestate(call) == CORO_CREATED:
                call.close()


def _plain_text(value: Any) -> str | None:
    """A text from a worker or a memo, shortened to `MAX_TEXT`; None if it isn't a text."""
    if not isinstance(value, str):
        return None
    return value[:MAX_TEXT]


P = TypeVar("P", bound=Progress)


def _in_state(progress: P, state: State, status: str) -> P:
    return progress.model_copy(update={"state": state, "status": status})


def _by_result(progress: Progress, result: Any) -> Progress:
    """The progress of a run of the tutorial's workflow, according to its result."""
    match result:
        case "COMPLETED":
            ended = _in_state(progress, "completed", COMPLETED)
            if ended.line_count and ended.total:  # that worker says that all lines are paid
                paid = {"paid_lines": ended.line_count, "paid_amount": ended.total}
                ended = ended.model_copy(update=paid)
            return ended
        case "REJECTED":
            is_known = progress.status != NOT_KNOWN
            return _in_state(progress, "rejected", REJECTED if is_known else REJECTED_OR_TIMED_OUT)
        case _:
            return _in_state(progress, "failed", UNKNOWN_RESULT)


def _by_temporal(progress: Progress, status: WorkflowExecutionStatus | None) -> Progress:
    """The progress of a closed run, also if its workflow couldn't write its end into the memo."""
    match status:
        case WorkflowExecutionStatus.FAILED if progress.state != "failed":
            return _in_state(progress, "failed", "Failed")
        case WorkflowExecutionStatus.CANCELED if progress.state != "cancelled":
            return _in_state(progress, "cancelled", CANCELLED)
        case WorkflowExecutionStatus.TERMINATED:
            return _in_state(progress, "terminated", TERMINATED)
        case WorkflowExecutionStatus.TIMED_OUT:
            return _in_state(progress, "terminated", TIMED_OUT_IN_TEMPORAL)
        case _ if progress.is_open:  # continued as new, which our workflow never does
            return _in_state(progress, "failed", UNKNOWN_RESULT)
        case _:
            return progress


def _submitted_at(execution: Execution, progress: Progress, start: RunStart | None) -> datetime:
    """When the invoice was submitted. After a reset, the run itself has started later."""
    if execution.raw_description:
        extended = execution.raw_description.workflow_extended_info
        if extended.HasField("original_start_time"):
            return extended.original_start_time.ToDatetime(UTC)
    known = progress.submitted_at if isinstance(progress, RunProgress) else None
    return known or (start.started_at if start else None) or execution.start_time


def _time_of(run_id: str) -> datetime | None:
    """When a run started, in whole milliseconds: a UUID of version 7, as newer services give runs,
    begins with the time. None for another id.
    """
    with suppress(ValueError):  # not a UUID at all
        id = UUID(run_id)
        return datetime.fromtimestamp((id.int >> 80) / 1000, UTC) if id.version == 7 else None
    return None


def read_retry(execution: Execution) -> Retry | None:
    """The payment that an open run is retrying, or that is paused, if the run was described and has
    one.
    """
    raw = execution.raw_description if execution.close_time is None else None
    for pending in raw.pending_activities if raw else []:
        if pending.attempt > 1 or pending.paused:
            failure = pending.last_failure
            # Temporal cuts a long failure, with all of its traces, and puts it into one of its own.
            if failure.HasField("server_failure_info") and failure.HasField("cause"):
                failure = failure.cause
            scheduled = pending.HasField("next_attempt_schedule_time") and not pending.paused
            return Retry(
                line=line_number(pending.activity_id),
                attempt=pending.attempt,
                next_attempt_at=(
                    pending.next_attempt_schedule_time.ToDatetime(UTC) if scheduled else None
                ),
                paused=pending.paused or None,
                last_error=failure.message,
            )
    return None


_PAID_EARLIER = ("paid_earlier_lines", "paid_earlier_amount", "paid_earlier_numbers")
_TASK_COMPLETED = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
_NO_ANSWER = (
    RPCStatusCode.NOT_FOUND,  # the call that describes the run reports this
    RPCStatusCode.CANCELLED,
    RPCStatusCode.FAILED_PRECONDITION,
)

_COMPLETED_STATES: set[State] = {"completed", "rejected", "timed_out"}
