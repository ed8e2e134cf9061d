"""An invoice's status, from its run's memo, from Temporal and from a worker's answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from inspect import getcoroutinestate
from threading import current_thread, main_thread
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import PendingActivityInfo, WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionResponse
from temporalio.client import WorkflowExecutionStatus
from temporalio.converter import DefaultPayloadConverter

from invoice_client import InvoiceClient
from invoice_runs import (
    MAX_CONTENT_BYTES,
    SMALL_CONTENT_BYTES,
    InvoiceRun,
    InvoiceRuns,
    gather_bounded,
    read_invoice,
    read_retry,
    unread_decisions,
)
from invoices.invoice import Invoice
from invoices.refusals import InvoiceError
from invoices.status import STATUS_TEXTS, Cancellation, Decision, RunProgress, State
from support import an_invoice
from temporal_service.executions import Execution, Memo

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def an_execution(
    status: WorkflowExecutionStatus = WorkflowExecutionStatus.RUNNING, **raw: Any
) -> Execution:
    close_time = None if status == WorkflowExecutionStatus.RUNNING else NOON + timedelta(hours=1)
    raw_description = DescribeWorkflowExecutionResponse(**raw)
    return Execution(
        "invoice-INV-1", "run", "InvoiceWorkflow", status, NOON, close_time, Memo(), raw_description
    )


def progress_in(state: State) -> RunProgress:
    progress = RunProgress.of(Invoice.model_validate(an_invoice()))
    return progress.model_copy(update={"state": state, "status": STATUS_TEXTS[state]})


@pytest.fixture
def runs() -> InvoiceRuns:
    without_a_service: Any = None
    return InvoiceRuns(without_a_service)


async def found(runs: InvoiceRuns, execution: Execution, progress: RunProgress) -> InvoiceRun:
    return InvoiceRun(execution, await runs._status_from_memo(execution, progress), progress)


@pytest.mark.parametrize(
    ("by_memo", "by_temporal", "state"),
    [
        ("waiting", WorkflowExecutionStatus.RUNNING, "waiting"),
        ("paying", WorkflowExecutionStatus.RUNNING, "paying"),
        ("completed", WorkflowExecutionStatus.COMPLETED, "completed"),
        ("timed_out", WorkflowExecutionStatus.COMPLETED, "timed_out"),
        ("failed", WorkflowExecutionStatus.FAILED, "failed"),
        ("paying", WorkflowExecutionStatus.FAILED, "failed"),
        ("waiting", WorkflowExecutionStatus.CANCELED, "cancelled"),
        ("paying", WorkflowExecutionStatus.TERMINATED, "terminated"),
        ("completed", WorkflowExecutionStatus.TERMINATED, "terminated"),
        ("waiting", WorkflowExecutionStatus.TIMED_OUT, "terminated"),
        ("waiting", WorkflowExecutionStatus.CONTINUED_AS_NEW, "failed"),
    ],
)
async def test_how_a_run_closed_is_temporals_word(
    by_memo: State, by_temporal: WorkflowExecutionStatus, state: State, runs: InvoiceRuns
) -> None:
    progress = progress_in(by_memo)
    run = await found(runs, an_execution(by_temporal), progress)
    assert run.status.state == state
    assert (run.status.deadline is None) == (state != "waiting")
    assert run.status.closed_at == run.description.close_time
    assert progress.state == by_memo


async def test_a_run_timeout_is_not_reported_as_an_operators_action(runs: InvoiceRuns) -> None:
    for by_temporal, text in (
        (WorkflowExecutionStatus.TIMED_OUT, "Timed out in Temporal"),
        (WorkflowExecutionStatus.TERMINATED, "Terminated by an operator in Temporal"),
    ):
        run = await found(runs, an_execution(by_temporal), progress_in("paying"))
        assert (run.status.state, run.status.status) == ("terminated", text)


async def test_what_the_tutorials_worker_says_counts_before_the_memo(runs: InvoiceRuns) -> None:
    run = await found(runs, an_execution(), progress_in("waiting"))
    assert run.status.deadline == NOON + timedelta(days=5)
    status = await runs.status_with_answer(run, "Processing payments")
    assert (status.state, status.status) == ("paying", "Processing payments")
    assert status.deadline is None
    assert status.worker_answers


async def test_a_run_in_a_status_that_is_not_known_is_not_called_up_to_date(
    runs: InvoiceRuns,
) -> None:
    progress = progress_in("waiting").model_copy(update={"submitted_at": NOON})
    running, paused = an_execution(), replace(an_execution(), status=None)
    assert (await found(runs, running, progress)).is_up_to_date
    run = await found(runs, paused, progress)
    assert not run.is_up_to_date
    assert "paused in Temporal, or in a status that isn't known" in run.status.to_line()


async def test_a_retry_is_reported_without_a_worker(runs: InvoiceRuns) -> None:
    pending = PendingActivityInfo(activity_id="line-2", attempt=3)
    execution = an_execution(pending_activities=[pending])
    run = await found(runs, execution, progress_in("paying"))
    assert run.status.retry
    assert (run.status.retry.line, run.status.retry.attempt) == (2, 3)


def test_of_a_failure_that_temporal_has_cut_the_payments_own_words_are_told() -> None:
    pending = PendingActivityInfo(activity_id="line-1", attempt=2)
    pending.last_failure.message = "Failure exceeds size limit."
    pending.last_failure.server_failure_info.SetInParent()
    pending.last_failure.cause.message = "the payment ledger can't be reached"
    retry = read_retry(an_execution(pending_activities=[pending]))
    assert retry
    assert retry.last_error == "the payment ledger can't be reached"


async def test_a_paused_payment_is_not_called_retried(runs: InvoiceRuns) -> None:
    for attempt in (1, 3):
        pending = PendingActivityInfo(activity_id="line-2", attempt=attempt, paused=True)
        execution = an_execution(pending_activities=[pending])
        status = (await found(runs, execution, progress_in("paying"))).status
        told = f"ine 2 is paused in Temporal, attempt {attempt}"
        assert f"L{told}. It continues once that is unpaused." in status.to_text()
        assert f"l{told}" in status.to_line()
        assert "retried" not in status.to_text() + status.to_line()


@pytest.mark.parametrize(("was_reset", "is_known"), [(False, True), (True, False)])
async def test_what_a_run_paid_before_it_was_reset_is_not_known(
    was_reset: bool, is_known: bool, runs: InvoiceRuns
) -> None:
    progress = progress_in("waiting").model_copy(
        update={"paid_earlier_lines": 0, "paid_earlier_amount": Decimal("0.00")}
    )
    progress.submitted_at = NOON - timedelta(hours=was_reset)
    listed = replace(an_execution(), raw_description=None)
    described = an_execution()
    assert described.raw_description
    extended = described.raw_description.workflow_extended_info
    extended.original_start_time.FromDatetime(progress.submitted_at)
    for execution in (listed, described):
        text = (await found(runs, execution, progress)).status.to_text()
        assert ("; nothing has been paid." in text) == is_known
        assert ("; it isn't known whether any of it was paid." in text) == (not is_known)


@pytest.mark.parametrize(
    ("state", "earlier", "told", "listed"),
    [
        (
            "paying",
            0,
            "Paid: at least 1 of 2 lines, at least $5,000.00 of $7,000.00.",
            "at least $5,000.00 paid, at most $2,000.00 to pay",
        ),
        (
            "waiting",
            1,
            "at least 1 of 2 lines paid earlier, $5,000.00; at most $2,000.00 to pay.",
            "at least $5,000.00 paid, at most $2,000.00 to pay",
        ),
        (
            "cancelled",
            0,
            "Paid: at least 1 of 2 lines, at least $5,000.00 of $7,000.00.",
            "at least $5,000.00 paid;",
        ),
    ],
)
async def test_more_may_be_paid_of_a_run_that_was_reset_while_it_paid(
    state: State, earlier: int, told: str, listed: str, runs: InvoiceRuns
) -> None:
    paid = {"paid_lines": 1, "paid_amount": Decimal("5000.00")}
    known = {"paid_earlier_lines": earlier, "paid_earlier_amount": Decimal(5000 * earlier)}
    progress = progress_in(state).model_copy(update={**paid, **known})
    progress.submitted_at = NOON - timedelta(hours=1)
    by_temporal = WorkflowExecutionStatus
    is_cancelled = state == "cancelled"
    execution = an_execution(by_temporal.CANCELED if is_cancelled else by_temporal.RUNNING)
    status = (await found(runs, replace(execution, raw_description=None), progress)).status
    assert told in status.to_text()
    assert listed in f"{status.to_line()};"
    assert status.line_states(2) == ["paid_earlier" if earlier else "paid", "not_known"]


async def test_nothing_more_is_paid_of_a_run_that_was_reset_and_has_paid_all(
    runs: InvoiceRuns,
) -> None:
    paid = {"paid_lines": 2, "paid_amount": Decimal("7000.00"), "paid_earlier_lines": 0}
    progress = progress_in("completed").model_copy(update=paid)
    progress.submitted_at = NOON - timedelta(hours=1)
    execution = replace(an_execution(WorkflowExecutionStatus.COMPLETED), raw_description=None)
    status = (await found(runs, execution, progress)).status
    assert "Paid: 2 of 2 lines, $7,000.00 of $7,000.00." in status.to_text()


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents that were validated, in order."""
    seen: list[bytes] = []
    validate = Invoice.model_validate_json

    def record_and_validate(data: bytes, **options: Any) -> Invoice:
        seen.append(data)
        return validate(data, **options)

    monkeypatch.setattr(Invoice, "model_validate_json", record_and_validate)
    return seen


@pytest.mark.parametrize(
    ("fields", "times"),
    [
        ({}, 1),
        ({"approval_timeout_days": -1}, 1),
        ({"approval_timeout_days": -1, "customer": 5}, 1),
        ({"lines": 5}, 1),
        # Fields that had no rules before 1.1.
        ({"customer": 5}, 2),
        ({"customer": 5, "payment_method": 5}, 2),
        # Longer than Temporal accepts.
        ({"note": "x" * MAX_CONTENT_BYTES}, 0),
    ],
)
def test_only_what_could_be_from_before_1_1_is_validated_twice(
    fields: dict[str, Any], times: int, validations: list[bytes]
) -> None:
    content = json.dumps({**an_invoice(), **fields}).encode()
    is_readable = times == 2 or not fields
    assert (read_invoice(content) is not None) == is_readable
    assert len(validations) == times


class _OneRun:
    """A fake Temporal client with one run, whose history has only the start."""

    def __init__(self, content: bytes) -> None:
        event = HistoryEvent()
        started = event.workflow_execution_started_event_attributes
        started.original_execution_run_id = "run"
        started.input.payloads.append(Payload(data=content))
        self.events = [event]

    def write_memo(self, memo: dict[str, Payload]) -> None:
        event = HistoryEvent()
        fields = event.workflow_properties_modified_event_attributes.upserted_memo.fields
        for key, payload in memo.items():
            fields[key].CopyFrom(payload)
        self.events.append(event)

    def get_workflow_handle(self, id: str, run_id: str | None) -> "_OneRun":
        return self

    async def fetch_history_events(self, page_size: int) -> AsyncIterator[HistoryEvent]:
        for event in self.events:
            yield event


def a_memo(progress: RunProgress) -> dict[str, Payload]:
    to_payload = DefaultPayloadConverter().to_payload
    return {name: to_payload(value) for name, value in progress.to_memo().items()}


@pytest.mark.parametrize("days", [5, -1], ids=["invoice", "nonsense"])
async def test_what_a_run_was_started_with_is_validated_once(
    days: int, validations: list[bytes]
) -> None:
    content = json.dumps(an_invoice(id="INV-1", approval_timeout_days=days)).encode()
    one_run: Any = _OneRun(content)
    runs = InvoiceRuns(one_run)
    found = [(await runs._read_progress(an_execution()))[0] for _ in range(3)]
    digests = await runs.digests([an_execution()])
    assert validations == [content]
    assert found[0] == found[1] == found[2]
    assert digests == [found[0].digest if found[0] else None]
    assert (found[0] is None) == (days < 0)
    # A person who decides on it is shown the content itself.
    status = await runs.read_status(an_execution())
    assert status
    run = InvoiceRun(an_execution(), status, None)
    assert (await runs.content(run) is None) == (days < 0)


def test_only_the_fields_of_a_memo_that_are_asked_for_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[Payload] = []

    def decode(payload: Payload) -> Any:
        decoded.append(payload)
        return json.loads(payload.data)

    monkeypatch.setattr("temporal_service.executions._plain", decode)
    info = WorkflowExecutionInfo()
    for name, data in {"state": b'"waiting"', "other": b"[]", "status": b"[]" * 40_000}.items():
        info.memo.fields[name].data = data
    memo = Execution.of(info, None).memo
    assert decoded == []
    assert (memo.get("state"), memo.get("status"), memo.get("total")) == ("waiting", None, None)
    assert memo.read(["state", "total"]) == {"state": "waiting"}
    # What has such a field isn't ours.
    assert memo.read(["state", "status"]) == {}
    assert len(decoded) == 2


async def test_the_largest_memo_of_ours_is_read() -> None:
    widest = "\U00020000"
    decision = Decision(approved=True, by=widest * 200, reason=widest * 1000, at=NOON)
    cancellation = Cancellation(by=widest * 200, reason=widest * 1000, at=NOON)
    texts = dict.fromkeys(["supplier", "supplier_reference"], widest * 255)
    texts |= dict.fromkeys(["status", "current_line"], widest * 800)
    texts |= {"ledger": widest * 100, "gateway": widest * 100, "paid_earlier_numbers": "9" * 2000}
    fields: dict[str, Any] = {"decision": decision, "cancellation": cancellation, **texts}
    memo = a_memo(progress_in("paying").model_copy(update=fields))
    assert Memo(memo).read(RunProgress.model_fields).keys() == memo.keys()


LARGE = {"note": "x" * SMALL_CONTENT_BYTES}


async def test_large_content_is_validated_in_a_thread_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = []

    def in_thread(content: bytes) -> Invoice | None:
        threads.append(current_thread())
        return read_invoice(content)

    monkeypatch.setattr("invoice_runs.read_invoice", in_thread)
    one_run: Any = _OneRun(json.dumps(an_invoice(id="INV-1", **LARGE)).encode())
    runs = InvoiceRuns(one_run)
    status = await runs.read_status(an_execution())
    assert status
    assert status.total == 7000
    assert await runs.read_status(an_execution()) == status
    assert len(threads) == 1
    assert threads[0] is not main_thread()
    assert await runs.content(InvoiceRun(an_execution(), status, None))
    assert threads[1] is not main_thread()


async def test_large_content_is_not_validated_where_the_memo_tells_the_status(
    validations: list[bytes],
) -> None:
    one_run: Any = _OneRun(json.dumps(an_invoice(id="INV-1", **LARGE)).encode())
    memo = a_memo(progress_in("paying"))
    one_run.write_memo(memo)
    status = await InvoiceRuns(one_run).read_status(replace(an_execution(), memo=Memo(memo)))
    assert status
    assert status.state == "paying"
    assert validations == []


@pytest.mark.parametrize(
    "note", [[[]] * 10_000, {str(n): 0 for n in range(20_001)}], ids=["lists", "fields"]
)
async def test_complex_content_is_not_validated_for_a_list(
    note: Any, validations: list[bytes]
) -> None:
    one_run: Any = _OneRun(json.dumps(an_invoice(id="INV-1", note=note)).encode())
    runs = InvoiceRuns(one_run)
    status = await runs.read_status(an_execution())
    assert status
    assert (status.state, status.total) == ("waiting", None)
    assert status.to_line().startswith(
        "INV-1: Status not known, because its content is too complex for a list; content unreadable"
    )
    assert validations == []
    closed = await runs.read_status(an_execution(WorkflowExecutionStatus.TERMINATED))
    assert closed
    assert closed.state == "terminated"
    # A call for this invoice alone reads it, and then the list knows it.
    assert await runs.content(InvoiceRun(an_execution(), status, None))
    assert (await runs._read_progress(an_execution()))[0]
    status = await runs.read_status(an_execution())
    assert status
    assert status.total == 7000


async def test_calls_that_are_cut_off_all_end() -> None:
    ended = []

    async def call(number: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number)

    calls = [call(number) for number in range(30)]
    gathering = asyncio.create_task(gather_bounded(calls))
    for _ in range(3):
        await asyncio.sleep(0)
    gathering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathering
    assert ended == list(range(10))
    assert {getcoroutinestate(call) for call in calls} == {"CORO_CLOSED"}


async def test_calls_end_if_one_of_them_fails() -> None:
    async def fail() -> None:
        raise RuntimeError

    calls = [fail(), *(asyncio.sleep(60) for _ in range(30))]
    with pytest.raises(RuntimeError):
        await gather_bounded(calls)
    await asyncio.sleep(0.01)
    assert {getcoroutinestate(call) for call in calls} == {"CORO_CLOSED"}


APPROVE, REJECT = "approve_invoice", "reject_invoice"
COMPLETED_TASK = HistoryEvent(event_type=EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)
FAILED_TASK = HistoryEvent(event_type=EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED)


def a_signal(name: str, minutes: int, details: bytes = b"") -> HistoryEvent:
    event = HistoryEvent(event_type=EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED)
    event.event_time.FromDatetime(NOON + timedelta(minutes=minutes))
    event.workflow_execution_signaled_event_attributes.signal_name = name
    event.workflow_execution_signaled_event_attributes.input.payloads.add(data=details)
    return event


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], None),
        ([a_signal(APPROVE, 1)], (True, 1)),
        ([a_signal(REJECT, 1), a_signal(APPROVE, 2)], (False, 1)),
        ([a_signal("another", 1), a_signal(APPROVE, 2)], (True, 2)),
        ([a_signal(REJECT, 1, b"\xff{"), a_signal(APPROVE, 2)], (False, 1)),
        # What a worker has read is in its answers; a task that failed has read nothing.
        ([a_signal(REJECT, 1), COMPLETED_TASK, a_signal(APPROVE, 2)], (True, 2)),
        ([a_signal(REJECT, 1), COMPLETED_TASK], None),
        ([a_signal(REJECT, 1), FAILED_TASK, a_signal(APPROVE, 2)], (False, 1)),
        # The deadline is at 12:10.
        ([a_signal(APPROVE, 9), a_signal(REJECT, 11)], (True, 9)),
        ([a_signal(APPROVE, 10)], None),
    ],
)
def test_the_first_decision_that_no_worker_has_read_is_kept(
    events: list[HistoryEvent], expected: tuple[bool, int] | None
) -> None:
    latest = [*reversed(events), HistoryEvent(event_id=1)]
    decisions = unread_decisions(latest, NOON + timedelta(minutes=10))
    found = [(one.approved, (one.at - NOON) // timedelta(minutes=1)) for one in decisions]
    assert found[:1] == ([expected] if expected else [])


def test_nothing_is_said_where_an_earlier_decision_may_be_kept() -> None:
    assert unread_decisions([a_signal(APPROVE, 1)], None) == []


def test_all_unread_decisions_that_can_matter_are_kept_in_their_order() -> None:
    signals = [
        a_signal(APPROVE, 1, b'{"by": "ann@x"}'),
        a_signal(APPROVE, 2, b'{"by": "ann@y"}'),
        a_signal(APPROVE, 3, b'{"by": "bob@x"}'),
        a_signal(REJECT, 4),
        a_signal(APPROVE, 5, b'{"by": "eve@x"}'),
    ]
    decisions = unread_decisions([*reversed(signals), COMPLETED_TASK], None)
    assert [(one.approved, one.by) for one in decisions] == [
        (True, "ann@x"),
        (True, "bob@x"),
        (False, None),
    ]


@pytest.mark.parametrize("run_id", ["a3d1ff0c-2f7b-4b53-9b62-3f3e1d0c5a11", "run-1", ""])
def test_a_start_whose_id_has_no_time_is_told_at_most_a_second_too_early(
    run_id: str, runs: InvoiceRuns
) -> None:
    sent = NOON + timedelta(seconds=0.9)
    run = runs.new_run("invoice-INV-1", run_id, progress_in("waiting"), sent)
    assert (run.status.submitted_at, run.status.deadline) == (NOON, NOON + timedelta(days=5))


@pytest.mark.parametrize("state", ["cancelled", "completed", "rejected", "timed_out", "failed"])
async def test_an_invoice_that_has_ended_and_is_still_open_is_not_called_in_process(
    state: State, runs: InvoiceRuns
) -> None:
    closing = await found(runs, an_execution(), progress_in(state))
    same = Invoice.model_validate(an_invoice(id="INV-1"))
    other = Invoice.model_validate(an_invoice(id="INV-1", currency="EUR"))
    for invoice in (same, other):
        with pytest.raises(InvoiceError, match=r"just being closed.*Make the same call again"):
            await InvoiceClient(runs.temporal)._already_in_process(invoice, closing)
