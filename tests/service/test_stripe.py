"""A worker that pays through Stripe's stand-in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stripe_stand_in import TERMS, StripeStandIn
from support import ROOT, Desk, Namespace, Worker, an_invoice


@pytest.fixture
def stand_in() -> Iterator[StripeStandIn]:
    with StripeStandIn() as stand_in:
        yield stand_in


async def test_a_key_in_the_environment_moves_no_money(
    namespace: Namespace, stand_in: StripeStandIn, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    settings = {**stand_in.settings, "PAYMENT_GATEWAY": ""}
    async with Worker(namespace.address, tmp_path, **settings):
        invoice = await desk.submit_and_approve(**TERMS)
        assert await desk.handle(invoice).result() == "COMPLETED"
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
