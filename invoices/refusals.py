"""Refusals: what can't be done with an invoice, and what can be done instead."""

from decimal import Decimal

from invoices.answers import InvoiceStatus
from invoices.invoice import WORKFLOW_ID_PREFIX, Invoice, invoice_id_of
from invoices.wording import format_money, format_utc, sanitized


class InvoiceError(Exception):
    """Why something can't be done with an invoice and what can be, in words for a person."""


def unknown_invoice(invoice_id: str) -> InvoiceError:
    text = f"There is no invoice {invoice_id}; list_invoices shows the ones there are."
    if invoice_id.startswith(WORKFLOW_ID_PREFIX):
        text += (
            f" {invoice_id} looks like a workflow id: the invoice's own id is"
            f" {invoice_id_of(invoice_id)}."
        )
    return InvoiceError(text)


def expect_before_deadline(status: InvoiceStatus, approve: bool) -> None:
    """Raises `InvoiceError` for a decision on a waiting invoice whose deadline has passed."""
    verb = "approved" if approve else "rejected"
    if status.deadline and status.is_past_deadline:
        raise InvoiceError(
            f"Invoice {status.invoice_id} can't be {verb} now: its approval deadline,"
            f" {format_utc(status.deadline)}, has passed. Unless somebody decided before, it times"
            " out, and nothing is paid by this submission. To start anew, submit it again then."
        )


def expect_total(invoice: Invoice, total: Decimal) -> None:
    """Raises `InvoiceError` unless `total` is exactly the invoice's."""
    if total != invoice.total:
        raise InvoiceError(
            f"Invoice {invoice.id} is for {format_money(invoice.total, invoice.currency)}, not"
            f" {format_money(total, invoice.currency)}. Nothing was approved: show the person every"
            " line and the total before they decide."
        )


def decided_otherwise(status: InvoiceStatus, approve: bool) -> InvoiceError:
    """Of a decision that can't take effect: where the invoice stands, and what can be done now."""
    if status.state == "failed" and status.closed_at is None:
        next_step = (
            f"The workflow {status.workflow_id} is open, but no invoice: terminate it in the Web"
            " UI."
        )
    elif approve:
        next_step = status.advice or "To start anew, submit it again."
    elif status.state == "paying":
        next_step = (
            f"To stop it before the next line, cancel the workflow {status.workflow_id} in the Web"
            " UI; what is paid stays paid."
        )
    else:
        next_step = status.paid
    verb = "approved" if approve else "rejected"
    decided = f" ({status.decided.rstrip('.')})" if status.decided else ""
    return InvoiceError(
        f"Invoice {status.invoice_id} can't be {verb} now, status:"
        f" {sanitized(status.status, 600)}{decided}. {next_step}"
    )
