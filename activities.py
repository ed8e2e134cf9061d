"""The activity that pays one line of an invoice."""

import asyncio
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from invoices.wording import currency_sign, sanitized
from payments import (
    GatewayUnavailable,
    Payment,
    PaymentConflict,
    PaymentDeclined,
    PaymentGateway,
    SimulatedGateway,
    decline_limit,
)
from startup import data_directory

# The worker's log has one short line for each payment.
activity.logger.activity_info_on_message = False


@cache
def gateway() -> PaymentGateway:
    """What pays, one for the process. A real payment provider is put in here."""
    return SimulatedGateway(data_directory(), decline_limit())


@activity.defn
async def payments_made(invoice: dict[str, Any]) -> dict[str, Any]:
    """What the ledger holds as paid of `invoice`."""
    rows = (
        gateway()
        ._connection.execute(  # type: ignore[attr-defined]
            "SELECT idempotency_key, item, amount, currency FROM payments WHERE invoice_id = ?",
            (invoice["id"],),
        )
        .fetchall()
    )
    lines = [
        {"line": int(key.rpartition("-")[2]), "item": item, "amount": amount, "currency": currency}
        for key, item, amount, currency in rows
    ]
    return {"ledger": "0" * 32, "lines": lines}


@activity.defn
async def process_payment(line_item: dict[str, Any]) -> str:
    """Pays `line_item`: its `item`, `amount` and `currency`.

    A line is known by the workflow and the activity id, which stay the same in every attempt and in
    every later run for this invoice; so it is paid once, however often this runs.

    Raises:
        ApplicationError: of type `GatewayUnavailable`, for Temporal to retry; `PaymentDeclined` or
            `PaymentConflict`, not to be retried.
    """
    info = activity.info()
    assert info.workflow_id is not None, "paid by a workflow, never on its own"
    payment = Payment(
        idempotency_key=f"{info.workflow_id}/{info.activity_id}",
        invoice_id=info.workflow_id.removeprefix("invoice-"),
        item=str(line_item.get("item", "Unknown")),
        amount=_amount(line_item.get("amount", "0.0")),
        currency=line_item.get("currency", "USD"),
    )
    sign = currency_sign(payment.currency)
    what = f"{payment.invoice_id} {info.activity_id}"
    activity.logger.info(
        "Processing payment: %s - %s%s (%s)",
        sanitized(payment.item, 200),
        sign,
        payment.amount,
        what,
    )
    try:
        # In a thread: a gateway may block, and the event loop carries every other invoice.
        await asyncio.to_thread(gateway().pay, payment)
    except (GatewayUnavailable, PaymentDeclined, PaymentConflict) as error:
        activity.logger.warning("%s: attempt %s failed: %s", what, info.attempt, error)
        raise ApplicationError(
            str(error),
            type=type(error).__name__,
            non_retryable=not isinstance(error, GatewayUnavailable),
            category=ApplicationErrorCategory.BENIGN,  # foreseen: no traceback in the log
        ) from error
    return f"Processed payment for {payment.item}: {sign}{payment.amount}"


def _amount(value: Any) -> Decimal:
    """Our workflow has checked it; another one that calls this activity may not have."""
    with suppress(InvalidOperation):
        amount = Decimal(str(value))
        if amount.is_finite() and amount >= 0:
            return amount
    raise ApplicationError(
        f"amount: must be a number, not negative, instead of {sanitized(str(value))}",
        type="InvalidInvoice",
        non_retryable=True,
    )
