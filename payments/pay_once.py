"""Paying one line of an invoice once, and finding out for good whether it was paid.

A provider forgets an idempotency key (Stripe after 24 hours), so a key alone can't guard an invoice
that waits for days. What a provider keeps for ever is the payment it has prepared: it is made at
most once, however often and however late it is asked for. So a payment is prepared first, which
moves no money, its reference is written into the ledger, and only then is that reference paid.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from payments.gateway import (
    GatewayUnavailable,
    LedgerEntry,
    Payment,
    PaymentConflict,
    PaymentDeclined,
    PaymentGateway,
    expect_gateway,
)
from payments.ledger import Ledger


def pay_once(
    gateway: PaymentGateway, ledger: Ledger, payment: Payment, attempt: int | None = None
) -> LedgerEntry:
    """Pays, or finds out what became of an earlier attempt; any number may overlap.

    Returns the entry of the ledger that is paid. `attempt` is the only one that may be begun or
    gone on with: a worker that was frozen and wakes up after its run is over finds it declined, and
    begins no other. None means the latest, or the next one after a decline.

    Whether an attempt was paid is never guessed: it stays begun, and is paid again under the same
    reference, until the provider says so.

    Raises:
        GatewayUnavailable: to be called again later; the payment may have been made.
        WrongGateway: another line of the invoice, or this one, was begun through another gateway.
        PaymentDeclined: this attempt is over; a later one is another.
        PaymentConflict: the key belongs to another payment.
        InvalidPayment: the provider can never make it.
    """
    expect_gateway(gateway, ledger.providers(payment.invoice_id))
    entry = ledger.latest(payment.idempotency_key)
    if entry is None or entry.state != "paid":
        gateway.check(payment)
    if entry and attempt and _is_over(attempt, entry):
        raise PaymentDeclined(
            f"declined: attempt {attempt} to pay this line has ended without a payment"
        )
    if entry is None or entry.state == "declined":
        entry = _begin(gateway, ledger, payment, attempt or _next_attempt(entry))
    if entry.state != "declined":
        expect_gateway(gateway, {entry.provider})  # another payer may have been first
        _expect_same(entry, payment)
    if entry.state == "begun":
        entry = _pay(gateway, ledger, entry, payment)
    if entry.state == "declined":
        raise PaymentDeclined("declined in another attempt at the same time")
    return entry


def was_paid(
    gateway: PaymentGateway, ledger: Ledger, payment: Payment, attempt: int | None = None
) -> bool:
    """Whether an attempt to pay was made, once its payer is given up; if not, it never will be.

    Also where it has not begun: a payer that was frozen before that finds it declined. `attempt` is
    as for `pay_once`, and another one isn't touched.

    Raises:
        GatewayUnavailable: to be called again later; it isn't known yet.
        WrongGateway: it was begun through another gateway.
        PaymentConflict: another payment was made under the key.
    """
    entry = ledger.latest(payment.idempotency_key)
    if entry is None or (entry.attempt < attempt if attempt else entry.state == "declined"):
        number = attempt or _next_attempt(entry)
        now = datetime.now(UTC)
        entry = ledger.add(LedgerEntry(payment, number, gateway.name, "", "declined", now))
    if attempt in (None, entry.attempt):
        entry = _settle(gateway, ledger, entry)
    if entry.state == "paid":
        _expect_same(entry, payment)
    return entry.state == "paid"


def settled_entries(
    gateway: PaymentGateway, ledger: Ledger, invoice_id: str, until: datetime
) -> list[LedgerEntry]:
    """Every attempt to pay a line of an invoice whose earlier runs are closed, each settled.

    Raises:
        GatewayUnavailable: to be called again later; one isn't known yet, or was begun after
            `until` and so may be under way.
        WrongGateway: one was begun through another gateway.
    """
    entries = ledger.entries(invoice_id)
    if any(entry.state == "begun" and entry.at >= until for entry in entries):
        raise GatewayUnavailable("a payment of the invoice is under way")
    return [_settle(gateway, ledger, entry) for entry in entries]


def _is_over(attempt: int, entry: LedgerEntry) -> bool:
    """Whether `entry`, the latest of its line, is of a later attempt or ends this one unpaid."""
    if entry.state == "declined":
        return entry.attempt >= attempt
    return entry.state == "begun" and entry.attempt > attempt


def _next_attempt(entry: LedgerEntry | None) -> int:
    return entry.attempt + 1 if entry else 1


def _settle(gateway: PaymentGateway, ledger: Ledger, entry: LedgerEntry) -> LedgerEntry:
    if entry.state != "begun":
        return entry
    expect_gateway(gateway, {entry.provider})
    was_made = gateway.stop(entry.reference)
    state: Literal["paid", "declined"] = "paid" if was_made else "declined"
    return ledger.settle(replace(entry, state=state, at=datetime.now(UTC)))


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
