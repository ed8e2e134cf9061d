"""Paying one line of an invoice, once.

`PaymentGateway` is what a real payment provider has to look like here; `SimulatedGateway` pays
nobody and keeps a ledger. To put a real one in its place, write a class with `pay` and return an
instance of it from `activities.gateway`: hand `Payment.idempotency_key` through to the provider
(Stripe calls it `Idempotency-Key`, many banks end-to-end id), and raise the three errors below.
"""

import os
import sqlite3
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from invoices.wording import format_money


@dataclass(frozen=True)
class Payment:
    """One line to pay. The same key must always come with the same other fields."""

    idempotency_key: str
    """`invoice-{id}/line-{n}`, n counted from 1."""
    invoice_id: str
    item: str
    amount: Decimal
    currency: str

    def __str__(self) -> str:
        return f"{self.item!r} for {format_money(self.amount, self.currency)}"


@dataclass(frozen=True)
class Confirmation:
    """The gateway's word that a payment has been made."""

    reference: str
    paid_at: datetime


class GatewayUnavailable(Exception):
    """The gateway can't be reached, or doesn't know what became of the payment: try again."""


class PaymentDeclined(Exception):
    """The gateway refuses this payment for good; nothing was paid."""


class PaymentConflict(Exception):
    """A different payment was already made under the same idempotency key; nothing was paid."""


class PaymentGateway(Protocol):
    """Pays a line at most once for each idempotency key.

    `pay` runs in a thread and must return well within the activity's 30 s. Called again with the
    same payment, as happens after a crash, it returns the first confirmation.

    Raises:
        GatewayUnavailable: to be called again later.
        PaymentDeclined, PaymentConflict: not to be called again.
    """

    def pay(self, payment: Payment) -> Confirmation: ...


def decline_limit() -> Decimal | None:
    """`INVOICE_DECLINE_OVER`: the simulated gateway declines any amount above it.

    Raises:
        ValueError: it is no amount.
    """
    text = os.environ.get("INVOICE_DECLINE_OVER", "")
    try:
        limit = Decimal(text) if text else None
    except InvalidOperation:
        limit = Decimal("NaN")
    if limit is not None and not limit.is_finite():
        raise ValueError(f"INVOICE_DECLINE_OVER must be an amount such as 1000.00, not {text!r}")
    return limit


class SimulatedGateway:
    """Records payments in `payments.db` instead of making them: one row a key, for ever.

    Any number of threads and processes on one machine may share the ledger. A payment is confirmed
    when its row is on disk (SQLite's `synchronous=FULL`).

    While a file `gateway-down` lies in the data directory the gateway is unavailable.
    """

    def __init__(self, directory: Path, decline_over: Decimal | None = None) -> None:
        """Opens the ledger, and makes it where it is missing.

        Raises:
            sqlite3.Error: the ledger can't be opened or is no database.
        """
        self.ledger = directory / "payments.db"
        self._outage = directory / "gateway-down"
        self._decline_over = decline_over
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            self.ledger, timeout=10, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            """CREATE TABLE IF NOT EXISTS payments (
                idempotency_key TEXT PRIMARY KEY,
                invoice_id TEXT NOT NULL,
                item TEXT NOT NULL,
                amount TEXT NOT NULL,
                currency TEXT NOT NULL,
                reference TEXT NOT NULL,
                paid_at TEXT NOT NULL
            )"""
        )

    def pay(self, payment: Payment) -> Confirmation:
        if self._outage.exists():
            raise GatewayUnavailable("the payment gateway is unavailable")
        try:
            with self._lock, self._connection:  # commits, or rolls back on an error
                # IMMEDIATE takes the write lock before the look-up: two payers of a key queue.
                self._connection.execute("BEGIN IMMEDIATE")
                return self._first(payment) or self._pay_now(payment)
        except sqlite3.OperationalError as error:  # locked for too long, disk full
            raise GatewayUnavailable(f"the payment ledger is unavailable: {error}") from error

    def _first(self, payment: Payment) -> Confirmation | None:
        row = self._connection.execute(
            "SELECT invoice_id, item, amount, currency, reference, paid_at"
            " FROM payments WHERE idempotency_key = ?",
            (payment.idempotency_key,),
        ).fetchone()
        if row is None:
            return None
        invoice_id, item, amount, currency, reference, paid_at = row
        first = Payment(payment.idempotency_key, invoice_id, item, Decimal(amount), currency)
        if first != payment:
            raise PaymentConflict(
                f"{payment.idempotency_key} was already paid as {first} on {paid_at}"
                f" and can't be paid as {payment}"
            )
        return Confirmation(reference, datetime.fromisoformat(paid_at))

    def _pay_now(self, payment: Payment) -> Confirmation:
        if self._decline_over is not None and payment.amount > self._decline_over:
            limit = format_money(self._decline_over, payment.currency)
            raise PaymentDeclined(f"declined: above the limit of {limit}")
        confirmation = Confirmation(f"simulated-{uuid4()}", datetime.now(UTC))
        self._connection.execute(
            "INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                payment.idempotency_key,
                payment.invoice_id,
                payment.item,
                str(payment.amount),
                payment.currency,
                confirmation.reference,
                confirmation.paid_at.isoformat(),
            ),
        )
        return confirmation
