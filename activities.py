"""The activities around the payments of an invoice: what was paid earlier, and paying a line."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from invoices.wording import currency_sign, sanitized
from notices import notify_url
from payments.gateway import (
    GatewayUnavailable,
    InvalidPayment,
    Payment,
    PaymentConflict,
    PaymentDeclined,
    PaymentGateway,
    pay_once,
)
from payments.ledger import Ledger, open_ledger
from payments.simulated import SimulatedGateway, decline_limit
from settings import read_setting
from startup import StartupError, data_directory


@cache
def open_payments() -> tuple[PaymentGateway, Ledger]:
    """What pays and where it is written down, one of each for the process.

    `PAYMENT_GATEWAY` is `simulated`, the default, or `stripe`.

    Raises:
        StartupError: one of them, or its settings, can't be used.
    """
    directory = data_directory()
    gateway: PaymentGateway
    match read_setting("PAYMENT_GATEWAY"):
        case "simulated":
            gateway = SimulatedGateway(directory, decline_limit())
        case "stripe":
            # The SDK is an extra, large, and slow to import: only where it is chosen.
            try:
                from payments.stripe_gateway import open_stripe
            except ImportError:
                raise StartupError(
                    "PAYMENT_GATEWAY=stripe needs Stripe's SDK: uv run --extra stripe worker.py"
                ) from None
            gateway = open_stripe()
        case other:
            raise StartupError(f"PAYMENT_GATEWAY must be simulated or stripe, not {other!r}.")
    return gateway, open_ledger(directory)


class WrongLedger(Exception):
    """The invoice belongs to another ledger than this worker's."""


@activity.defn
async def payments_made(invoice: dict[str, Any]) -> dict[str, Any]:
    """What the ledger holds as paid of `invoice`, also lines that it no longer has.

    Takes the JSON of a validated invoice, and in `ledger` the id of the one it belongs to if that
    is known. Returns the id of the `ledger`, the `lines` (for each its number as `line`, `item`,
    `amount`, `currency`, `provider`, `reference` and, in ISO 8601, `at`), and `notify` if this
    worker has an `INVOICE_NOTIFY_URL`.

    Raises:
        ApplicationError: of type `InvalidInvoice`, not to be retried, where this worker's gateway
            can never pay a line; `GatewayUnavailable` or `WrongLedger`, to be retried, where the
            ledger is away or another.
    """
    gateway, ledger = open_payments()
    invoice_id = str(invoice["id"])
    key = f"invoice-{invoice_id}/line-"
    with _as_application_errors(invoice_id):
        _expect_ledger(ledger, invoice.get("ledger"))
        for number, line in enumerate(invoice["lines"], start=1):
            try:
                gateway.check(_payment(f"{key}{number}", invoice_id, line, invoice))
            except InvalidPayment as error:
                of_line = error.field in {"item", "amount"}
                field = f"lines[{number - 1}].{error.field}" if of_line else error.field
                raise InvalidPayment(field, error.rule) from error
        entries = await asyncio.to_thread(ledger.paid, invoice_id)
    lines = [
        {
            "line": int(match[1]),
            "item": entry.payment.item,
            "amount": str(entry.payment.amount),
            "currency": entry.payment.currency,
            "provider": entry.provider,
            "reference": entry.reference,
            "at": entry.at.isoformat(),
        }
        for entry in entries
        if (match := re.fullmatch(f"{re.escape(key)}([0-9]+)", entry.payment.idempotency_key))
    ]
    found: dict[str, Any] = {"ledger": ledger.id, "lines": lines}
    found["lines"].sort(key=lambda line: line["line"])
    if notify_url():
        found["notify"] = True
    return found


@activity.defn
async def process_payment(line_item: dict[str, Any]) -> str:
    """Pays `line_item`: its `item`, `amount` and `currency`.

    Optional: the `customer` who is charged, the `payment_method`, and the id of the `ledger` that
    the invoice belongs to, without which nothing is paid.

    A line is known by the workflow and the activity id, which stay the same in every attempt and in
    every later run for this invoice; so it is paid once, however often this runs.

    Raises:
        ApplicationError: of type `GatewayUnavailable` or `WrongLedger`, for Temporal to retry;
            `PaymentDeclined`, `PaymentConflict` or `InvalidInvoice`, not to be retried.
    """
    gateway, ledger = open_payments()
    info = activity.info()
    assert info.workflow_id is not None, "paid by a workflow, never on its own"
    invoice_id = info.workflow_id.removeprefix("invoice-")
    what = f"{invoice_id} {info.activity_id}"
    with _as_application_errors(what):
        payment = _payment(
            f"{info.workflow_id}/{info.activity_id}", invoice_id, line_item, line_item
        )
        sign = currency_sign(payment.currency)
        activity.logger.info(
            "Processing payment: %s - %s%s (%s)",
            sanitized(payment.item, 200),
            sign,
            payment.amount,
            what,
        )
        _expect_ledger(ledger, line_item.get("ledger"))
        # In a thread: a gateway may block, and the event loop carries every other invoice.
        await asyncio.to_thread(pay_once, gateway, ledger, payment)
    return f"Processed payment for {payment.item}: {sign}{payment.amount}"


def _expect_ledger(ledger: Ledger, of_invoice: object) -> None:
    if of_invoice not in (None, ledger.id):
        raise WrongLedger(
            f"the invoice belongs to the payment ledger {str(of_invoice)[:8]}, and this worker"
            f" keeps {ledger.id[:8]} in {ledger.name}: start a worker with the data directory"
            " or PAYMENT_LEDGER_URL that the invoice began with"
        )


@contextmanager
def _as_application_errors(what: str) -> Iterator[None]:
    """Foreseen errors as Temporal is to see them, with a line in the log."""
    try:
        yield
    except (
        GatewayUnavailable,
        WrongLedger,
        PaymentDeclined,
        PaymentConflict,
        InvalidPayment,
    ) as error:
        attempt = activity.info().attempt
        activity.logger.warning("%s: attempt %s failed: %s", what, attempt, error)
        raise ApplicationError(
            str(error),
            type="InvalidInvoice" if isinstance(error, InvalidPayment) else type(error).__name__,
            non_retryable=not isinstance(error, GatewayUnavailable | WrongLedger),
            category=ApplicationErrorCategory.BENIGN,  # foreseen: no traceback in the log
        ) from error


def _payment(key: str, invoice_id: str, line: dict[str, Any], terms: dict[str, Any]) -> Payment:
    """`terms` has what an invoice says for all of its lines.

    Our workflow has checked all of it; another one that calls the activity may not have.
    """

    def text(field: str, value: object) -> str:
        if re.search("[\0\ud800-\udfff]", str(value)):  # which a ledger can't store
            raise InvalidPayment(field, "must be text without NUL or half characters")
        return str(value)

    def optional(field: str) -> str | None:
        return text(field, terms[field]) if terms.get(field) is not None else None

    return Payment(
        key,
        invoice_id,
        text("item", line.get("item", "Unknown")),
        _amount(line.get("amount", "0.0")),
        optional("currency") or "USD",
        optional("customer"),
        optional("payment_method"),
    )


def _amount(value: Any) -> Decimal:
    # Bounded, since a whole number of a million digits (1e999999) takes minutes to make.
    with suppress(InvalidOperation):
        amount = Decimal(str(value))
        if amount.is_finite() and 0 <= amount < 10**13:
            return amount
    raise InvalidPayment(
        "amount", f"must be a number, not negative, instead of {sanitized(str(value))}"
    )
