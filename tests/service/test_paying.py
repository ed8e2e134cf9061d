"""From the approval to the end, through outages, refusals, cancellations and crashes."""

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError

import activities
import audit
from invoice_client import InvoiceClient
from invoice_runs import InvoiceRuns
from invoices.invoice import MAX_JSON_BYTES, MAX_LINES, Invoice, workflow_id
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from support import (
    PROCESSES,
    Namespace,
    Worker,
    an_invoice,
    cancelled_with_the_outcome,
    connect,
    eventually,
    paid,
    states,
    workflows_only,
)
from temporal_service.payloads import json_payload
from workflow import TASK_QUEUE


async def approved(client: Client, **fields: Any) -> Invoice:
    invoice = Invoice.model_validate(an_invoice(**fields))
    await InvoiceClient(client).submit(invoice)
    await InvoiceClient(client).decide(invoice.id, approve=True)
    return invoice


async def ended(client: Client, invoice: Invoice, *states: str, bound: float = 20) -> str:
    """The status text, once the invoice is in one of `states`."""

    async def look_for() -> str | None:
        status = await InvoiceClient(client).get_status(invoice.id)
        return status.to_text() if status.state in states else None

    return await eventually(look_for, bound)


async def exists(path: Path) -> None:
    async def look_for() -> bool:
        return path.exists()

    await eventually(look_for)


@pytest.fixture
def gateway_down(own_worker: Worker) -> Iterator[Path]:
    file = own_worker.data / "gateway-down"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


async def test_an_outage_is_told_and_waited_for(own_worker: Worker, gateway_down: Path) -> None:
    client = await connect(own_worker.address)
    invoice = await approved(client)

    async def retried() -> str | None:
        status = await InvoiceClient(client).get_status(invoice.id)
        return status.to_text() if status.retry else None

    text = await eventually(retried)
    assert "Line 1 is being retried, attempt " in text
    assert "last error: the payment gateway is unavailable" in text
    gateway_down.unlink()
    await ended(client, invoice, "completed")
    assert len(paid(own_worker.data, invoice.model_dump())) == 2


async def test_a_declined_line_ends_the_invoice_and_the_rest_is_paid_later(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    lines = [{"item": f"Item {n}", "amount": f"{n}0.00"} for n in (1, 9, 2)]
    worker = await Worker(namespace.address, tmp_path, INVOICE_DECLINE_OVER="50").start()
    invoice = await approved(client, lines=lines)
    text = await ended(client, invoice, "failed")
    assert "Payment failed: line 2 of 3, “Item 9”, $90.00: declined" in text
    assert "Paid: 1 of 3 lines, $10.00 of $120.00." in text
    with pytest.raises(WorkflowFailureError) as failure:
        await client.get_workflow_handle(workflow_id(invoice.id)).result()
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.type == "PaymentDeclined"
    first = paid(tmp_path, invoice.model_dump())
    assert first == [f"invoice-{invoice.id}/line-1"]
    worker.kill()

    worker = await Worker(namespace.address, tmp_path).start()
    assert (await InvoiceClient(client).submit(invoice)).outcome == "started"
    await InvoiceClient(client).decide(invoice.id, approve=True)
    await ended(client, invoice, "completed")
    assert paid(tmp_path, invoice.model_dump()) == [
        f"invoice-{invoice.id}/line-{n}" for n in (1, 2, 3)
    ]
    worker.kill()


async def test_cancellation_waits_for_the_payment_under_way_and_begins_no_other(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    worker = await Worker(namespace.address, tmp_path, PROCESSES / "slow_worker.py").start()
    invoice = await approved(client, payment_interval_seconds=1)
    await exists(tmp_path / "paying")
    handle = client.get_workflow_handle(workflow_id(invoice.id))
    await handle.cancel()
    assert (await InvoiceClient(client).get_status(invoice.id)).state == "paying"
    (tmp_path / "go-on").touch()
    text = await ended(client, invoice, "cancelled")
    assert "status: Cancelled. Paid: 1 of 2 lines, $5,000.00 of $7,000.00." in text
    assert "It was stopped at line 2 of 2" in text
    timers = [
        event
        async for event in handle.fetch_history_events()
        if event.HasField("timer_started_event_attributes")
    ]
    assert len(timers) == 2  # the deadline and the pause before line 1: none for line 2
    assert paid(tmp_path, invoice.model_dump()) == [f"invoice-{invoice.id}/line-1"]
    worker.kill()


@pytest.fixture
def ledger_here(
    tmp_path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> SQLiteLedger:
    """Of the workers in this process; an amount above 6,000 is declined."""
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
async def test_a_payment_made_as_a_cancellation_arrives_is_told(
    cancel_first: bool,
    lines: list[str],
    told: str,
    namespace: Namespace,
    ledger_here: SQLiteLedger,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = await namespace.connect()
    items = [{"item": f"Item {amount}", "amount": amount} for amount in lines]
    invoice = Invoice.model_validate(an_invoice(lines=items))
    await cancelled_with_the_outcome(client, invoice, cancel_first=cancel_first)
    async with workflows_only(client):
        text = await ended(client, invoice, "completed", "cancelled")
    assert told in text
    assert states(ledger_here) == ["paid"]
    assert await audit.audit(InvoiceRuns(client), ledger_here, lambda row: None) == 0
    assert "1 invoice, 0 with disagreements" in capsys.readouterr().err


async def test_a_decline_that_comes_with_a_cancellation_is_told(
    namespace: Namespace, ledger_here: SQLiteLedger
) -> None:
    client = await namespace.connect()
    items = [{"item": "Yacht", "amount": "6000.01"}]
    invoice = Invoice.model_validate(an_invoice(lines=items))
    await cancelled_with_the_outcome(client, invoice)
    async with workflows_only(client):
        text = await ended(client, invoice, "failed", "cancelled")
    assert "Payment failed: line 1 of 1, “Yacht”, $6,000.01: declined" in text
    assert "nothing has been paid" in text


async def test_cancellation_ends_the_retries_of_an_outage(
    own_worker: Worker, gateway_down: Path
) -> None:
    client = await connect(own_worker.address)
    invoice = await approved(client)
    await client.get_workflow_handle(workflow_id(invoice.id)).cancel()
    text = await ended(client, invoice, "cancelled")
    assert "nothing has been paid" in text


async def test_a_waiting_invoice_can_be_cancelled(client: Client, worker: Worker) -> None:
    invoice = Invoice.model_validate(an_invoice())
    await InvoiceClient(client).submit(invoice)
    await client.get_workflow_handle(workflow_id(invoice.id)).cancel()
    await ended(client, invoice, "cancelled")


async def test_a_terminated_invoice_says_what_is_not_known(client: Client, worker: Worker) -> None:
    invoice = await approved(client, payment_interval_seconds=60)
    await client.get_workflow_handle(workflow_id(invoice.id)).terminate()
    text = await ended(client, invoice, "terminated")
    assert "Terminated by an operator" in text
    assert "check the payment ledger" in text


async def test_the_end_of_the_worker_waits_for_the_payment_under_way(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    worker = await Worker(namespace.address, tmp_path, PROCESSES / "slow_worker.py").start()
    invoice = await approved(client, lines=[{"item": "Hosting", "amount": "19.99"}])
    await exists(tmp_path / "paying")
    end = asyncio.create_task(worker.end())
    await exists_in(worker.log, "a payment under way is finished first")
    (tmp_path / "go-on").touch()
    assert await end == 0
    assert "Traceback" not in worker.log.read_text()
    assert paid(tmp_path, invoice.model_dump()) == [f"invoice-{invoice.id}/line-1"]
    # The service has it from the first attempt, so no other worker is asked to pay.
    history = await client.get_workflow_handle(workflow_id(invoice.id)).fetch_history()
    attempts = [e.activity_task_started_event_attributes.attempt for e in history.events]
    assert sum(attempts) == 1
    assert any(e.HasField("activity_task_completed_event_attributes") for e in history.events)


async def exists_in(file: Path, text: str) -> None:
    async def look_for() -> bool:
        return text in file.read_text()

    await eventually(look_for)


def filled_up(invoice: dict[str, Any]) -> Invoice:
    """Just below the limit of what an invoice may be, by the description of its last line.

    Escaped to ASCII, which is how an activity's argument is sent, that has three times the size.
    """

    def described(description: str) -> Invoice:
        line = {**invoice["lines"][-1], "description": description}
        return Invoice.model_validate({**invoice, "lines": [*invoice["lines"][:-1], line]})

    room = MAX_JSON_BYTES - 1 - len(described("").to_json())
    return described("Ж" * (room // len("Ж".encode())))


@pytest.mark.parametrize("ledger_away", [False, True])
async def test_the_largest_invoice_that_is_taken_is_paid_to_the_last_line(
    ledger_away: bool, own_worker: Worker
) -> None:
    client, data = await connect(own_worker.address), own_worker.data
    invoice = filled_up(an_invoice())
    assert len(invoice.to_json()) > MAX_JSON_BYTES - 3
    if ledger_away:  # then it is asked again before paying, in another way
        (data / "payments.db").rename(data / "away.db")
    await InvoiceClient(client).submit(invoice)
    await InvoiceClient(client).decide(invoice.id, approve=True)
    if ledger_away:
        await ended(client, invoice, "paying")
        (data / "away.db").rename(data / "payments.db")
    await ended(client, invoice, "completed")
    assert len(paid(data, invoice.model_dump())) == 2


@pytest.mark.slow  # 500 payments
async def test_the_most_lines_with_the_longest_items_are_paid(own_worker: Worker) -> None:
    client = await connect(own_worker.address)
    widest = "\N{PERSON WITH BALL}"
    lines = [{"item": widest * 200, "amount": "9999999999.99"} for _ in range(MAX_LINES)]
    terms = {"customer": widest * 255, "payment_method": widest * 255}
    invoice = filled_up(an_invoice(lines=lines, **terms))
    await InvoiceClient(client).submit(invoice)
    await InvoiceClient(client).decide(invoice.id, approve=True)
    await ended(client, invoice, "completed", bound=120)
    assert len(paid(own_worker.data, invoice.model_dump())) == MAX_LINES
    # Another client starts it again, and the ledger tells all that was paid.
    handle = await client.start_workflow(
        "InvoiceWorkflow",
        json_payload(invoice.to_json()),
        id=workflow_id(invoice.id),
        task_queue=TASK_QUEUE,
    )
    await handle.signal("approve_invoice")
    text = await ended(client, invoice, "completed")
    assert "including $4,999,999,999,995.00 paid earlier" in text
