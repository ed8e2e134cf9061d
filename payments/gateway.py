"""Paying one line of an invoice, once: `pay_once`, and what it needs of a provider and a ledger.

A provider forgets an idempotency key (Stripe after 24 hours), so a key alone can't guard an invoice
that waits for days. What a provider keeps for ever is the payment it has prepared: it is made at
most once, however often and however late it is asked for. So a payment is prepared first, which
moves no money, its reference is written into the ledger, and only then is that reference paid.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal, Protocol

from invoices.wording import format_money, sanitized


@dataclass(frozen=True)
class Payment:
    """One line to pay."""

    idempotency_key: str
    """`invoice-{id}/line-{n}`, n counted from 1."""
    invoice_id: str
    item: str
    amount: Decimal
    currency: str
    customer: str | None = None
    """Who is charged, in the provider's words."""
    payment_method: str | None = None
    """How the customer is charged, in the provider's words."""

    def __str__(self) -> str:
        customer = f" from {self.customer}" if self.customer else ""
        return f"{self.item!r} for {format_money(self.amount, self.currency)}{customer}"


@dataclass(frozen=True)
class Confirmation:
    """That a payment has been made."""

    reference: str
    """The provider's name for the payment."""
    paid_at: datetime


@dataclass(frozen=True)
class LedgerEntry:
    """One attempt to pay a line: a row of the ledger."""

    payment: Payment
    attempt: int
    """Counted from 1; there is another one only after a decline."""
    provider: str
    reference: str
    """Empty if the provider declined before it gave one."""
    state: Literal["begun", "paid", "declined"]
    at: datetime
    """When it came into this state."""


class GatewayUnavailable(Exception):
    """The provider or the ledger can't be reached, or doesn't know what became of the payment: try
    again."""


class PaymentDeclined(Exception):
    """The provider refuses this attempt for good; nothing was paid."""


class PaymentConflict(Exception):
    """Another payment was begun or made under the same idempotency key; nothing was paid now."""


class WrongGateway(Exception):
    """The invoice is paid through another gateway than this worker's; nothing was paid now."""


class InvalidPayment(Exception):
    """The provider can never make this payment, because of one field of it."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class PaymentGateway(Protocol):
    """A payment provider, as `pay_once` needs it.

    It must be able to pay in two steps: `prepare` gives a reference without moving money, and that
    reference keeps its identity as long as the ledger keeps its row. Whatever is asked of it later,
    it is paid at most once, and once declined, never. A provider that can only be told to pay at
    once doesn't fit, nor do bank debits, which a second request debits again.

    The methods run in threads and must return well within the 30 s of the activity.

    Raises:
        GatewayUnavailable: by `prepare` and `pay`; to be called again later.
        PaymentDeclined: by `prepare` and `pay`; for good.
        PaymentConflict: by `prepare`, if the provider knows another payment by the same key.
    """

    @property
    def name(self) -> str:
        """Kept in the ledger; differs where references mean something else, as in a test mode."""

    def check(self, payment: Payment) -> None:
        """Looks at the fields alone, without asking the provider.

        Raises:
            InvalidPayment: the provider can never make this payment.
        """

    def prepare(self, payment: Payment, attempt: int) -> str:
        """The reference to pay. Moves no money; one that is never paid does no harm."""

    def pay(self, reference: str, payment: Payment) -> None:
        """Returns once the reference is paid, now or earlier."""


class PaymentLedger(Protocol):
    """Every attempt to pay, for ever. Each method is one statement, so none holds a lock between.

    Raises:
        GatewayUnavailable: the ledger can't be used now, or isn't the one that was opened.
    """

    @property
    def id(self) -> str:
        """Tells this ledger from every other one; 32 hexadecimal digits."""

    def latest(self, idempotency_key: str) -> LedgerEntry | None:
        """The entry with the highest attempt."""

    def add(self, entry: LedgerEntry) -> LedgerEntry:
        """The entry that stands: this one, or the one that another payer added first."""

    def settle(self, entry: LedgerEntry) -> LedgerEntry:
        """Puts a begun entry into the state and time of `entry`; returns the one that stands."""

    def paid(self, invoice_id: str) -> list[LedgerEntry]:
        """What was paid of an invoice."""

    def providers(self, invoice_id: str) -> set[str]:
        """Through which a payment of an invoice was begun or made. A declined one doesn't count."""


def pay_once(gateway: PaymentGateway, ledger: PaymentLedger, payment: Payment) -> Confirmation:
    """Pays, or finds out what became of an earlier attempt; any number may overlap.

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
    return Confirmation(entry.reference, entry.at)


def _begin(
    gateway: PaymentGateway, ledger: PaymentLedger, payment: Payment, attempt: int
) -> LedgerEntry:
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
    gateway: PaymentGateway, ledger: PaymentLedger, entry: LedgerEntry, payment: Payment
) -> LedgerEntry:
    try:
        gateway.pay(entry.reference, payment)
    except PaymentDeclined:
        entry = ledger.settle(replace(entry, state="declined", at=datetime.now(UTC)))
        if entry.state == "declined":
            raise
        return entry
    return ledger.settle(replace(entry, state="paid", at=datetime.now(UTC)))


def expect_gateway(gateway: PaymentGateway, names: Iterable[str]) -> None:
    """One invoice, one way of paying: raises `WrongGateway` unless all `names` are this gateway's.

    A setting that was left out at a restart would otherwise pay a live invoice in a simulation.
    """
    if others := set(names) - {gateway.name}:
        raise WrongGateway(
            f"the invoice is paid through {sanitized(min(others), 40)}, and this worker pays"
            f" through {gateway.name}: start a worker with the PAYMENT_GATEWAY and key that the"
            " invoice began with; if no payment of it was begun, you can also cancel its workflow"
            " and submit it again"
        )


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
