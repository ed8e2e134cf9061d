"""Paying one line of an invoice, once.

A provider forgets an idempotency key (Stripe after 24 hours), so a key alone can't guard an invoice
that waits for days. What a provider keeps for ever is the payment it has prepared: it is made at
most once, however often and however late it is asked for. So a payment is prepared first, which
moves no money, its reference is written into the ledger, and only then is that reference paid.
"""

from dataclasses import replace
from datetime import UTC, datetime

from payments.gateway import (
    LedgerEntry,
    Payment,
    PaymentConflict,
    PaymentDeclined,
    PaymentGateway,
    expect_gateway,
)
from payments.ledger import Ledger


def pay_once(gateway: PaymentGateway, ledger: Ledger, payment: Payment) -> LedgerEntry:
    """Pays, or finds out what became of an earlier attempt; any number may overlap.

    Returns the entry of the ledger that is paid.

    Whether an attempt was paid is never guessed: it stays begun, and is paid again under the same
    reference, until the provider says so.

    Raises:
        GatewayUnavailable: to be called again later; the payment may have been made.
        WrongGateway: another line of the invoice, or this one, was begun through another gateway.
        PaymentDeclined: this attempt is over; a later call begins another.
        PaymentConflict: the key belongs to another payment.
        InvalidPayment: the provider can never make it.
    """
    expect_gateway(gateway, ledger.providers(payment.invoice_id))
    entry = ledger.latest(payment.idempotency_key)
    if entry is None or entry.state != "paid":
        gateway.check(payment)
    if entry is None or entry.state == "declined":
        entry = _begin(gateway, ledger, payment, entry.attempt + 1 if entry else 1)
    if entry.state != "declined":
        expect_gateway(gateway, {entry.provider})  # another payer may have been first
        _expect_same(entry, payment)
    if entry.state == "begun":
        entry = _pay(gateway, ledger, entry, payment)
    if entry.state == "declined":
        raise PaymentDeclined("declined in another attempt at the same time")
    return entry


def _begin(gateway: PaymentGateway, ledger: Ledger, payment: Payment, attempt: int) -> LedgerEntry:
    try:
        reference = gateway.prepare(payment, attempt)
    except PaymentDeclined:
        # On record, so that the next attempt has a number of its own: a provider may answer a
        # number that it knows with the old refusal.
        entry = LedgerEntry(payment, attempt, gateway.name, "", "declined", datetime.now(UTC))
        entry = ledger.add(entry)
        if entry.state == "declined":
            raise
        return entry
    return ledger.add(
        LedgerEntry(payment, attempt, gateway.name, reference, "begun", datetime.now(UTC))
    )


def _pay(
    gateway: PaymentGateway, ledger: Ledger, entry: LedgerEntry, payment: Payment
) -> LedgerEntry:
    try:
        gateway.pay(entry.reference, payment)
    except PaymentDeclined:
        entry = ledger.settle(replace(entry, state="declined", at=datetime.now(UTC)))
        if entry.state == "declined":
            raise
        return entry
    return ledger.settle(replace(entry, state="paid", at=datetime.now(UTC)))


def _expect_same(entry: LedgerEntry, payment: Payment) -> None:
    """Until it is paid, another card of the customer may be tried, but no other customer."""
    known = entry.payment
    same = replace(payment, payment_method=known.payment_method)
    if entry.state == "paid":
        same = replace(same, customer=known.customer)
    if same != known:
        raise PaymentConflict(
            f"{payment.idempotency_key} was already {entry.state} as {known}"
            f" on {entry.at:%Y-%m-%d %H:%M:%S} UTC and can't be paid as {payment}"
        )
