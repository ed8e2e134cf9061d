"""Workers that share a ledger, workers that don't, and workers whose database comes and goes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from invoice_client import InvoiceClient
from invoices.invoice import Invoice, workflow_id
from payments.ledger import PostgreSQLLedger
from postgres import PASSWORD, PostgreSQL
from starting import refused
from stripe_stand_in import Fault, FaultKind, StripeStandIn
from support import ROOT, Namespace, Worker, an_invoice, connect, eventually, paid

TERMS = {"customer": "cus_A", "payment_method": "pm_visa"}


async def submitted(client: Client, **fields: Any) -> Invoice:
    invoice = Invoice.model_validate(an_invoice(**fields))
    await InvoiceClient(client).submit(invoice)
    return invoice


async def approve(client: Client, invoice: Invoice) -> None:
    await InvoiceClient(client).decide(invoice.id, approve=True)


async def status_with(
    client: Client, invoice: Invoice, is_wanted: Callable[[Any], object], bound: float = 30
) -> str:
    """The status in words, once `is_wanted` is true of it."""

    async def look() -> str | None:
        status = await InvoiceClient(client).get_status(invoice.id)
        return status.to_text() if is_wanted(status) else None

    return await eventually(look, bound)


def worker_in(directory: Path, namespace: Namespace, **settings: str) -> Worker:
    directory.mkdir(exist_ok=True)
    return Worker(namespace.address, directory, ROOT / "worker.py", (), **settings)


@pytest.mark.slow  # retried with growing pauses
async def test_an_invoice_waits_for_the_worker_with_its_ledger(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    own = await worker_in(tmp_path / "own", namespace).start()
    invoice = await submitted(client)
    await status_with(client, invoice, lambda status: status.state == "waiting")
    own.kill()
    other = await worker_in(tmp_path / "other", namespace).start()
    await approve(client, invoice)
    text = await status_with(client, invoice, lambda status: status.retry)
    assert "the invoice belongs to the payment ledger " in text
    assert "start a worker with the data directory" in text
    other.kill()
    own = await worker_in(tmp_path / "own", namespace).start()
    await status_with(client, invoice, lambda status: status.state == "completed")
    assert not paid(tmp_path / "other", invoice.model_dump())
    assert len(paid(tmp_path / "own", invoice.model_dump())) == 2
    own.kill()


async def test_an_invoice_waits_for_the_worker_with_its_gateway(
    namespace: Namespace, tmp_path: Path
) -> None:
    """The worker is started again without the setting that names the gateway."""
    client = await namespace.connect()
    with StripeStandIn() as stand_in:
        settings = {
            "PAYMENT_GATEWAY": "stripe",
            "STRIPE_API_KEY": "sk_test_ok",
            "STRIPE_API_BASE": stand_in.url,
        }
        stripe = await worker_in(tmp_path, namespace, **settings).start()
        invoice = await submitted(client, **TERMS)
        await status_with(client, invoice, lambda status: status.state == "waiting")
        await stripe.end()
        simulated = await worker_in(tmp_path, namespace).start()
        await approve(client, invoice)
        text = await status_with(client, invoice, lambda status: status.retry)
        assert "Line 1 is being retried" in text
        assert "the invoice is paid through stripe test, and this worker pays through sim" in text
        assert "start a worker with the PAYMENT_GATEWAY" in text
        assert not paid(tmp_path, invoice.model_dump())
        await simulated.end()
        stripe = await worker_in(tmp_path, namespace, **settings).start()
        await status_with(client, invoice, lambda status: status.state == "completed")
        assert len(stand_in.charged(invoice.id)) == 2
        stripe.kill()


async def test_an_invoice_submitted_while_the_ledger_is_away_is_taken_and_paid_later(
    own_worker: Worker,
) -> None:
    client, data = await connect(own_worker.address), own_worker.data
    (data / "payments.db").rename(data / "away.db")
    invoice = await submitted(client)
    text = await status_with(client, invoice, lambda status: status.state == "waiting")
    assert "it isn't known whether any of it was paid" in text
    await approve(client, invoice)
    (data / "away.db").rename(data / "payments.db")
    await status_with(client, invoice, lambda status: status.state == "completed")
    assert len(paid(data, invoice.model_dump())) == 2


async def test_a_ledger_removed_while_the_worker_runs_is_told_and_waited_for(
    own_worker: Worker, tmp_path: Path
) -> None:
    client, data, away = await connect(own_worker.address), own_worker.data, tmp_path / "away"
    invoice = await submitted(client)
    await status_with(client, invoice, lambda status: status.state == "waiting")
    away.mkdir()
    for file in data.glob("payments.db*"):
        file.rename(away / file.name)
    await approve(client, invoice)
    text = await status_with(client, invoice, lambda status: status.retry)
    assert "the payment ledger is unavailable: payments.db is missing" in text
    for file in away.iterdir():
        file.rename(data / file.name)
    await status_with(client, invoice, lambda status: status.state == "completed")
    assert len(paid(data, invoice.model_dump())) == 2
    assert "Traceback" not in own_worker.log.read_text()


async def test_a_database_that_is_not_there_ends_the_worker_with_one_sentence(
    tmp_path: Path,
) -> None:
    url = f"postgresql://invoices:{PASSWORD}@127.0.0.1:1/there"
    line = await refused(INVOICE_DATA_DIR=str(tmp_path), PAYMENT_LEDGER_URL=url)
    assert "The payment ledger there on 127.0.0.1 can't be used: " in line
    assert PASSWORD not in line


@pytest.fixture
async def to_be_killed(postgresql: PostgreSQL) -> AsyncIterator[PostgreSQL]:
    """The PostgreSQL server, which no other test uses at the same time."""
    yield postgresql
    await postgresql.start()


async def test_a_database_that_is_killed_while_paying_is_told_and_waited_for(
    namespace: Namespace, to_be_killed: PostgreSQL, tmp_path: Path
) -> None:
    client = await namespace.connect()
    url = to_be_killed.create_database()
    worker = await worker_in(tmp_path, namespace, PAYMENT_LEDGER_URL=url).start()
    lines = [{"item": f"Item {n}", "amount": "1.00"} for n in range(1, 6)]
    invoice = await submitted(client, lines=lines, payment_interval_seconds=0.5)
    await approve(client, invoice)
    await status_with(client, invoice, lambda status: status.paid_lines)
    to_be_killed.kill()
    text = await status_with(client, invoice, lambda status: status.retry)
    assert "the payment ledger is unavailable: " in text
    await to_be_killed.start()
    await status_with(client, invoice, lambda status: status.state == "completed", 60)
    assert ledger_states(url, invoice) == ["paid"] * 5
    assert PASSWORD not in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()
    assert not list(tmp_path.glob("payments.db*"))
    worker.kill()


def ledger_states(url: str, invoice: Invoice) -> list[str]:
    with closing(PostgreSQLLedger(url)) as ledger:
        rows, _ = ledger._execute("SELECT state FROM payments WHERE invoice_id = ?", invoice.id)
    return [state for [state] in rows]


@pytest.mark.slow  # killed payments are repeated after their 30 s
async def test_workers_that_share_a_database_charge_each_line_once_while_one_is_killed(
    namespace: Namespace, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    client = await namespace.connect()
    url = postgresql.create_database()
    with StripeStandIn() as stand_in:
        settings = {
            "PAYMENT_LEDGER_URL": url,
            "PAYMENT_GATEWAY": "stripe",
            "STRIPE_API_KEY": "sk_test_ok",
            "STRIPE_API_BASE": stand_in.url,
        }
        steady = await worker_in(tmp_path / "steady", namespace, **settings).start()
        lines = [{"item": f"Item {n}", "amount": f"{n}.00"} for n in range(1, 4)]
        invoices: list[Invoice] = []
        kinds: list[FaultKind] = ["hold before", "hold after"]
        for _ in range(2):
            killed = await worker_in(tmp_path / "killed", namespace, **settings).start()
            # A worker pays what it has taken up, so each has some of these calls, which are held.
            faults = [stand_in.lay(Fault("confirm", kind)) for kind in kinds * 2]
            new = [await submitted(client, lines=lines, **TERMS) for _ in faults]
            for invoice in new:
                await approve(client, invoice)
            invoices += new
            for fault in faults:
                assert await asyncio.to_thread(fault.reached.wait, 20)
            killed.kill()
            for fault in faults:
                fault.release.set()
        attempts = set()
        for invoice in invoices:
            await status_with(client, invoice, lambda status: status.state == "completed", 120)
            keys = [f"invoice-{invoice.id}/line-{n}" for n in range(1, 4)]
            assert stand_in.charged(invoice.id) == keys
            assert ledger_states(url, invoice) == ["paid"] * 3
            history = await client.get_workflow_handle(workflow_id(invoice.id)).fetch_history()
            attempts |= {e.activity_task_started_event_attributes.attempt for e in history.events}
        assert max(attempts) > 1
        assert "Traceback" not in steady.log.read_text()
        steady.kill()


async def test_an_invoice_without_a_customer_fails_at_its_start_where_stripe_pays(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    settings = {"PAYMENT_GATEWAY": "stripe", "STRIPE_API_KEY": "sk_test_ok"}
    worker = await worker_in(
        tmp_path, namespace, **settings, STRIPE_API_BASE="http://x.invalid"
    ).start()
    for fields, problem in (
        ({}, "customer: is required, since Stripe pays"),
        (
            {**TERMS, "currency": "JPY", "lines": [{"item": "A", "amount": "5.50"}]},
            "lines(0).amount: must be whole in JPY",
        ),
    ):
        invoice = Invoice.model_validate(an_invoice(**fields))
        await client.start_workflow(
            "InvoiceWorkflow",
            invoice.model_dump(mode="json"),
            id=workflow_id(invoice.id),
            task_queue="invoice-task-queue",
        )
        text = await status_with(client, invoice, lambda status: status.state == "failed")
        assert f"Invalid invoice: {problem}" in text
    worker.kill()
