"""An invoice waits for a worker with its ledger and gateway, and for an unavailable ledger."""

from pathlib import Path

from stripe_stand_in import TERMS, StripeStandIn
from support import Desk, Namespace, Worker, connect, paid


async def test_an_invoice_waits_for_the_worker_with_its_ledger(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path / "own") as own:
        invoice = await desk.submit()
        await desk.until(invoice, "waiting")
        await own.end()  # killed, it would be given the approval for some seconds
    async with Worker(namespace.address, tmp_path / "other") as other:
        await desk.approve(invoice)
        text = (await desk.once(invoice, lambda status: status.retry)).to_text()
        assert "the invoice belongs to the payment ledger " in text
        assert "start a worker with the data directory" in text
        await other.end()
    async with Worker(namespace.address, tmp_path / "own"):
        await desk.until(invoice, "completed")
        assert not paid(tmp_path / "other", invoice)
        assert len(paid(tmp_path / "own", invoice)) == 2


async def test_invoices_wait_for_the_worker_with_their_gateway(
    namespace: Namespace, tmp_path: Path
) -> None:
    """The worker is restarted without the setting that names the gateway."""
    desk, data = Desk(await namespace.connect()), tmp_path
    with StripeStandIn() as stand_in:
        settings = {**stand_in.settings, "STRIPE_API_KEY": "sk_live_ok"}
        async with Worker(namespace.address, data, **settings) as stripe:
            invoice = await desk.submit(**TERMS)
            await desk.until(invoice, "waiting")
            (data / "payments.db").rename(data / "away.db")
            while_away = await desk.submit(**TERMS)
            text = (await desk.until(while_away, "waiting")).to_text()
            assert "it isn't known whether any of it was paid" in text
            await stripe.end()
        (data / "away.db").rename(data / "payments.db")
        async with Worker(namespace.address, data) as simulated:
            for waiting in (invoice, while_away):
                await desk.approve(waiting)
                text = (await desk.once(waiting, lambda status: status.retry)).to_text()
                assert (
                    "the invoice is paid through stripe live, and this worker pays through sim"
                    in text
                )
                assert "start a worker with the PAYMENT_GATEWAY" in text
                assert not paid(data, waiting)
            assert "Line 1 is being retried" in (await desk.status(invoice)).to_text()
            await simulated.end()
        async with Worker(namespace.address, data, **settings):
            for waiting in (invoice, while_away):
                await desk.until(waiting, "completed")
                assert len(stand_in.charged(waiting.id)) == 2


async def test_an_invoice_submitted_while_the_ledger_is_away_is_taken_and_paid_later(
    own_worker: Worker,
) -> None:
    desk, data = Desk(await connect(own_worker.address)), own_worker.data
    (data / "payments.db").rename(data / "away.db")
    invoice = await desk.submit()
    text = (await desk.until(invoice, "waiting")).to_text()
    assert "it isn't known whether any of it was paid" in text
    await desk.approve(invoice)
    (data / "away.db").rename(data / "payments.db")
    await desk.until(invoice, "completed")
    assert len(paid(data, invoice)) == 2


async def test_a_ledger_removed_while_the_worker_runs_is_reported_and_waited_for(
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
