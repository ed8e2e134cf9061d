"""Which disagreements the audit reports, with made-up runs and ledgers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.history.v1 import HistoryEvent

import audit
from invoice_runs import InvoiceRun
from invoices.answers import InvoiceStatus
from invoices.invoice import Invoice
from invoices.messages import PaymentRequest
from invoices.status import (
    NOT_KNOWN_TEXTS,
    Decision,
    RequiredApprovals,
    RunProgress,
    State,
)
from payments.gateway import LedgerEntry, Payment
from payments.ledger import SQLiteLedger
from startup import StartupError
from support import (
    an_invoice,
)


def a_marker(name: str, data: bytes) -> HistoryEvent:
    event = HistoryEvent()
    details = event.marker_recorded_event_attributes.details
    details[name].payloads.append(Payload(data=data))
    return event


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_text_that_starts_like_a_formula_is_quoted(start: str) -> None:
    assert audit.spreadsheet_safe(f"{start}1") == f"'{start}1"
    assert audit.spreadsheet_safe(f"1{start}") == f"1{start}"


NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


APPROVAL = Decision(approved=True, at=NOON)
PAYMENT = Payment("invoice-MADE-UP/line-1", "MADE-UP", "Domain", Decimal("9.90"), "USD")


def recorded(
    state: State, signal: Decision, payment: audit.PaymentActivity | None = None
) -> audit.Run:
    """A made-up run as read from Temporal, with the payment of its only line."""
    status = InvoiceStatus(
        invoice_id="MADE-UP", workflow_id="", state=state, status="", submitted_at=NOON
    )
    run_id = uuid4().hex
    description: Any = SimpleNamespace(run_id=run_id, close_time=None)
    payments = {"1": payment} if payment else {}
    found = InvoiceRun(description, status, progress=None)
    return audit.Run(
        found, run_id, signals=[(signal, "a client")], was_taken=True, payments=payments
    )


@pytest.mark.parametrize(
    "answer", ['{"gateway": "stripe live"}', APPROVAL.model_dump_json()], ids=["away", "decision"]
)
def test_an_answer_without_a_ledger_does_not_come_from_the_ledger(answer: str) -> None:
    run = recorded("waiting", APPROVAL)
    run._take_answer(Payloads(payloads=[Payload(data=answer.encode())]))
    assert (run.has_asked, run.ledgers) == (False, set())


def test_a_decision_that_came_too_late_does_not_count() -> None:
    assert recorded("completed", APPROVAL).decision == (APPROVAL, "a client")
    assert recorded("timed_out", APPROVAL).decision == (None, None)


def test_a_decision_is_dated_by_the_history() -> None:
    read_late = APPROVAL.model_copy(update={"at": NOON + timedelta(days=3)})

    def run_with(standing: Decision, signal: Decision) -> audit.Run:
        run = recorded("completed", signal)
        status = run.found.status.model_copy(update={"decision": standing})
        run.found = replace(run.found, status=status)
        run.original_id = run.found.id
        return run

    assert run_with(standing=read_late, signal=APPROVAL).decision == (APPROVAL, "a client")
    # A reset copies signals with its own time.
    reset = run_with(standing=APPROVAL, signal=read_late)
    reset.original_id = "another"
    assert reset.decision == (APPROVAL, "a client")


def sent(by: str | None, *, approved: bool = True, hours: int = 0) -> Decision:
    return Decision(approved=approved, by=by, at=NOON + timedelta(hours=hours))


ANN, BOB, SUE = sent("ann@desk1"), sent("bob@desk2", hours=1), sent("sue@desk3")
NO = sent("bob@desk2", approved=False, hours=1)


@pytest.mark.parametrize(
    ("required", "signals", "decision"),
    [
        (None, [ANN], ANN),
        (None, [ANN, NO], ANN),
        ("two_people", [ANN], None),
        ("two_people", [sent(None)], None),
        ("two_people", [ANN, sent("ANN@desk9", hours=1)], None),
        ("two_people", [ANN, BOB], BOB),
        ("two_people", [ANN, NO], NO),
        ("two_other_people", [SUE], None),
        ("two_other_people", [SUE, BOB], None),
    ],
)
@pytest.mark.parametrize("state", ["waiting", "cancelled", "terminated"])
def test_the_books_have_the_decision_that_stands_by_the_runs_rule(
    state: State,
    required: RequiredApprovals | None,
    signals: list[Decision],
    decision: Decision | None,
) -> None:
    run = recorded(state, signals[0])
    known = {"required_approvals": required, "submitted_by": SUE.by}
    run.found = replace(run.found, status=run.found.status.model_copy(update=known))
    run.signals = [(one, f"client of {one.by}") for one in signals]
    identity = decision and f"client of {decision.by}"
    assert run.decision == (decision, identity)
    found = audit._row("MADE-UP", run, "1", None)
    assert bool(found["decided_at"]) == bool(found["decision"]) == bool(decision)


@pytest.mark.parametrize(("signal", "decision"), [(ANN, None), (NO, NO)])
def test_an_approval_decides_nothing_before_a_worker_has_said_how_many_it_needs(
    signal: Decision, decision: Decision | None
) -> None:
    run = recorded("waiting", signal)
    run.was_taken = False
    assert run.decision[0] == decision
    event = HistoryEvent()
    event.workflow_task_completed_event_attributes.SetInParent()
    run.add(event)
    assert run.decision[0] == signal


def test_a_kept_decision_that_came_after_the_deadline_does_not_count() -> None:
    run = recorded("waiting", BOB)
    for minutes, decision in ((61, BOB), (60, None)):
        known = {"deadline": NOON + timedelta(minutes=minutes)}
        run.found = replace(run.found, status=run.found.status.model_copy(update=known))
        assert run.decision[0] == decision


@pytest.mark.parametrize(("state", "is_told"), [("cancelled", True), ("completed", False)])
def test_a_row_says_who_cancelled_an_invoice(state: State, is_told: bool) -> None:
    event = HistoryEvent()
    event.event_time.FromDatetime(NOON)
    event.workflow_execution_cancel_requested_event_attributes.identity = "temporal-cli:ana@desk"
    event.workflow_execution_cancel_requested_event_attributes.cause = "ordered twice"
    run = recorded(state, APPROVAL)
    run.add(event)
    row = audit._row("MADE-UP", run, "1", None)
    told = (row["cancelled_at"], row["cancelled_by"], row["cancellation_reason"])
    expected = ("2026-11-26T12:00:00Z", "temporal-cli:ana@desk", "ordered twice")
    assert told == (expected if is_told else (None, None, None))


def test_a_payment_without_an_approval_disagrees(ledger: SQLiteLedger) -> None:
    begun = audit.PaymentActivity(PaymentRequest(), NOON)
    approved = recorded("paying", APPROVAL, begun)
    rejected = recorded("rejected", Decision(approved=False, at=NOON), begun)
    assert not list(audit._disagreements({ledger.id}, [approved], [], []))
    [text] = audit._disagreements({ledger.id}, [rejected], [], [])
    assert text == f"payments without an approval in {rejected}"


def test_a_payment_without_the_second_approval_disagrees(ledger: SQLiteLedger) -> None:
    ann, bob = (APPROVAL.model_copy(update={"by": by}) for by in ("ann@desk1", "bob@desk1"))
    answer = b'{"gateway": "simulated", "required_approvals": "two_people"}'
    run = recorded("completed", ann, audit.PaymentActivity(PaymentRequest(), NOON))
    run.add(a_marker("patch-data", b'{"id": "paid-earlier", "deprecated": false}'))
    for data in (b'{"approved": true}', answer, b'{"gateway": "simulated"}'):
        run.add(a_marker("result", data))
    for again in (ann, APPROVAL, ann.model_copy(update={"by": "ANN@desk2"})):
        run.signals.append((again, "a client"))
        [text] = audit._disagreements({ledger.id}, [run], [], [])
        assert text == f"payments without the approval of two people, which {run} needs"
    run.signals.append((bob, "a client"))
    assert not list(audit._disagreements({ledger.id}, [run], [], []))


def test_a_run_that_began_under_1_0_needs_one_approval_whatever_its_worker_requires(
    ledger: SQLiteLedger,
) -> None:
    run = recorded("completed", APPROVAL, audit.PaymentActivity(PaymentRequest(), NOON))
    run.add(a_marker("patch-data", b'{"id": "ledger-before-paying", "deprecated": false}'))
    run.add(a_marker("result", b'{"gateway": "simulated", "required_approvals": "two_people"}'))
    assert not list(audit._disagreements({ledger.id}, [run], [], []))


async def test_an_invoice_that_takes_too_long_does_not_stop_the_others(
    ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, found, exists = SimpleNamespace(id="invoice-A", run_id="slow"), [], True

    async def executions(*_: object) -> AsyncIterator[list[Any]]:
        yield [
            SimpleNamespace(id=id, run_id="run", workflow_type="InvoiceWorkflow")
            for id in (slow.id, "invoice-B")
        ]

    async def read(_: object, invoice_id: str, *_run: str) -> None:
        if invoice_id == "A":
            await asyncio.Event().wait()
        found.append(invoice_id)

    async def answers_if_exists(_: str) -> bool:
        if not exists:
            await asyncio.Event().wait()
        return True

    monkeypatch.setattr(audit, "INVOICE_SECONDS", 0.05)
    monkeypatch.setattr(audit, "list_executions", executions)
    monkeypatch.setattr(audit, "read_run", read)
    temporal: Any = SimpleNamespace(temporal=None, exists=answers_if_exists)
    assert await audit.audit(temporal, ledger, lambda _: None) == 1
    assert set(found) == {"B"}
    first, *sums, summary = capsys.readouterr().err.splitlines()
    assert first == "A: its runs couldn't be read within 0.05 s"
    assert sums == ["Lines in the books:", "none"]
    assert summary == "2 invoices, 1 with disagreements"
    exists = False  # if Temporal doesn't answer, the audit can't continue
    with pytest.raises(TimeoutError):
        await audit.audit(temporal, ledger, lambda _: None)


@pytest.mark.parametrize("text", NOT_KNOWN_TEXTS)
def test_an_unknown_status_disagrees(text: str, ledger: SQLiteLedger) -> None:
    run = recorded("rejected", APPROVAL)
    status = run.found.status.model_copy(update={"status": text})
    run.found = replace(run.found, status=status)
    [told] = audit._disagreements({ledger.id}, [run], [], [])
    assert told == f"too many signals were sent to {run}: its status isn't known"


def test_a_payment_that_the_run_did_not_report_disagrees(ledger: SQLiteLedger) -> None:
    made = audit.PaymentActivity(PaymentRequest(amount=Decimal("9.90")), NOON, NOON)

    def told(state: State, lines: int, amount: str, *, closed: bool = True) -> list[str]:
        progress = RunProgress.of(Invoice.model_validate(an_invoice()))
        progress.state, progress.paid_lines, progress.paid_amount = state, lines, Decimal(amount)
        # Two lines were paid earlier.
        progress.paid_earlier_lines, progress.paid_earlier_amount = 2, Decimal("5.00")
        run = recorded(state, APPROVAL, made)
        close_time = NOON if closed else None
        description: Any = SimpleNamespace(run_id=run.found.id, close_time=close_time)
        run.found = replace(run.found, progress=progress, description=description)
        return list(audit._memo_disagreements(run))

    assert not told("cancelled", 3, "14.90")
    [text] = told("cancelled", 2, "5.00")
    assert text.startswith("1 line, $9.90 paid in the history of run ")
    assert text.endswith(" (cancelled), which tells 0 lines, $0.00")
    assert len(told("completed", 3, "15.90")) == 1
    assert not told("paying", 2, "5.00", closed=False)
    assert not told("paying", 2, "5.00")  # it was terminated


def test_an_invoice_paid_through_two_gateways_disagrees(ledger: SQLiteLedger) -> None:
    payment = Payment("invoice-MADE-UP/line-1", "MADE-UP", "Domain", Decimal("9.90"), "USD")
    declined = LedgerEntry(payment, 1, "simulated", "simulated-1", "declined", NOON)
    entries = [declined, LedgerEntry(payment, 2, "stripe live", "pi_1", "begun", NOON)]
    text = "paid through more than one gateway: simulated, stripe live"
    assert text not in audit._disagreements({ledger.id}, [], entries, entries)
    entries[0] = replace(declined, state="paid")
    assert text in audit._disagreements({ledger.id}, [], entries, entries)


def test_a_begun_payment_that_is_not_under_way_in_an_open_run_disagrees(
    ledger: SQLiteLedger,
) -> None:
    payment = Payment("invoice-MADE-UP/line-1", "MADE-UP", "Domain", Decimal("9.90"), "USD")
    entry = LedgerEntry(payment, 1, "simulated", "simulated-1", "begun", NOON)
    run = recorded("paying", APPROVAL, audit.PaymentActivity(PaymentRequest(), NOON))

    def disagreements(before: list[LedgerEntry]) -> list[str]:
        return list(audit._disagreements({ledger.id}, [run], before, [entry]))

    told = "line 1: begun as “Domain” for $9.90 (simulated-1, 2026-11-26T12:00:00Z) in the ledger"
    [text] = disagreements([entry])
    assert text == f"{told} since {run}: its outcome isn't known"
    assert not disagreements([])  # begun after the histories were read
    run.under_way[7] = run.payments["1"]
    assert not disagreements([entry])
    closed: Any = SimpleNamespace(run_id=run.found.id, close_time=NOON)
    run.found = replace(run.found, description=closed)
    assert len(disagreements([entry])) == 1


@pytest.mark.parametrize("answer", ["true", "false"])
def test_what_a_run_learned_about_a_payment_without_an_answer_counts(answer: str) -> None:
    run = recorded("cancelled", APPROVAL)
    for number, kind in enumerate(["process_payment", "payment_outcome"]):
        event = HistoryEvent(event_id=2 * number)
        event.event_time.FromDatetime(NOON)
        scheduled = event.activity_task_scheduled_event_attributes
        scheduled.activity_type.name, scheduled.activity_id = kind, "line-1"
        scheduled.input.payloads.add(data=b'{"item": "Domain", "amount": "9.90"}')
        run.add(event)
        ended = HistoryEvent(event_id=2 * number + 1)
        ended.event_time.FromDatetime(NOON)
        if kind == "process_payment":
            ended.activity_task_canceled_event_attributes.scheduled_event_id = event.event_id
        else:
            assert run.under_way
            completed = ended.activity_task_completed_event_attributes
            completed.scheduled_event_id = event.event_id
            completed.result.payloads.add(data=answer.encode())
        run.add(ended)
    assert run.payments["1"].paid_at == (NOON if answer == "true" else None)
    assert not run.under_way


def test_a_payment_that_a_reset_run_repeats_is_one_payment(ledger: SQLiteLedger) -> None:
    entry = LedgerEntry(PAYMENT, 1, "simulated", "simulated-1", "paid", NOON)

    def disagreements(*payments: tuple[str, str]) -> list[str]:
        runs = []
        for number, (original_id, ledger_id) in enumerate(payments):
            asked = PaymentRequest(item="Domain", amount=Decimal("9.90"), ledger=ledger_id)
            paid_at = NOON + timedelta(seconds=number)
            made = audit.PaymentActivity(asked, paid_at, paid_at)
            run = recorded("completed", APPROVAL, made)
            runs.append(replace(run, original_id=original_id))
        return list(audit._disagreements({ledger.id}, runs, [entry], [entry]))

    assert not disagreements(("first", "one"), ("first", "one"))
    for other in (("second", "one"), ("first", "other")):
        [text] = disagreements(("first", "one"), other)
        assert text.startswith("line 1: paid by run ")


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_rows_do_not_depend_on_the_workers_clock(hours: float) -> None:
    """The ledger's times are by the worker's clock, and Temporal's by its own."""
    declined = audit.PaymentActivity(PaymentRequest(), NOON, is_declined=True)
    cut_off = audit.PaymentActivity(PaymentRequest(), NOON + timedelta(minutes=1))
    made = audit.PaymentActivity(
        PaymentRequest(), NOON + timedelta(minutes=2), NOON + timedelta(minutes=3)
    )
    states: list[Any] = ["declined", "declined", "paid"]
    entries = [
        LedgerEntry(
            PAYMENT,
            attempt,
            "simulated",
            f"simulated-{attempt}",
            state,
            NOON + timedelta(hours=hours, minutes=attempt - 1),
        )
        for attempt, state in enumerate(states, start=1)
    ]

    def rows(runs: list[audit.Run], entries: list[LedgerEntry]) -> list[tuple[object, ...]]:
        found = audit._rows("MADE-UP", runs, entries, set())
        return [(row["state"], row["payment"], row["attempt"]) for row in found]

    runs = [
        recorded("failed", APPROVAL, declined),
        recorded("terminated", APPROVAL, cut_off),
        recorded("completed", APPROVAL, made),
        recorded("cancelled", APPROVAL, made),  # a run that found the line paid
    ]
    assert rows(runs, entries) == [
        ("failed", "declined", 1),
        ("terminated", None, None),
        ("completed", "declined", 2),  # which the run before didn't report
        ("completed", "paid", 3),
        ("cancelled", "paid_earlier", None),
    ]
    assert rows(runs[:2], entries[:2]) == [
        ("failed", "declined", 1),
        ("terminated", "declined", 2),
    ]
    # With a ledger that doesn't have the first attempts.
    assert rows([runs[0], runs[2]], entries[2:]) == [
        ("failed", None, None),
        ("completed", "paid", 3),
    ]
    assert rows(runs[2:3], []) == [("completed", "not_in_ledger", None)]
    assert rows([], entries[:1]) == [("not_in_temporal", "declined", 1)]


def row(**fields: Any) -> audit.Row:
    return dict.fromkeys(audit.COLUMNS) | {"invoice_id": "A", "run_id": "1", "line": "1"} | fields


@pytest.mark.parametrize(
    ("times", "day"),
    [
        ({"submitted_at": 1}, 1),
        ({"submitted_at": 1, "ended_at": 2}, 2),
        ({"submitted_at": 1, "decided_at": 2, "ended_at": 3}, 2),
        ({"submitted_at": 1, "decided_at": 2, "ended_at": 4, "payment_at": 3}, 3),
        ({"payment_at": 5}, 5),
    ],
)
def test_a_row_belongs_to_the_day_of_its_payment_or_else_its_decision(
    times: dict[str, int], day: int
) -> None:
    found = row(**{name: f"2026-11-0{day}T23:59:59Z" for name, day in times.items()})
    days = [f"2026-11-0{day}" for day in range(1, 7)]
    assert [one for one in days if found in audit.Period.of(one, one)] == [f"2026-11-0{day}"]
    assert found in audit.Period.of(None, None)
    assert found in audit.Period.of(days[0], None)
    assert found not in audit.Period.of(days[5], None)


@pytest.mark.parametrize(
    ("since", "until", "text"),
    [
        ("2026-11-31", None, "--since must be a date such as 2026-11-30, not “2026-11-31”."),
        (None, "30.11.2026", "--until must be a date such as 2026-11-30, not “30.11.2026”."),
        (None, "", "--until must be a date"),
        ("2026-12-01", "2026-11-30", "--since 2026-12-01 is after --until 2026-11-30."),
    ],
)
def test_a_period_that_is_not_one_is_refused(
    since: str | None, until: str | None, text: str
) -> None:
    with pytest.raises(StartupError) as refusal:
        audit.Period.of(since, until)
    assert str(refusal.value).startswith(text)


def test_sums_count_a_line_once_and_each_payment() -> None:
    sums = audit.Sums()
    assert str(sums) == "none"
    amount = {"amount": Decimal("9.90"), "currency": "USD"}
    paid = {"payment_amount": Decimal("9.90"), "payment_currency": "USD", "payment": "paid"}
    for found in (
        row(state="completed", **amount, **{**paid, "payment": "declined"}),
        row(state="completed", **amount, **paid),
        row(state="completed", **amount, payment="paid_earlier", line="2"),
        row(state="completed", **{**amount, "currency": "EUR"}, run_id="2"),
        row(state="not_in_temporal", **paid, run_id=None),
        row(state="failed", line=""),
    ):
        sums.add(found)
    assert str(sums).splitlines() == [
        "completed: 1 line, EUR 9.90; EUR 0.00 paid",
        "completed: 2 lines, $19.80; $9.90 paid",
        "failed: 1 line",
        "not_in_temporal: 1 line, $9.90; $9.90 paid",
    ]


PAID = LedgerEntry(PAYMENT, 1, "simulated", "simulated-1", "paid", NOON)


@pytest.fixture
def other_ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path / "other.db")) as other:
        yield other


def test_a_ledger_and_its_copy_count_once(ledger: SQLiteLedger, other_ledger: SQLiteLedger) -> None:
    other_ledger.id = ledger.id
    other_ledger._execute("UPDATE payment_ledger SET id = ?", ledger.id)
    begun = replace(PAID, state="begun")
    ledger.add(begun)
    ledger.settle(PAID)
    other_ledger.add(begun)
    for both in ([ledger, other_ledger], [other_ledger, ledger], [ledger, ledger]):
        assert audit.Ledgers(*both).entries("MADE-UP") == [PAID]
    # What only the copy has was paid by a worker that used the copy.
    again = replace(PAID, attempt=2, reference="simulated-2")
    other_ledger.add(again)
    assert audit.Ledgers(ledger, other_ledger).entries("MADE-UP") == [PAID, again]


def test_a_payment_in_two_ledgers_disagrees(
    ledger: SQLiteLedger, other_ledger: SQLiteLedger
) -> None:
    for one in (ledger, other_ledger):
        one.add(PAID)
    both = audit.Ledgers(ledger, other_ledger)
    entries = both.entries("MADE-UP")
    assert len(entries) == 2
    run = paid_run(ledger.id)
    [text] = audit._disagreements(both.ids, [run], entries, entries)
    assert text.startswith("line 1: paid in more than one ledger: “Domain” for $9.90 (simulated-1")
    rows = audit._rows("MADE-UP", [run], entries, both.ids)
    assert [found["state"] for found in rows] == ["completed", "not_in_temporal"]


def paid_run(ledger_id: str) -> audit.Run:
    asked = PaymentRequest(item="Domain", amount=Decimal("9.90"), ledger=ledger_id)
    return recorded("completed", APPROVAL, audit.PaymentActivity(asked, NOON, NOON))


def test_a_payment_must_be_in_the_ledger_of_its_run(ledger: SQLiteLedger) -> None:
    ledger.add(PAID)
    entries = ledger.entries("MADE-UP")
    ids = {ledger.id, "earlier"}
    run = paid_run("earlier")
    run.ledgers = {"earlier"}
    assert not list(audit._disagreements(ids, [paid_run(ledger.id)], entries, entries))
    [text] = audit._disagreements(ids, [run], entries, entries)
    assert text == (
        f"line 1: paid as “Domain” for $9.90 in the history of {run}, not in its ledger earlier but"
        f" in {ledger.id[:8]}"
    )
    [missing] = [found for found in audit._rows("MADE-UP", [run], entries, ids) if found["run_id"]]
    assert missing["payment"] == "not_in_ledger"
    [text, *_] = audit._disagreements({ledger.id}, [run], entries, entries)
    assert text.startswith("more than one ledger: earlier in the history, this one is ")


def test_each_run_has_the_attempts_in_its_own_ledger() -> None:
    states: list[tuple[str, Any]] = [("earlier", "declined"), ("now", "declined"), ("now", "paid")]
    entries = [
        replace(PAID, attempt=number, reference=f"simulated-{number}", state=state, ledger=id)
        for number, (id, state) in enumerate(states)
    ]
    first, second = paid_run("earlier"), paid_run("now")
    first.payments["1"].paid_at = None  # it ended without a known result
    rows = audit._rows("MADE-UP", [first, second], entries, {"earlier", "now"})
    assert [(found["run_id"], found["attempt"]) for found in rows] == [
        (first.found.id, 0),
        (second.found.id, 1),
        (second.found.id, 2),
    ]
