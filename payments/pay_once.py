"""Pays a line of an invoice exactly once, and finds out for certain whether it was paid.

A provider forgets an idempotency key after a while (Stripe after 24 hours), so a key alone doesn't
protect an invoice that waits for days. But a provider keeps a payment that was prepared, and makes
it at most once, however often and however late that is requested. So this module first prepares a
payment, which moves no money, then writes its reference to the ledger, and only then pays it.
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
    """Pays a line, or finishes an earlier attempt to pay it. Calls may overlap.

    This never guesses whether an attempt was paid. Until the provider says so, the attempt stays
    `begun`, and the next call pays the same reference again.

    Args:
        attempt: the number of the only attempt that may be begun or continued; by default the
            latest, or the next one after a decline. So a worker that was frozen until its run was
            over finds the attempt declined, and doesn't begin another one.

    Returns:
        The ledger's entry of the payment, with the state `paid`.

    Raises:
        GatewayUnavailable: call this again later; the payment may have been made.
        WrongGateway: this line or another one of the invoice was begun through another gateway.
        PaymentDeclined: this attempt has ended unpaid. The line can be paid by a later attempt.
        PaymentConflict: the key belongs to another payment.
        InvalidPayment: the provider can never make this payment.
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
        expect_gateway(gateway, {entry.provider})  # another call may have been first
        _expect_same(entry, payment)
    if entry.state == "begun":
        entry = _pay(gateway, ledger, entry, payment)
    if entry.state == "declined":
        raise PaymentDeclined("declined in another attempt at the same time")
    return entry


def was_paid(
    gateway: PaymentGateway, ledger: Ledger, payment: Payment, attempt: int | None = None
) -> bool:
    """Whether a line was paid by a call of `pay_once` that ended without a result.

    If it wasn't, that attempt never will pay it. An attempt that hasn't begun is recorded as
    declined, so that a worker that was frozen just before beginning it can't pay.

    Args:
        attempt: as for `pay_once`. Other attempts aren't changed.

    Raises:
        GatewayUnavailable: call this again later; it isn't known yet.
        WrongGateway: the attempt was begun through another gateway.
        PaymentConflict: another payment was made with this key.
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
    """Settles all attempts to pay lines of an invoice, and returns them.

    The runs that began them must be closed.

    Raises:
        GatewayUnavailable: call this again later; the outcome of an attempt isn't known yet, or it
            was begun after `until` and so may still be under way.
        WrongGateway: an attempt was begun through another gateway.
    """
    entries = ledger.entries(invoice_id)
    if any(entry.state == "begun" and entry.at >= until for entry in entries):
        raise GatewayUnavailable("a payment of the invoice is under way")
    return [_settle(gateway, ledger, entry) for entry in entries]


def _is_over(attempt: int, entry: LedgerEntry) -> bool:
    """Whether `entry`, the latest one of the line, shows that `attempt` has ended unpaid."""
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
        # Recorded so that the next attempt gets a new number. For a number that it knows, a
        # provider may repeat the old answer.
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
    """Raises `PaymentConflict` if `entry` is for another payment.

    The card may differ. The customer may differ only if the line is already paid, because then
    nobody is charged.
    """
    known = entry.payment
    same = replace(payment, payment_method=known.payment_method)
    if entry.state == "paid":
        same = replace(same, customer=known.customer)
    if same != known:
        raise PaymentConflict(
            f"{payment.idempotency_key} was already {entry.state} as {known}"
            f" on {entry.at:%Y-%m-%d %H:%M:%S} UTC and can't be paid as {payment}"
        )
