"""A worker that pays through Stripe's stand-in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from invoices.invoice import Invoice, workflow_id
from stripe_stand_in import StripeStandIn
from support import ROOT, Namespace, Worker, an_invoice


@pytest.fixture
def stand_in() -> Iterator[StripeStandIn]:
    with StripeStandIn() as stand_in:
        yield stand_in


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
    settings = {**stand_in.settings, "PAYMENT_GATEWAY": ""}
    async with Worker(namespace.address, tmp_path, **settings):
        invoice = await approved(client)
        assert await client.get_workflow_handle(workflow_id(invoice["id"])).result() == "COMPLETED"
        assert not stand_in.intents


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
