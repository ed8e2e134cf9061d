"""The interface to a payment provider, with its data and its errors."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
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
class LedgerEntry:
    """One attempt to pay a line: a row of the ledger."""

    payment: Payment
    attempt: int
    """Counted from 1. A line gets another attempt only after a decline."""
    provider: str
    reference: str
    """Empty if the provider declined before it gave one."""
    state: Literal["begun", "paid", "declined"]
    at: datetime
    """When it entered this state."""
    ledger: str = field(default="", compare=False, repr=False)
    """The id of the ledger that it was read from; empty if it wasn't read from one."""


class GatewayUnavailable(Exception):
    """The provider or the ledger can't be reached, or can't say what became of the payment. Try
    again."""


class PaymentDeclined(Exception):
    """The provider has declined this attempt for good; nothing was paid."""


class PaymentConflict(Exception):
    """Another payment was begun or made under the same idempotency key; nothing was paid now."""


class WrongGateway(Exception):
    """The invoice is paid through a different gateway from this worker's; nothing was paid now."""


class InvalidPayment(Exception):
    """The provider can never make this payment, because one of its fields breaks a rule."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class PaymentGateway(Protocol):
    """What `pay_once` needs of a payment provider.

    The provider must be able to pay in two steps: `prepare` returns a reference without moving
    money, and `pay` pays that reference. A reference must stay valid as long as the ledger keeps
    its row. It must be paid at most once, however often `pay` is called, and never after a decline.
    A provider that can only pay in one step isn't suitable. Neither are bank debits, because a
    repeated request would debit the account again.

    The methods run in threads and must return well within the 30 s of the activity.

    Raises:
        GatewayUnavailable: from `prepare`, `pay` and `stop`, which can be called again later.
        PaymentDeclined: from `prepare` and `pay`; the decline is final.
        PaymentConflict: from `prepare`, if the provider has a different payment with this key.
    """

    @property
    def name(self) -> str:
        """Recorded in the ledger. Test mode and live mode need different names."""

    def check(self, payment: Payment) -> None:
        """Validates the fields, without calling the provider.

        Raises:
            InvalidPayment: the provider can never make this payment.
        """

    def prepare(self, payment: Payment, attempt: int) -> str:
        """Returns a reference to pay. Moves no money; an unused reference does no harm."""

    def pay(self, reference: str, payment: Payment) -> None:
        """Pays the reference. Does nothing if it is already paid."""

    def stop(self, reference: str) -> bool:
        """Returns whether the reference was paid. If it wasn't, it never will be after this.

        That includes a call of `pay` that is under way: it raises `PaymentDeclined`, or finds its
        attempt declined in the ledger.
        """


def expect_gateway(gateway: PaymentGateway, names: Iterable[str]) -> None:
    """Raises `WrongGateway` unless all `names` are this gateway's.

    All lines of an invoice are paid through the same gateway. Otherwise a worker that was restarted
    without PAYMENT_GATEWAY would pay the rest of a real invoice in the simulation.
    """
    if others := set(names) - {gateway.name}:
        raise WrongGateway(
            f"the invoice is paid through {sanitized(min(others), 40)}, and this worker pays"
            f" through {gateway.name}: start a worker with the PAYMENT_GATEWAY and key that the"
            " invoice began with; if no payment of it was begun, you can also cancel the invoice"
            " and submit it again"
        )
