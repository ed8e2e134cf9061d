"""Above `INVOICE_TWO_PEOPLE_OVER`, two different people must approve an invoice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import temporalio.api.sdk.v1
from temporalio.client import Client
from temporalio.service import RPCError

import activities
import audit
from hooks import Hook, a_hook, accept
from invoice_runs import InvoiceRuns
from invoices.approvals import TwoPeopleRule
from invoices.invoice import Invoice
from invoices.refusals import InvoiceError
from payments.gateway import GatewayUnavailable
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from support import (
    ANN,
    BOB,
    SUE,
    Desk,
    Namespace,
    Tools,
    Worker,
    acting,
    an_invoice,
    eventually,
    paid,
    payments,
    tools_in_memory,
    workflows_only,
)
from worker_here import worker_here

SMALL = [{"item": "Domain", "amount": "9.90"}, {"item": "Server", "amount": "990.10"}]


@pytest.fixture(scope="module")
async def hook() -> AsyncIterator[Hook]:
    async with a_hook(accept) as hook:
        yield hook


@pytest.fixture(scope="module")
async def careful(
    new_namespace: Callable[[], str], tmp_path_factory: pytest.TempPathFactory, hook: Hook
) -> AsyncIterator[Worker]:
    """A worker with the limit."""
    async with Worker(
        new_namespace(),
        tmp_path_factory.mktemp("data"),
        INVOICE_TWO_PEOPLE_OVER="1000.00",
        INVOICE_NOTIFY_URL=hook.url,
    ) as worker:
        yield worker


@pytest.fixture
async def desk(careful: Worker) -> Desk:
    return Desk(await Namespace(careful.address).connect())


@pytest.fixture
async def tools(careful: Worker) -> AsyncIterator[Tools]:
    async with tools_in_memory(careful.address) as tools:
        yield tools


async def test_two_people_approve_one_after_the_other(
    desk: Desk, tools: Tools, careful: Worker, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    with acting(SUE):
        invoice = await desk.submit()
    waiting = await desk.once(invoice, lambda status: status.required_approvals)
    assert "Submitted by sue@desk3." in waiting.details
    assert "Two different people must approve it." in waiting.details
    with acting(ANN):
        text = await tools("approve_invoice", invoice_id=invoice.id, reason="as agreed")
    assert text.startswith(
        f"Sent approval signal for invoice {invoice.id}. Approved by you; needs a second person."
        f" Nothing is paid yet. Invoice {invoice.id} status: Awaiting approval - approved by"
        " ann@desk1, needs a second person. "
    )
    status = await desk.status(invoice)
    assert (status.state, status.decision) == ("waiting", None)
    assert status.first_approval
    assert (status.first_approval.by, status.first_approval.reason) == (ANN, "as agreed")
    assert "reason: “as agreed”. A second person must approve it too." in status.details
    assert status.deadline

    picture = await desk.handle(invoice).query(
        "__temporal_workflow_metadata", result_type=temporalio.api.sdk.v1.WorkflowMetadata
    )
    title = "### Awaiting approval - approved by ann@desk1, needs a second person, until 20"
    assert title in picture.current_details
    assert "reason: “as agreed”." in picture.current_details

    for same in (ANN, "ANN@another", "ann"):
        with acting(same):
            text = await tools("approve_invoice", invoice_id=invoice.id)
        told = "Already approved by you, and it needs a second person; nothing was changed. "
        assert text.startswith(told)
    assert not paid(careful.data, invoice)

    async def listed() -> bool:
        return "approved by ann@desk1, needs a second" in await tools("list_invoices")

    assert await eventually(listed)
    with acting(BOB):
        status = await desk.approve(invoice, reason="checked")
    assert status.outcome == "approved"
    status = await desk.until(invoice, "completed")
    assert "First approved by ann@desk1 on " in status.details
    assert "reason: “as agreed”. Approved by bob@desk2 on " in status.details
    assert len(paid(careful.data, invoice)) == 2
    await eventually(
        lambda: set(hook.events(invoice)) == {"waiting", "second_approval", "completed"}
    )
    [notice] = [one for one in hook.of(invoice) if one["event"] == "second_approval"]
    assert "First approved by ann@desk1 on " in notice["text"]
    assert "A second person must approve it too." in notice["text"]
    assert notice["deadline"]

    rows, disagreements = await books(desk, careful, capsys)
    [first, _] = [row for row in rows if row["invoice_id"] == invoice.id]
    assert (first["submitted_by"], first["decided_by"], first["reason"]) == (SUE, BOB, "checked")
    assert (first["first_approved_by"], first["first_reason"]) == (ANN, "as agreed")
    assert first["first_approved_at"] <= first["decided_at"]
    assert first["first_approved_through"]
    assert invoice.id not in disagreements


async def test_the_books_have_no_decision_while_a_second_approval_is_missing(
    desk: Desk, careful: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    invoices = waiting, cancelled, terminated, rejected = await asyncio.gather(
        *(desk.submit() for _ in range(4))
    )
    with acting(ANN):
        await asyncio.gather(*(desk.approve(invoice) for invoice in invoices))
    await desk.handle(cancelled).cancel()
    await desk.until(cancelled, "cancelled")
    await desk.handle(terminated).terminate()
    with acting(BOB):
        await desk.reject(rejected)
    rows, disagreements = await books(desk, careful, capsys)
    for invoice, state in ((waiting, "waiting"), (cancelled, "cancelled"), (terminated, None)):
        [first, _] = [row for row in rows if row["invoice_id"] == invoice.id]
        assert (first["state"], first["first_approved_by"]) == (state or "terminated", ANN)
        decided = [first[name] for name in ("decision", "decided_at", "decided_by", "reason")]
        assert decided == [None] * 4
        assert first["decided_through"] is None
        assert invoice.id not in disagreements
    [first, _] = [row for row in rows if row["invoice_id"] == rejected.id]
    assert (first["decision"], first["decided_by"]) == ("rejected", BOB)
    assert first["first_approved_by"] == ANN


async def books(
    desk: Desk, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> tuple[list[dict[str, str]], str]:
    ledger = SQLiteLedger(worker.data / "payments.db", read_only=True)
    rows: list[Any] = []
    await audit.audit(InvoiceRuns(desk.temporal), ledger, rows.append)
    ledger.close()
    return rows, capsys.readouterr().err


async def test_one_person_is_enough_up_to_the_limit(desk: Desk) -> None:
    invoice = await desk.submit(lines=SMALL)
    await desk.pay(invoice)
    history = (await desk.handle(invoice).fetch_history()).to_json()
    assert "required_approvals" not in history
    status = await desk.status(invoice)
    assert (status.required_approvals, status.first_approval) == (None, None)


async def test_what_was_paid_earlier_counts_for_the_limit(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with worker_here(namespace.address, tmp_path, INVOICE_DECLINE_OVER="950"):
        invoice = await desk.submit(lines=SMALL)
        await desk.approve(invoice)
        await desk.until(invoice, "failed")
    async with worker_here(namespace.address, tmp_path, INVOICE_TWO_PEOPLE_OVER="999.99"):
        await desk.submit(id=invoice.id, lines=SMALL)
        with acting(ANN):
            assert (await desk.approve(invoice)).outcome == "approved_first"
        with acting(BOB):
            await desk.pay(invoice)


async def test_anybody_can_reject_after_the_first_approval(desk: Desk) -> None:
    for name in (ANN, BOB):
        invoice = await desk.submit()
        with acting(ANN):
            await desk.approve(invoice)
        with acting(name):
            status = await desk.reject(invoice)
        assert (status.state, status.outcome) == ("rejected", "rejected")


async def test_an_approval_without_a_name_is_nobodys(desk: Desk, careful: Worker) -> None:
    invoice = await desk.submit()
    handle = desk.handle(invoice)
    for details in ([], [{"by": "@desk1"}], [{"by": " "}], [5], [{"by": None}]):
        await handle.signal("approve_invoice", args=details)
    told = "Awaiting approval - an approval without a name isn't counted"
    await desk.once(invoice, lambda status: status.status == told)
    assert await handle.query("get_status") == told
    with acting(ANN):
        assert (await desk.approve(invoice)).outcome == "approved_first"
    assert not paid(careful.data, invoice)


async def test_the_deadline_goes_on_after_the_first_approval(desk: Desk) -> None:
    invoice = await desk.submit(approval_timeout_days=2 / 24 / 3600)
    with acting(ANN):
        await desk.approve(invoice)
    status = await desk.until(invoice, "timed_out")
    assert "No second person decided before the deadline." in status.details
    assert "First approved by ann@desk1" in status.details


async def test_the_first_approvers_invoice_can_be_cancelled(desk: Desk, careful: Worker) -> None:
    invoice = await desk.submit()
    with acting(ANN):
        await desk.approve(invoice)
    assert (await desk.client.cancel(invoice.id)).state == "cancelled"
    assert not paid(careful.data, invoice)


async def test_the_second_person_is_asked_with_the_first_ones_words(careful: Worker) -> None:
    asked: list[str] = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": True}

    for era in ("legacy", "2026-07-28"):
        async with tools_in_memory(careful.address, era, elicitation_handler=person) as tools:
            invoice = await tools.submit()
            await tools.until(invoice, "waiting")
            with acting(ANN):
                reason = "as agreed”, says bob\n1. $1.00"
                await tools("approve_invoice", invoice_id=invoice["id"], reason=reason)
                await tools("approve_invoice", invoice_id=invoice["id"])
            with acting(BOB):
                await tools("approve_invoice", invoice_id=invoice["id"])
            await tools.until(invoice, "completed")
        first, second = (question.split("\n") for question in asked)
        assert first[2] == "Two different people must approve it."
        assert second[2].startswith("First approved by ann@desk1 on ")
        assert second[2].endswith(
            "reason: “as agreed', says bob 1. $1.00”. A second person must approve it too."
        )
        asked.clear()


async def test_the_submitter_may_be_excluded(namespace: Namespace, tmp_path: Path) -> None:
    desk = Desk(await namespace.connect())
    settings = {"INVOICE_TWO_PEOPLE_OVER": "1000", "INVOICE_SUBMITTER_MAY_APPROVE": "no"}
    async with worker_here(namespace.address, tmp_path, **settings):
        with acting(SUE):
            invoice = await desk.submit()
            await desk.once(invoice, lambda status: status.required_approvals)
            with pytest.raises(InvoiceError, match="by you, because you submitted it"):
                await desk.approve(invoice)
        # As another client does, or a tool before the worker has answered.
        await desk.handle(invoice).signal("approve_invoice", {"by": "Sue@elsewhere"})
        told = "the approval by Sue@elsewhere, who submitted it, isn't counted"
        await desk.once(invoice, lambda status: told in status.status)
        with acting(ANN):
            assert (await desk.approve(invoice)).outcome == "approved_first"
        with acting(BOB):
            await desk.pay(invoice)


async def test_a_worker_with_another_ledger_holds_to_its_limit(
    namespace: Namespace, tmp_path: Path
) -> None:
    """And the worker with the invoice's ledger to its own."""
    desk = Desk(await namespace.connect())
    limit = {"INVOICE_TWO_PEOPLE_OVER": "1000"}
    own, other = tmp_path / "own", tmp_path / "other"
    async with worker_here(namespace.address, own, INVOICE_DECLINE_OVER="3000"):
        rejected, approved = [await desk.submit_and_approve() for _ in range(2)]
        for invoice in (rejected, approved):
            await desk.until(invoice, "failed")
    async with worker_here(namespace.address, other, **limit):
        for invoice in (rejected, approved):
            with acting(SUE):
                status = await desk.client.submit(invoice)
                assert (status.state, status.required_approvals) == ("waiting", "two_people")
                status = await desk.approve(invoice)
            assert (status.state, status.outcome) == ("waiting", "approved_first")
        status = await desk.reject(rejected)
        assert (status.state, status.outcome) == ("rejected", "rejected")
        with acting(ANN):
            assert (await desk.approve(approved)).outcome == "approved"
        await desk.once(approved, lambda status: status.state == "paying" and status.retry)
    async with worker_here(namespace.address, own, **limit, INVOICE_SUBMITTER_MAY_APPROVE="no"):
        status = await desk.until(approved, "waiting", bound=40)
        assert status.required_approvals == "two_other_people"
        assert status.first_approval
        assert status.first_approval.by == ANN
        with acting(BOB):
            await desk.pay(approved)
    assert not payments(other)


# Approvals that are read later.


async def test_approvals_before_a_worker_runs_are_both_kept(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    alone, together = await desk.submit(), await desk.submit()
    for name, invoices in ((ANN, (alone, together)), ("Ann@desk9", (alone,)), (BOB, (together,))):
        for invoice in invoices:
            await desk.handle(invoice).signal("approve_invoice", {"by": name})
    async with worker_here(namespace.address, tmp_path, INVOICE_TWO_PEOPLE_OVER="1000"):
        await desk.until(together, "completed")
        status = await desk.once(alone, lambda status: status.first_approval)
        assert status.state == "waiting"
    with acting(BOB):
        status = await desk.approve(alone)
    assert (status.outcome, status.state) == ("decision_kept", "waiting")
    async with worker_here(namespace.address, tmp_path):  # the limit of the submission counts
        await desk.until(alone, "completed")


async def test_a_run_whose_status_was_asked_for_at_its_start_can_be_replayed(
    namespace: Namespace, tmp_path: Path
) -> None:
    """Then, what follows the ledger's answer is in a later workflow task than the answer."""
    desk = Desk(await namespace.connect())
    invoices = [await desk.submit() for _ in range(4)]
    asking = [asyncio.create_task(status_asked(desk, invoice)) for invoice in invoices]
    for invoice in invoices:
        await desk.handle(invoice).signal("approve_invoice", {"by": ANN})
    async with worker_here(namespace.address, tmp_path, INVOICE_TWO_PEOPLE_OVER="1000"):
        await asyncio.gather(*asking)
        for invoice in invoices:
            await desk.once(invoice, lambda status: status.first_approval)
    async with worker_here(namespace.address, tmp_path, INVOICE_TWO_PEOPLE_OVER="1000"):
        for invoice in invoices:
            with acting(BOB):
                await desk.approve(invoice)
            await desk.until(invoice, "completed")


async def status_asked(desk: Desk, invoice: Invoice) -> None:
    while True:
        with suppress(RPCError):
            await desk.handle(invoice).query("get_status")
            return


async def test_so_can_a_run_that_asks_the_ledger_again_because_it_was_away(
    namespace: Namespace,
    answers: Callable[[bool], None],
    ledger: SQLiteLedger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers(True)
    client = await namespace.connect()
    desk = Desk(client)
    invoices = [await desk.submit() for _ in range(4)]
    asking = [asyncio.create_task(status_asked(desk, invoice)) for invoice in invoices]
    for invoice in invoices:
        for by in (ANN, BOB):
            await desk.handle(invoice).signal("approve_invoice", {"by": by})
    with monkeypatch.context() as away:
        away.setattr(ledger, "providers", Mock(side_effect=GatewayUnavailable("away")))
        async with workflows_only(client):
            await asyncio.gather(*asking)
            for invoice in invoices:
                await desk.once(invoice, lambda status: status.state == "paying")
    async with workflows_only(client), questions_and_payments(client):
        for invoice in invoices:
            await desk.until(invoice, "completed")


TIMEOUT = timedelta(seconds=4)
LATE = {
    "both in time": ([ANN, BOB], [], "completed"),
    "the second late": ([ANN], [BOB], "timed_out"),
    "the same person twice in time": ([ANN, "ANN@desk7"], [BOB], "timed_out"),
    "nobody in time": (["@", ""], [ANN, BOB], "timed_out"),
}


async def test_both_approvals_must_have_been_received_in_time(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    days = TIMEOUT / timedelta(days=1)
    invoices = {
        name: Invoice.model_validate(an_invoice(approval_timeout_days=days)) for name in LATE
    }

    async def send(part: int) -> None:
        for name, case in LATE.items():
            for by in case[part]:
                await desk.handle(invoices[name]).signal("approve_invoice", {"by": by})

    async with worker_here(namespace.address, tmp_path, INVOICE_TWO_PEOPLE_OVER="1000"):
        for invoice in invoices.values():
            await desk.start(invoice)
        # In one of them, the first approval is read at once.
        await desk.handle(invoices["both in time"]).signal("approve_invoice", {"by": ANN})
        for invoice in invoices.values():
            await desk.once(invoice, lambda status: status.required_approvals)
    await send(0)
    last = await desk.client.runs.get_run(invoices["nobody in time"].id)
    assert last.status.deadline
    assert datetime.now(UTC) < last.status.deadline
    await asyncio.sleep((last.status.deadline - datetime.now(UTC)).total_seconds() + 0.05)
    await send(1)
    async with worker_here(namespace.address, tmp_path, INVOICE_TWO_PEOPLE_OVER="1000"):
        for name, (_, _, state) in LATE.items():
            status = await desk.until(invoices[name], "completed", "timed_out", bound=30)
            assert status.state == state, name
            assert len(paid(tmp_path, invoices[name])) == (2 if state == "completed" else 0)


@pytest.fixture
def answers(
    tmp_path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> Callable[[bool], None]:
    """Whether the activities of workers in this process answer; at first they don't."""

    def answer(ready: bool) -> None:
        is_ready.append(ready)

    def open_payments() -> tuple[SimulatedGateway, SQLiteLedger]:
        if not is_ready[-1]:
            raise GatewayUnavailable("not yet")
        return SimulatedGateway(tmp_path), ledger

    is_ready = [False]
    monkeypatch.setattr(activities, "open_payments", open_payments)
    rule = TwoPeopleRule.parse("1000.00")
    monkeypatch.setattr(activities, "two_people_rule", lambda: rule)
    return answer


UNKNOWN: dict[str, tuple[list[tuple[str, str]], str]] = {
    "one": ([("approve_invoice", ANN)], "waiting"),
    "the same twice": ([("approve_invoice", ANN), ("approve_invoice", "ANN@x")], "waiting"),
    "without a name": ([("approve_invoice", "")], "waiting"),
    "two": ([("approve_invoice", ANN), ("approve_invoice", BOB)], "completed"),
    "rejected": ([("approve_invoice", ANN), ("reject_invoice", BOB)], "rejected"),
}


async def test_the_limit_holds_if_no_worker_told_it_at_the_start(
    namespace: Namespace, answers: Callable[[bool], None], ledger: SQLiteLedger
) -> None:
    """A run whose first question had no answer asks again before it pays."""
    client = await namespace.connect()
    desk = Desk(client)
    async with workflows_only(client), questions_and_payments(client):
        invoices = {name: Invoice.model_validate(an_invoice()) for name in UNKNOWN}
        for invoice in invoices.values():
            await desk.start(invoice)
        for name, (sent, _) in UNKNOWN.items():
            await desk.until(invoices[name], "waiting")
            for signal, by in sent:
                await desk.handle(invoices[name]).signal(signal, {"by": by})
        for invoice in invoices.values():
            await desk.once(invoice, lambda status: status.state == "paying" and status.retry)
            assert not ledger.entries(invoice.id)
        answers(True)
        for name, (_, state) in UNKNOWN.items():
            invoice = invoices[name]
            await desk.once(invoice, lambda status: status.required_approvals)
            status = await desk.until(invoice, state)
            if state == "waiting":
                assert status.decision is None, name
                assert not ledger.entries(invoice.id), name
                for person in (ANN, BOB):
                    with acting(person):
                        await desk.approve(invoice)
                await desk.until(invoice, "completed")
            assert len(ledger.entries(invoice.id)) == (0 if state == "rejected" else 2), name


def questions_and_payments(client: Client) -> Any:
    """`payments_only`, and the question about earlier payments, asked for a second time."""
    import temporalio.worker

    from workflow import TASK_QUEUE

    return temporalio.worker.Worker(
        client,
        task_queue=TASK_QUEUE,
        activities=[
            activities.process_payment,
            activities.payment_outcome,
            activities.payments_made,
        ],
    )


async def test_a_second_person_who_comes_after_the_deadline_is_too_late(
    namespace: Namespace, answers: Callable[[bool], None], ledger: SQLiteLedger
) -> None:
    """Also if it became known only then that two people are required."""
    client = await namespace.connect()
    desk = Desk(client)
    async with (
        workflows_only(client, activities.decision_in_time),
        questions_and_payments(client),
    ):
        invoice = Invoice.model_validate(an_invoice(approval_timeout_days=4 / 24 / 3600))
        await desk.start(invoice)
        await desk.handle(invoice).signal("approve_invoice", {"by": ANN})
        deadline = (await desk.client.runs.get_run(invoice.id)).status.deadline
        assert deadline
        await desk.until(invoice, "paying", bound=30)
        await asyncio.sleep(max(0, (deadline - datetime.now(UTC)).total_seconds()) + 0.05)
        await desk.handle(invoice).signal("approve_invoice", {"by": BOB})
        answers(True)
        status = await desk.until(invoice, "timed_out", bound=30)
    assert status.first_approval
    assert not ledger.entries(invoice.id)
