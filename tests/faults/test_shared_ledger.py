"""Workers that share a ledger, workers that don't, and workers whose database comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from invoices.invoice import Invoice
from payments.ledger import PostgreSQLLedger
from postgres import PASSWORD, PostgreSQL
from starting import refused
from stripe_stand_in import TERMS, Fault, FaultKind, StripeStandIn
from support import Desk, Namespace, Worker, an_invoice, connect, paid


@pytest.mark.slow  # retried with growing pauses
async def test_an_invoice_waits_for_the_worker_with_its_ledger(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path / "own"):
        invoice = await desk.submit()
        await desk.until(invoice, "waiting")
    async with Worker(namespace.address, tmp_path / "other"):
        await desk.approve(invoice)
        text = (await desk.once(invoice, lambda status: status.retry)).to_text()
        assert "the invoice belongs to the payment ledger " in text
        assert "start a worker with the data directory" in text
    async with Worker(namespace.address, tmp_path / "own"):
        await desk.until(invoice, "completed")
        assert not paid(tmp_path / "other", invoice)
        assert len(paid(tmp_path / "own", invoice)) == 2


async def test_an_invoice_waits_for_the_worker_with_its_gateway(
    namespace: Namespace, tmp_path: Path
) -> None:
    """The worker is started again without the setting that names the gateway."""
    desk = Desk(await namespace.connect())
    with StripeStandIn() as stand_in:
        settings = stand_in.settings
        async with Worker(namespace.address, tmp_path, **settings) as stripe:
            invoice = await desk.submit(**TERMS)
            await desk.until(invoice, "waiting")
            await stripe.end()
            async with Worker(namespace.address, tmp_path) as simulated:
                await desk.approve(invoice)
                text = (await desk.once(invoice, lambda status: status.retry)).to_text()
                assert "Line 1 is being retried" in text
                assert (
                    "the invoice is paid through stripe test, and this worker pays through sim"
                    in text
                )
                assert "start a worker with the PAYMENT_GATEWAY" in text
                assert not paid(tmp_path, invoice)
                await simulated.end()
                async with Worker(namespace.address, tmp_path, **settings) as stripe:
                    await desk.until(invoice, "completed")
                    assert len(stand_in.charged(invoice.id)) == 2


async def test_an_invoice_submitted_while_the_ledger_is_away_is_taken_and_paid_later(
    own_worker: Worker,
) -> None:
    desk, data = Desk(await connect(own_worker.address)), own_worker.data
    (data / "payments.db").rename(data / "away.db")
    invoice = await desk.submit()
    text = (await desk.until(invoice, "waiting")).to_text()
    assert "whether any of it was paid isn't known" in text
    await desk.approve(invoice)
    (data / "away.db").rename(data / "payments.db")
    await desk.until(invoice, "completed")
    assert len(paid(data, invoice)) == 2


async def test_a_ledger_removed_while_the_worker_runs_is_told_and_waited_for(
    own_worker: Worker, tmp_path: Path
) -> None:
    desk, data, away = Desk(await connect(own_worker.address)), own_worker.data, tmp_path / "away"
    invoice = await desk.submit()
    await desk.until(invoice, "waiting")
    away.mkdir()
    for file in data.glob("payments.db*"):
        file.rename(away / file.name)
    await desk.approve(invoice)
    text = (await desk.once(invoice, lambda status: status.retry)).to_text()
    assert "the payment ledger is unavailable: payments.db is missing" in text
    for file in away.iterdir():
        file.rename(data / file.name)
    await desk.until(invoice, "completed")
    assert len(paid(data, invoice)) == 2
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
    desk = Desk(await namespace.connect())
    url = to_be_killed.create_database()
    async with Worker(namespace.address, tmp_path, PAYMENT_LEDGER_URL=url) as worker:
        lines = [{"item": f"Item {n}", "amount": "1.00"} for n in range(1, 6)]
        invoice = await desk.submit(lines=lines, payment_interval_seconds=0.5)
        await desk.approve(invoice)
        await desk.once(invoice, lambda status: status.paid_lines)
        to_be_killed.kill()
        text = (await desk.once(invoice, lambda status: status.retry)).to_text()
        assert "the payment ledger is unavailable: " in text
        await to_be_killed.start()
        await desk.until(invoice, "completed", bound=60)
        assert ledger_states(url, invoice) == ["paid"] * 5
        assert PASSWORD not in worker.log.read_text()
        assert "Traceback" not in worker.log.read_text()
        assert not list(tmp_path.glob("payments.db*"))


def ledger_states(url: str, invoice: Invoice) -> list[str]:
    with closing(PostgreSQLLedger(url)) as ledger:
        rows, _ = ledger._execute("SELECT state FROM payments WHERE invoice_id = ?", invoice.id)
    return [state for [state] in rows]


@pytest.mark.slow  # killed payments are repeated after their 30 s
async def test_workers_that_share_a_database_charge_each_line_once_while_one_is_killed(
    namespace: Namespace, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    url = postgresql.create_database()
    with StripeStandIn() as stand_in:
        settings = {**stand_in.settings, "PAYMENT_LEDGER_URL": url}
        async with Worker(namespace.address, tmp_path / "steady", **settings) as steady:
            lines = [{"item": f"Item {n}", "amount": f"{n}.00"} for n in range(1, 4)]
            invoices: list[Invoice] = []
            kinds: list[FaultKind] = ["hold before", "hold after"]
            for _ in range(2):
                async with Worker(namespace.address, tmp_path / "killed", **settings):
                    # A worker pays what it has taken up: each has some of these held calls.
                    faults = [stand_in.lay(Fault("confirm", kind)) for kind in kinds * 2]
                    new = [await desk.submit(lines=lines, **TERMS) for _ in faults]
                    for invoice in new:
                        await desk.approve(invoice)
                    invoices += new
                    for fault in faults:
                        assert await asyncio.to_thread(fault.reached.wait, 20)
                for fault in faults:
                    fault.release.set()
            attempts = set()
            for invoice in invoices:
                await desk.until(invoice, "completed", bound=120)
                keys = [f"invoice-{invoice.id}/line-{n}" for n in range(1, 4)]
                assert stand_in.charged(invoice.id) == keys
                assert ledger_states(url, invoice) == ["paid"] * 3
                history = await desk.handle(invoice).fetch_history()
                attempts |= {
                    e.activity_task_started_event_attributes.attempt for e in history.events
                }
            assert max(attempts) > 1
            assert "Traceback" not in steady.log.read_text()


async def test_an_invoice_without_a_customer_fails_at_its_start_where_stripe_pays(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    settings = {"PAYMENT_GATEWAY": "stripe", "STRIPE_API_KEY": "sk_test_ok"}
    async with Worker(namespace.address, tmp_path, **settings, STRIPE_API_BASE="http://x.invalid"):
        for fields, problem in (
            ({}, "customer: is required, since Stripe pays"),
            (
                {**TERMS, "currency": "JPY", "lines": [{"item": "A", "amount": "5.50"}]},
                "lines(0).amount: must be whole in JPY",
            ),
        ):
            invoice = an_invoice(**fields)
            await desk.start(invoice)
            text = (await desk.until(invoice, "failed")).to_text()
            assert f"Invalid invoice: {problem}" in text
