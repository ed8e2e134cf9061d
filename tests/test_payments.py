"""The ledger and the simulated gateway: one payment a key, for ever."""

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC
from decimal import Decimal
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import activities
from payments import (
    GatewayUnavailable,
    Payment,
    PaymentConflict,
    PaymentDeclined,
    SimulatedGateway,
    decline_limit,
)
from startup import data_directory
from support import ROOT, payments

PAYMENT = Payment("invoice-INV-1/line-1", "INV-1", "Hosting", Decimal("19.99"), "USD")


def test_a_payment_is_in_the_ledger_with_its_exact_amount(tmp_path: Path) -> None:
    SimulatedGateway(tmp_path).pay(PAYMENT)
    assert payments(tmp_path) == {"invoice-INV-1/line-1": ("Hosting", "19.99", "USD")}


def test_the_same_payment_again_returns_the_first_confirmation(tmp_path: Path) -> None:
    first = SimulatedGateway(tmp_path).pay(PAYMENT)
    assert first.paid_at.tzinfo == UTC
    assert SimulatedGateway(tmp_path).pay(PAYMENT) == first


@pytest.mark.parametrize(
    "change", [{"amount": Decimal("20.00")}, {"currency": "EUR"}, {"item": "Other"}]
)
def test_a_different_payment_under_the_same_key_is_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    gateway = SimulatedGateway(tmp_path)
    gateway.pay(PAYMENT)
    other = replace(PAYMENT, **change)  # type: ignore[arg-type]
    with pytest.raises(PaymentConflict) as refusal:
        gateway.pay(other)
    assert str(PAYMENT) in str(refusal.value)
    assert str(other) in str(refusal.value)
    assert len(payments(tmp_path)) == 1


def test_threads_that_pay_one_key_get_one_confirmation(tmp_path: Path) -> None:
    gateway = SimulatedGateway(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        confirmations = set(pool.map(gateway.pay, [PAYMENT] * 50))
    assert len(confirmations) == 1


PAY_A_HUNDRED = """
import sys
from decimal import Decimal
from pathlib import Path
from payments import Payment, SimulatedGateway

gateway = SimulatedGateway(Path(sys.argv[1]))
for line in range(100):
    payment = Payment(f"invoice-INV-1/line-{line}", "INV-1", "Hosting", Decimal("19.99"), "USD")
    print(gateway.pay(payment).reference)
"""


def test_processes_share_the_ledger_without_lock_errors(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PAY_A_HUNDRED, str(tmp_path)]
    payers = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    references = [payer.communicate(timeout=60)[0] for payer in payers]
    assert references[0] == references[1] == references[2]
    assert len(payments(tmp_path)) == 100


def test_the_gateway_is_unavailable_while_the_file_is_there(tmp_path: Path) -> None:
    gateway = SimulatedGateway(tmp_path)
    (tmp_path / "gateway-down").touch()
    with pytest.raises(GatewayUnavailable):
        gateway.pay(PAYMENT)
    (tmp_path / "gateway-down").unlink()
    assert gateway.pay(PAYMENT)


def test_an_amount_above_the_limit_is_declined_and_not_recorded(tmp_path: Path) -> None:
    gateway = SimulatedGateway(tmp_path, decline_over=Decimal("19.98"))
    with pytest.raises(PaymentDeclined, match=r"above the limit of \$19\.98"):
        gateway.pay(PAYMENT)
    assert not payments(tmp_path)


def test_an_amount_at_the_limit_is_paid(tmp_path: Path) -> None:
    assert SimulatedGateway(tmp_path, decline_over=Decimal("19.99")).pay(PAYMENT)


def test_what_is_paid_is_not_declined_later(tmp_path: Path) -> None:
    first = SimulatedGateway(tmp_path).pay(PAYMENT)
    assert SimulatedGateway(tmp_path, decline_over=Decimal(1)).pay(PAYMENT) == first


def test_a_ledger_locked_for_too_long_is_an_outage_and_not_an_end(tmp_path: Path) -> None:
    gateway = SimulatedGateway(tmp_path)
    gateway._connection.execute("PRAGMA busy_timeout=10")
    other = SimulatedGateway(tmp_path)
    other._connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(GatewayUnavailable, match="locked"):
        gateway.pay(PAYMENT)
    other._connection.execute("ROLLBACK")
    assert gateway.pay(PAYMENT)


def test_commits_are_synchronised_in_full(tmp_path: Path) -> None:
    connection = SimulatedGateway(tmp_path)._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_the_data_directory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOICE_DATA_DIR", str(tmp_path / "new" / "data"))
    assert stat.S_IMODE(data_directory().stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["much", "NaN", "Infinity"])
def test_a_limit_that_is_no_amount_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOICE_DECLINE_OVER", text)
    with pytest.raises(ValueError, match="INVOICE_DECLINE_OVER must be an amount"):
        decline_limit()


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedGateway:
    gateway = SimulatedGateway(tmp_path)
    monkeypatch.setattr(activities, "gateway", lambda: gateway)
    return gateway


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"item": "Hosting", "amount": 5000.00}, "Processed payment for Hosting: $5000.0"),
        ({"item": "Hosting", "amount": "19.99"}, "Processed payment for Hosting: $19.99"),
        ({"item": "A", "amount": "5.00", "currency": "EUR"}, "Processed payment for A: EUR 5.00"),
        ({}, "Processed payment for Unknown: $0.0"),
    ],
)
async def test_the_activity_answers_as_the_tutorials(
    line: dict[str, object], text: str, gateway: SimulatedGateway
) -> None:
    assert await ActivityEnvironment().run(activities.process_payment, line) == text


@pytest.mark.parametrize("amount", ["much", "NaN", -5, None, [1]])
async def test_the_activity_refuses_what_is_no_amount(
    amount: object, gateway: SimulatedGateway, tmp_path: Path
) -> None:
    with pytest.raises(ApplicationError, match="amount: must be a number") as refusal:
        await ActivityEnvironment().run(activities.process_payment, {"amount": amount})
    assert refusal.value.non_retryable
    assert not payments(tmp_path)
