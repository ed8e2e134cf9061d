"""A worker that pays through Stripe's stand-in."""

import asyncio
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import audit
from invoice_runs import InvoiceRuns
from invoices.invoice import Invoice
from payments.ledger import SQLiteLedger
from stripe_stand_in import TERMS, Fault, FaultKind, StripeStandIn
from support import ROOT, Desk, Namespace, Worker, an_invoice, tools_in_memory
from worker_here import worker_here


async def test_a_key_in_the_environment_does_not_move_money(
    namespace: Namespace, stand_in: StripeStandIn, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    settings = {**stand_in.settings, "PAYMENT_GATEWAY": ""}
    async with worker_here(namespace.address, tmp_path, **settings):
        invoice = await desk.submit_and_approve(**TERMS)
        assert await desk.handle(invoice).result() == "COMPLETED"
        assert not stand_in.intents


async def test_a_cancelled_run_reports_what_was_charged_without_an_answer(
    namespace: Namespace,
    stand_in: StripeStandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    desk = Desk(await namespace.connect())
    async with worker_here(namespace.address, tmp_path, **stand_in.settings):
        stand_in.lay(Fault("confirm", "drop after"))
        for _ in range(10):
            stand_in.lay(Fault("confirm", 500))
        asked = stand_in.lay(Fault("cancel", "hold before"))
        invoice = await desk.submit_and_approve(**TERMS)
        await desk.once(invoice, lambda status: status.retry)
        await desk.handle(invoice).cancel()
        assert await asyncio.to_thread(asked.reached.wait, 20)
        await desk.handle(invoice).cancel()  # which changes nothing
        asked.release.set()
        text = (await desk.once(invoice, lambda status: not status.is_open)).to_text()
        assert "status: Cancelled. Paid: 1 of 2 lines, $5,000.00 of $7,000.00. It was st" in text
        assert stand_in.charged(invoice.id) == [f"invoice-{invoice.id}/line-1"]
        with closing(SQLiteLedger(tmp_path / "payments.db", read_only=True)) as ledger:
            assert await audit.audit(InvoiceRuns(desk.temporal), ledger, lambda row: None) == 0


async def test_what_a_terminated_run_has_left_open_is_known_to_the_next_submission(
    namespace: Namespace, stand_in: StripeStandIn, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with worker_here(namespace.address, tmp_path, **stand_in.settings):
        lines = [{"item": "Hosting", "amount": "5.00"}]
        invoices: list[Invoice] = []
        kinds: list[FaultKind] = ["drop after", "drop before"]
        for kind in kinds:
            stand_in.faults.clear()
            stand_in.lay(Fault("confirm", kind))
            for _ in range(10):
                stand_in.lay(Fault("confirm", 500))
            invoices.append(await desk.submit_and_approve(**TERMS, lines=lines))
            await desk.once(invoices[-1], lambda status: status.retry)
            await desk.handle(invoices[-1]).terminate()
        stand_in.faults.clear()
        told = []
        for invoice in invoices:
            await desk.client.submit(invoice)
            told.append((await desk.until(invoice, "waiting")).to_text())
        assert "1 of 1 line paid earlier, $5.00" in told[0]
        assert "nothing has been paid" in told[1]
        for invoice in invoices:
            await desk.approve(invoice)
            await desk.until(invoice, "completed")
            assert len(stand_in.charged(invoice.id)) == 1


WITHOUT = """
import os, sys
sys.modules[sys.argv.pop()] = None  # as if it was not installed
sys.path.insert(0, {root!r})
import worker
status = worker.main()
sys.stderr.flush()
os._exit(status)
"""


@pytest.mark.parametrize(
    ("module", "setting", "extra"),
    [
        ("stripe", {"PAYMENT_GATEWAY": "stripe", "STRIPE_API_KEY": "sk_test_x"}, "stripe"),
        ("psycopg", {"PAYMENT_LEDGER_URL": "postgresql://u:secret@h/d"}, "postgres"),
        ("psycopg_pool", {"PAYMENT_LEDGER_URL": "postgresql://u:secret@h/d"}, "postgres"),
    ],
)
def test_a_missing_extra_is_named_at_the_start(
    module: str, setting: dict[str, str], extra: str, tmp_path: Path
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(root=str(ROOT)), module],
        env={**os.environ, "INVOICE_DATA_DIR": str(tmp_path), **setting},
        capture_output=True,
        text=True,
        timeout=30,
    )
    [line] = process.stderr.splitlines()
    assert f"uv run --extra {extra} worker.py" in line
    assert "secret" not in line
    assert process.returncode == 1


async def test_an_invoice_without_a_customer_fails_at_its_start_with_stripe(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    settings = {"PAYMENT_GATEWAY": "stripe", "STRIPE_API_KEY": "sk_test_ok"}
    async with worker_here(
        namespace.address, tmp_path, **settings, STRIPE_API_BASE="http://x.invalid"
    ):
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
            assert "this submission paid nothing" in text


async def test_an_answer_that_no_worker_was_asked_for_does_not_promise_that_it_can_be_paid(
    namespace: Namespace, stand_in: StripeStandIn, tmp_path: Path
) -> None:
    async with (
        Worker(namespace.address, tmp_path, **stand_in.settings),
        tools_in_memory(namespace.address) as tools,
    ):
        checked = await tools("process_invoice", invoice_data=an_invoice(**TERMS))
        invoice = an_invoice()
        told = await tools("process_invoice", invoice_data=invoice)
        caveat = "No worker has checked it yet. If it can't be paid, its status says why."
        assert caveat in told
        assert caveat not in checked
        text = (await tools.until(invoice, "failed"))["message"]
        assert "Invalid invoice: customer: is required, since Stripe pays" in text
