"""What paying a line needs of a payment provider: its gateway, and the words for both."""

from collections.abc import Iterable
from dataclasses import dataclass
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
    """Counted from 1; there is another one only after a decline."""
    provider: str
    reference: str
    """Empty if the provider declined before it gave one."""
    state: Literal["begun", "paid", "declined"]
    at: datetime
    """When it entered this state."""


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
        GatewayUnavailable: by `prepare`, `pay` and `stop`; to be called again later.
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

    def stop(self, reference: str) -> bool:
        """Whether the reference was paid. If it wasn't, it never will be, also by a `pay` that is
        under way: that raises `PaymentDeclined`, or finds its attempt declined in the ledger.
        """


def expect_gateway(gateway: PaymentGateway, names: Iterable[str]) -> None:
    """One invoice, one way of paying: raises `WrongGateway` unless all `names` are this gateway's.

    A setting that was left out at a restart would otherwise pay a live invoice in a simulation.
    """
    if others := set(names) - {gateway.name}:
        raise WrongGateway(
            f"the invoice is paid through {sanitized(min(others), 40)}, and this worker pays"
            f" through {gateway.name}: start a worker with the PAYMENT_GATEWAY and key that the"
            " invoice began with; if no payment of it was begun, you can also cancel the invoice"
            " and submit it again"
        )
