"""A simulated payment provider, which moves no money."""

from decimal import Decimal, InvalidOperation
from pathlib import Path
from uuid import uuid4

from invoices.wording import format_money
from payments.gateway import GatewayUnavailable, Payment, PaymentDeclined
from settings import read_setting
from startup import StartupError


class SimulatedGateway:
    """Accepts every payment, or declines those above a limit. It doesn't remember any payment.

    So the ledger is the only record, and whoever settles an entry first decides its outcome.

    While there is a file `gateway-down` in the data directory, the gateway is unavailable.
    """

    name = "simulated"

    def __init__(self, directory: Path, decline_over: Decimal | None = None) -> None:
        self._outage = directory / "gateway-down"
        self._decline_over = decline_over

    def check(self, payment: Payment) -> None:
        pass

    def prepare(self, payment: Payment, attempt: int) -> str:
        self._expect_up()
        return f"simulated-{uuid4()}"

    def pay(self, reference: str, payment: Payment) -> None:
        self._expect_up()
        if self._decline_over is not None and payment.amount > self._decline_over:
            limit = format_money(self._decline_over, payment.currency)
            raise PaymentDeclined(f"declined: above the limit of {limit}")

    def stop(self, reference: str) -> bool:
        return False  # the ledger won't settle an entry as paid that was settled as declined

    def _expect_up(self) -> None:
        if self._outage.exists():
            raise GatewayUnavailable("the payment gateway is unavailable")


def decline_limit() -> Decimal | None:
    """`INVOICE_DECLINE_OVER`: the simulated gateway declines any amount above it.

    Raises:
        StartupError: it isn't an amount.
    """
    text = read_setting("INVOICE_DECLINE_OVER")
    try:
        limit = Decimal(text) if text else None
    except InvalidOperation:
        limit = Decimal("NaN")
    if limit is not None and not limit.is_finite():
        raise StartupError(f"INVOICE_DECLINE_OVER must be an amount such as 1000.00, not {text!r}.")
    return limit
