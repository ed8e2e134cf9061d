"""Workers that share a database, which is unavailable for a while."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from invoices.invoice import Invoice
from payments.ledger import PostgreSQLLedger
from postgres import PASSWORD, PostgreSQL
from stripe_stand_in import TERMS, Fault, FaultKind, StripeStandIn
from support import Desk, Namespace, Worker


@pytest.fixture
async def to_be_killed(postgresql: PostgreSQL) -> AsyncIterator[PostgreSQL]:
    """A PostgreSQL server that a test may kill, because no other test uses it."""
    yield postgresql
    await postgresql.start()


async def test_a_database_killed_while_paying_is_reported_and_waited_for(
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
                    # Each worker keeps the payments that it took, so both have some held calls.
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
