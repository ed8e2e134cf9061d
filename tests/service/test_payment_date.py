"""An approved invoice with a payment date (`pay_on`) is paid then, and nothing before."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowFailureError

from hooks import a_hook, accept
from invoices.invoice import Invoice
from invoices.refusals import InvoiceError
from support import (
    ERAS,
    Desk,
    Namespace,
    Refused,
    Tools,
    Worker,
    an_invoice,
    eventually,
    paid,
    tools_in_memory,
)
from worker_here import worker_here


def ahead(**time: float) -> str:
    """This long from now, in another zone's time."""
    moment = datetime.now(UTC) + timedelta(**time)
    return (moment + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00")


NEXT_MONTH = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}"


async def test_an_approved_invoice_is_paid_on_its_day(client: Client, worker: Worker) -> None:
    desk = Desk(client)
    pay_on = ahead(seconds=4)
    moment = datetime.fromisoformat(pay_on).astimezone(UTC)
    invoice = await desk.submit(pay_on=pay_on)
    status = await desk.approve(invoice)
    assert (status.state, status.outcome) == ("scheduled", "approved")
    assert status.status == f"Approved, to be paid on {moment:%Y-%m-%d %H:%M:%S} UTC"
    assert await desk.handle(invoice).query("get_status") == status.status
    assert not paid(worker.data, invoice)
    again = await desk.approve(invoice)
    assert again.outcome == "already_approved"
    with pytest.raises(InvoiceError, match=r"can't be rejected now.*call cancel_invoice"):
        await desk.reject(invoice)

    await desk.until(invoice, "completed")
    with closing(sqlite3.connect(worker.data / "payments.db")) as ledger:
        rows = ledger.execute("SELECT at FROM payments WHERE invoice_id = ?", [invoice.id])
        assert all(datetime.fromisoformat(at) >= moment for [at] in rows.fetchall())
    assert len(paid(worker.data, invoice)) == 2


async def test_a_scheduled_invoice_can_be_cancelled(client: Client, worker: Worker) -> None:
    desk = Desk(client)
    invoice = await desk.submit(pay_on=NEXT_MONTH)
    await desk.approve(invoice)
    status = await desk.client.cancel(invoice.id, "ordered twice")
    assert (status.state, status.outcome) == ("cancelled", "cancelled")
    assert "Approved by" in status.details
    events = [event async for event in desk.handle(invoice).fetch_history_events()]
    [timer] = [
        event
        for event in events
        if b'"Payment date"' in event.user_metadata.summary.data
        and event.HasField("timer_started_event_attributes")
    ]
    assert any(
        event.timer_canceled_event_attributes.started_event_id == timer.event_id for event in events
    )
    assert not paid(worker.data, invoice)


async def test_a_payment_date_in_the_past_pays_at_once(client: Client, worker: Worker) -> None:
    desk = Desk(client)
    invoice = await desk.submit(pay_on="2026-01-31")
    assert "which has passed: it is paid as soon as" in (await desk.status(invoice)).to_text()
    await desk.pay(invoice)
    events = [event async for event in desk.handle(invoice).fetch_history_events()]
    assert not any(b"Payment date" in event.user_metadata.summary.data for event in events)


async def test_a_scheduled_invoice_survives_the_end_of_its_worker(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with a_hook(accept) as hook:
        async with worker_here(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url):
            invoice = await desk.submit(pay_on=ahead(seconds=5))
            await desk.approve(invoice)
            await eventually(lambda: "scheduled" in hook.events(invoice))
        assert (await desk.status(invoice)).state == "scheduled"
        async with Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url) as worker:
            await desk.until(invoice, "completed")
            await eventually(
                lambda: set(hook.events(invoice)) == {"waiting", "scheduled", "completed"}
            )
        assert "1 to be paid on their day" in worker.log.read_text()


@pytest.fixture(scope="module", params=ERAS)
async def asking(
    request: pytest.FixtureRequest, address: str, worker: Worker
) -> AsyncIterator[tuple[Tools, list[str]]]:
    """The tools in a host that asks the person, who says yes; and what they were asked."""
    asked: list[str] = []

    async def answer(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": True}

    async with tools_in_memory(address, request.param, elicitation_handler=answer) as tools:
        yield tools, asked


async def test_the_day_is_in_the_question_the_status_and_the_list(
    asking: tuple[Tools, list[str]],
) -> None:
    tools, asked = asking
    invoice = await tools.submit(pay_on=NEXT_MONTH)
    later = await tools.submit(pay_on=ahead(days=300))
    for one in (later, invoice):
        text = await tools("approve_invoice", invoice_id=one["id"])
        await tools.until(one, "scheduled")
    assert f"status: Approved, to be paid on {NEXT_MONTH}. " in text
    assert f"Payment date: {NEXT_MONTH} (in 29 days" in text
    assert asked[-1].split("\n")[2].startswith(f"Payment date: {NEXT_MONTH} (in 29 days")
    assert (await tools.status(invoice))["pay_on"] == f"{NEXT_MONTH}T00:00:00Z"

    async def both_listed() -> str | None:
        text = await tools("list_invoices", status="scheduled")
        return text if invoice["id"] in text and later["id"] in text else None

    text = await eventually(both_listed)
    assert "the next payment date first" in text
    assert text.index(invoice["id"]) < text.index(later["id"])
    for one in (later, invoice):
        await tools("cancel_invoice", invoice_id=one["id"])


async def test_a_payment_date_too_far_ahead_is_refused(tools_here: Tools) -> None:
    with pytest.raises(Refused, match=r"invoice_data\.pay_on: must be at most 366 days ahead"):
        await tools_here.submit(pay_on=ahead(days=367))


@pytest.mark.parametrize("pay_on", ["next month", 20261215, {"day": 1}, "2126-12-15"])
async def test_another_clients_odd_payment_date_fails_the_run(
    pay_on: object, client: Client, worker: Worker
) -> None:
    desk = Desk(client)
    invoice = an_invoice(pay_on=pay_on)
    handle = await desk.start(invoice)
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    status = await desk.status(invoice)
    assert status.status.startswith("Invalid invoice: pay_on: must be ")


@pytest.mark.parametrize("pay_on", [None, " "])
async def test_another_clients_empty_payment_date_is_none(
    pay_on: object, client: Client, worker: Worker
) -> None:
    desk = Desk(client)
    invoice = an_invoice(pay_on=pay_on)
    await desk.start(invoice)
    await desk.until(invoice, "waiting")
    await desk.pay(invoice)


async def test_what_the_starter_notes_as_payment_date_is_not_believed(
    client: Client, worker: Worker
) -> None:
    desk = Desk(client)
    invoice = Invoice.model_validate(an_invoice())
    await desk.start(invoice, memo={"pay_on": "2027-01-31T00:00:00Z"})
    await desk.until(invoice, "waiting")
    assert (await desk.status(invoice)).pay_on is None
    await desk.pay(invoice)
