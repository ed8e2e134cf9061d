"""A worker that pays through Stripe's stand-in."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

import audit
from invoice_client import InvoiceClient
from invoices.answers import InvoiceStatus
from invoices.invoice import Invoice, workflow_id
from payments.ledger import SQLiteLedger
from stripe_stand_in import Fault, FaultKind, StripeStandIn
from support import ROOT, Namespace, Worker, an_invoice, eventually


@pytest.fixture
def stand_in() -> Iterator[StripeStandIn]:
    with StripeStandIn() as stand_in:
        yield stand_in


def stripe_worker(namespace: Namespace, data: Path, stand_in: StripeStandIn, **env: str) -> Worker:
    settings = {
        "PAYMENT_GATEWAY": "stripe",
        "STRIPE_API_KEY": "sk_test_ok",
        "STRIPE_API_BASE": stand_in.url,
    }
    return Worker(namespace.address, data, ROOT / "worker.py", (), **{**settings, **env})


async def approved(client: Client, **fields: Any) -> dict[str, Any]:
    """An invoice that is being paid."""
    terms = {"customer": "cus_A", "payment_method": "pm_visa"}
    invoice = Invoice.model_validate(an_invoice(**terms, **fields))
    handle = await client.start_workflow(
        "InvoiceWorkflow",
        invoice.model_dump(mode="json"),
        id=workflow_id(invoice.id),
        task_queue="invoice-task-queue",
    )
    await handle.signal("approve_invoice")
    return invoice.model_dump(mode="json")


async def test_a_key_in_the_environment_moves_no_money(
    namespace: Namespace, stand_in: StripeStandIn, tmp_path: Path
) -> None:
    client = await namespace.connect()
    worker = await stripe_worker(namespace, tmp_path, stand_in, PAYMENT_GATEWAY="").start()
    invoice = await approved(client)
    assert await client.get_workflow_handle(workflow_id(invoice["id"])).result() == "COMPLETED"
    assert not stand_in.intents
    worker.kill()


async def reached(
    client: Client, invoice_id: str, condition: Callable[[InvoiceStatus], object]
) -> str:
    """The status text, once the status meets `condition`."""

    async def look_for() -> str | None:
        status = await InvoiceClient(client).get_status(invoice_id)
        return status.to_text() if condition(status) else None

    return await eventually(look_for)


async def test_what_was_charged_without_an_answer_is_told_by_the_run_that_was_cancelled(
    namespace: Namespace,
    stand_in: StripeStandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = await namespace.connect()
    worker = await stripe_worker(namespace, tmp_path, stand_in).start()
    stand_in.lay(Fault("confirm", "drop after"))
    for _ in range(10):
        stand_in.lay(Fault("confirm", 500))
    asked = stand_in.lay(Fault("cancel", "hold before"))
    invoice = await approved(client)
    handle = client.get_workflow_handle(workflow_id(invoice["id"]))
    await reached(client, invoice["id"], lambda status: status.retry)
    await handle.cancel()
    assert await asyncio.to_thread(asked.reached.wait, 20)
    await handle.cancel()  # which changes nothing
    asked.release.set()
    text = await reached(client, invoice["id"], lambda status: not status.is_open)
    assert "status: Cancelled. Paid: 1 of 2 lines, $5,000.00 of $7,000.00. It was stopped" in text
    assert stand_in.charged(invoice["id"]) == [f"invoice-{invoice['id']}/line-1"]
    with closing(SQLiteLedger(tmp_path / "payments.db", read_only=True)) as ledger:
        assert await audit.audit(InvoiceClient(client), ledger, lambda row: None) == 0
    worker.kill()


async def test_what_a_terminated_run_has_left_open_is_known_to_the_next_submission(
    namespace: Namespace, stand_in: StripeStandIn, tmp_path: Path
) -> None:
    client = await namespace.connect()
    worker = await stripe_worker(namespace, tmp_path, stand_in).start()
    lines = [{"item": "Hosting", "amount": "5.00"}]
    invoices = []
    kinds: list[FaultKind] = ["drop after", "drop before"]
    for kind in kinds:
        stand_in.faults.clear()
        stand_in.lay(Fault("confirm", kind))
        for _ in range(10):
            stand_in.lay(Fault("confirm", 500))
        invoices.append(await approved(client, lines=lines))
        await reached(client, invoices[-1]["id"], lambda status: status.retry)
        await client.get_workflow_handle(workflow_id(invoices[-1]["id"])).terminate()
    stand_in.faults.clear()
    told = []
    for invoice in invoices:
        await InvoiceClient(client).submit(Invoice.model_validate(invoice))
        told.append(await reached(client, invoice["id"], lambda status: status.state == "waiting"))
    assert "1 of 1 line paid earlier, $5.00" in told[0]
    assert "nothing of it is paid" in told[1]
    for invoice in invoices:
        await InvoiceClient(client).decide(invoice["id"], approve=True)
        await reached(client, invoice["id"], lambda status: status.state == "completed")
        assert len(stand_in.charged(invoice["id"])) == 1
    worker.kill()


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
