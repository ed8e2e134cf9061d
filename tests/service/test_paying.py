"""From the approval to the end, through outages, refusals, cancellations and crashes."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError

import activities
import audit
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from support import (
    PROCESSES,
    Desk,
    Namespace,
    Worker,
    cancelled_with_the_outcome,
    connect,
    eventually,
    paid,
    states,
    workflows_only,
)
from worker_here import worker_here


@pytest.fixture
def gateway_down(own_worker: Worker) -> Iterator[Path]:
    file = own_worker.data / "gateway-down"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


async def test_an_outage_is_reported_and_waited_for(own_worker: Worker, gateway_down: Path) -> None:
    desk = Desk(await connect(own_worker.address))
    invoice = await desk.submit_and_approve()
    text = (await desk.once(invoice, lambda status: status.retry)).to_text()
    assert "Line 1 is being retried, attempt " in text
    assert "last error: the payment gateway is unavailable" in text
    gateway_down.unlink()
    await desk.until(invoice, "completed")
    assert len(paid(own_worker.data, invoice)) == 2


async def test_a_declined_line_ends_the_invoice_and_the_rest_is_paid_later(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    lines = [{"item": f"Item {n}", "amount": f"{n}0.00"} for n in (1, 9, 2)]
    async with worker_here(namespace.address, tmp_path, INVOICE_DECLINE_OVER="50"):
        invoice = await desk.submit_and_approve(lines=lines)
        text = (await desk.until(invoice, "failed")).to_text()
        assert "Payment failed: line 2 of 3, “Item 9”, $90.00: declined" in text
        assert "Paid: 1 of 3 lines, $10.00 of $120.00." in text
        with pytest.raises(WorkflowFailureError) as failure:
            await desk.handle(invoice).result()
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "PaymentDeclined"
        # Temporal keeps the message in plain text even where payloads are encrypted.
        reason = "declined: above the limit of $50.00"
        assert failure.value.cause.message == f"Payment failed: line 2 of 3: {reason}"
        [status] = failure.value.cause.details
        assert status == f"Payment failed: line 2 of 3, “Item 9”, $90.00: {reason}"
        first = paid(tmp_path, invoice)
        assert first == [f"invoice-{invoice.id}/line-1"]

    async with worker_here(namespace.address, tmp_path):
        assert (await desk.client.submit(invoice)).outcome == "started"
        await desk.approve(invoice)
        await desk.until(invoice, "completed")
        assert paid(tmp_path, invoice) == [f"invoice-{invoice.id}/line-{n}" for n in (1, 2, 3)]


async def test_cancellation_waits_for_the_payment_under_way_and_begins_no_other(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    script = PROCESSES / "slow_worker.py"
    async with Worker(namespace.address, tmp_path, script, HEARTBEAT_TIMEOUT="5") as worker:
        invoice = await desk.submit_and_approve(payment_interval_seconds=1)
        await eventually((tmp_path / "paying").exists)
        handle = desk.handle(invoice)
        await handle.cancel()
        # The answer to a heartbeat tells the activity of it.
        await eventually(lambda: "Asked to stop: the payment" in worker.log.read_text())
        assert (await desk.status(invoice)).state == "paying"
        (tmp_path / "go-on").touch()
        text = (await desk.until(invoice, "cancelled")).to_text()
        assert "status: Cancelled. Paid: 1 of 2 lines, $5,000.00 of $7,000.00." in text
        assert "It was stopped at line 2 of 2" in text
        timers = [
            event
            async for event in handle.fetch_history_events()
            if event.HasField("timer_started_event_attributes")
        ]
        assert len(timers) == 2  # the deadline's and line 1's pause, but not line 2's
        assert paid(tmp_path, invoice) == [f"invoice-{invoice.id}/line-1"]


@pytest.fixture
def ledger_here(
    tmp_path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> SQLiteLedger:
    """The ledger of the workers in this process. They decline amounts above 6,000."""
    gateway = SimulatedGateway(tmp_path, Decimal(6000))
    monkeypatch.setattr(activities, "open_payments", lambda: (gateway, ledger))
    return ledger


@pytest.mark.parametrize("cancel_first", [False, True])
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["19.99"], "status: Completed. Paid: 1 of 1 line, $19.99 of $19.99."),
        (
            ["19.99", "5.00"],
            "status: Cancelled. Paid: 1 of 2 lines, $19.99 of $24.99. It was stopped at line 2",
        ),
    ],
)
async def test_a_payment_made_as_a_cancellation_arrives_is_reported(
    cancel_first: bool,
    lines: list[str],
    told: str,
    namespace: Namespace,
    ledger_here: SQLiteLedger,
    capsys: pytest.CaptureFixture[str],
) -> None:
    desk = Desk(await namespace.connect())
    items = [{"item": f"Item {amount}", "amount": amount} for amount in lines]
    invoice = await cancelled_with_the_outcome(desk, lines=items, cancel_first=cancel_first)
    async with workflows_only(desk.temporal):
        text = (await desk.until(invoice, "completed", "cancelled")).to_text()
    assert told in text
    assert states(ledger_here) == ["paid"]
    assert await audit.audit(desk.client.runs, ledger_here, lambda row: None) == 0
    assert "1 invoice, 0 with disagreements" in capsys.readouterr().err


async def test_a_decline_that_comes_with_a_cancellation_is_reported(
    namespace: Namespace, ledger_here: SQLiteLedger
) -> None:
    desk = Desk(await namespace.connect())
    items = [{"item": "Yacht", "amount": "6000.01"}]
    invoice = await cancelled_with_the_outcome(desk, lines=items)
    async with workflows_only(desk.temporal):
        text = (await desk.until(invoice, "failed", "cancelled")).to_text()
    assert "Payment failed: line 1 of 1, “Yacht”, $6,000.01: declined" in text
    assert "nothing has been paid" in text


async def test_cancellation_ends_the_retries_of_an_outage(
    own_worker: Worker, gateway_down: Path
) -> None:
    desk = Desk(await connect(own_worker.address))
    invoice = await desk.submit_and_approve()
    await desk.handle(invoice).cancel()
    text = (await desk.until(invoice, "cancelled")).to_text()
    assert "nothing has been paid" in text


async def test_a_waiting_invoice_can_be_cancelled(client: Client, worker: Worker) -> None:
    desk = Desk(client)
    invoice = await desk.submit()
    await desk.handle(invoice).cancel()
    await desk.until(invoice, "cancelled")


async def test_a_terminated_invoice_says_what_is_unknown(client: Client, worker: Worker) -> None:
    desk = Desk(client)
    invoice = await desk.submit_and_approve(payment_interval_seconds=60)
    await desk.handle(invoice).terminate()
    text = (await desk.until(invoice, "terminated")).to_text()
    assert "Terminated by an operator" in text
    assert "check the payment ledger" in text


async def test_the_end_of_the_worker_waits_for_the_payment_under_way(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    script = PROCESSES / "slow_worker.py"
    async with Worker(namespace.address, tmp_path, script, HEARTBEAT_TIMEOUT="3") as worker:
        invoice = await desk.submit_and_approve(lines=[{"item": "Hosting", "amount": "19.99"}])
        await eventually((tmp_path / "paying").exists)
        end = asyncio.create_task(worker.end())
        await eventually(lambda: "a payment under way is finished first" in worker.log.read_text())

        async def outlasts_the_limit_for_heartbeats() -> bool:
            run = (await desk.handle(invoice).describe()).raw_description
            [payment] = run.pending_activities
            beat, started = payment.last_heartbeat_time, payment.last_started_time
            return beat.ToDatetime() - started.ToDatetime() > timedelta(seconds=4)

        await eventually(outlasts_the_limit_for_heartbeats)
        (tmp_path / "go-on").touch()
        assert await end == 0
        assert "Traceback" not in worker.log.read_text()
        assert paid(tmp_path, invoice) == [f"invoice-{invoice.id}/line-1"]
        # The service has the result of the first attempt, so no other worker is asked to pay.
        history = await desk.handle(invoice).fetch_history()
        attempts = [e.activity_task_started_event_attributes.attempt for e in history.events]
        assert sum(attempts) == 1
        assert any(e.HasField("activity_task_completed_event_attributes") for e in history.events)
