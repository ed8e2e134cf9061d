"""Refusals: what can't be done with an invoice, and what can be done instead."""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Self

from invoices.answers import InvoiceStatus
from invoices.approval_view import InvoiceView
from invoices.invoice import WORKFLOW_ID_PREFIX, Invoice, invoice_id_of, workflow_id
from invoices.wording import format_money, format_utc, sanitized

SHOWN_LINES = 20
"""How many lines a refusal names: the largest ones."""
CODE_LENGTH = 12


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


def id_not_allowed(rule: str) -> InvoiceError:
    """Of a new invoice whose id could be taken for another."""
    return InvoiceError(f"Nothing was done. invoice_data.id: {rule}.")


def content_not_allowed(rule: str) -> InvoiceError:
    """Of a new invoice that breaks a rule which older ones needn't follow."""
    return InvoiceError(f"Nothing was done. invoice_data: {rule}.")


def id_in_use_by_invoice(status: InvoiceStatus) -> InvoiceError:
    """Of an invoice whose id an open one with other content has."""
    return InvoiceError(
        f"The id {status.invoice_id} is in use by a different invoice: {status.amounts},"
        f" {sanitized(status.status, 600)}; nothing was changed. Use another id, or have that one"
        " rejected first."
    )


def id_in_use_by_workflow(invoice_id: str) -> InvoiceError:
    """Of an invoice whose id an open workflow has that isn't for an invoice."""
    return InvoiceError(
        f"The id {invoice_id} is in use by something that is no invoice: the workflow"
        f" {workflow_id(invoice_id)}. Nothing was started. Use another id, or terminate that"
        " workflow in the Web UI."
    )


def not_an_invoice(status: InvoiceStatus, workflow_type: str) -> InvoiceError:
    """Of an id under which Temporal has a workflow of another type."""
    return InvoiceError(
        f"The id {status.invoice_id} is in use by something that is no invoice: the workflow"
        f" {status.workflow_id} of type {sanitized(workflow_type)}."
    )


def already_paid(status: InvoiceStatus) -> InvoiceError:
    when = f" on {format_utc(status.closed_at)}" if status.closed_at else ""
    return InvoiceError(f"Invoice {status.invoice_id} was already paid{when}. Nothing was started.")


def failed_at_start(status: InvoiceStatus) -> InvoiceError:
    return InvoiceError(
        f"Invoice {status.invoice_id} failed at its start: {sanitized(status.status, 600)}."
        f" {status.paid} {status.advice}"
    )


def submitted_anew(invoice_id: str) -> InvoiceError:
    """Of a decision on a run that isn't the latest any more."""
    return InvoiceError(
        f"Invoice {invoice_id} was submitted anew a moment ago, so nothing was decided. Look at it"
        " before you decide on it."
    )


def content_unreadable(invoice_id: str) -> InvoiceError:
    return InvoiceError(
        f"The content of invoice {invoice_id} breaks the rules, so it can't be shown to a person."
        " Nothing was approved; reject it."
    )


def expect_before_deadline(status: InvoiceStatus, approve: bool) -> None:
    """Raises `InvoiceError` for a decision on a waiting invoice whose deadline has passed."""
    if status.deadline and status.is_past_deadline:
        # Not compared yet with the Temporal Service's clock, which is the one that counts.
        clock = " by this computer's clock" if status.clock_offset_seconds is None else ""
        raise InvoiceError(
            f"Invoice {status.invoice_id} can't be {_decided(approve)} now: its approval deadline,"
            f" {format_utc(status.deadline)}, has passed{clock}. Unless somebody decided before, it"
            " times out, and nothing is paid by this submission. To start anew, submit it again"
            f" then. {status.clock}".rstrip()
        )


def arrived_late(status: InvoiceStatus, approve: bool, arrived_at: datetime) -> InvoiceError:
    """Of a decision that the Temporal Service got after the deadline, by its own clock."""
    deadline = format_utc(status.deadline) if status.deadline else "which has passed"
    return InvoiceError(
        f"Invoice {status.invoice_id} can't be {_decided(approve)} any more: the Temporal Service"
        f" got the decision on {format_utc(arrived_at)}, after the approval deadline, {deadline}."
        " Unless somebody decided before, it times out, and nothing is paid by this submission."
        f" To start anew, submit it again then. {status.clock}".rstrip()
    )


@dataclass(frozen=True)
class NamedTotal:
    """The total that somebody names when they approve an invoice."""

    amount: Decimal
    currency: str | None
    """None for a bare number, which means US dollars."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `7000.00 KWD`, `KWD 7000.00` or `7000.00`.

        Raises:
            ValueError: it is anything else.
        """
        match = re.fullmatch(
            r"(?:([A-Za-z]{3}) )?([0-9]{1,13}(?:\.[0-9]{1,2})?)(?: ([A-Za-z]{3}))?", text
        )
        if match is None or (match[1] and match[3]):
            raise ValueError("must be an amount with its currency, such as 7000.00 USD")
        currency = match[1] or match[3]
        return cls(Decimal(match[2]), currency.upper() if currency else None)


def expect_total(invoice: Invoice, named: NamedTotal) -> None:
    """Raises `InvoiceError` unless this is exactly the invoice's total, in its currency."""
    currency = named.currency or "USD"
    if (named.amount, currency) == (invoice.total, invoice.currency):
        return
    total = format_money(invoice.total, invoice.currency)
    if named.currency is None and named.amount == invoice.total:
        problem = f"is for {total}; a total without its currency means US dollars"
    else:
        problem = f"is for {total}, not {format_money(named.amount, currency)}"
    raise InvoiceError(
        f"Invoice {invoice.id} {problem}. Nothing was approved: show the person every line and the"
        f" total before they decide, and pass the total as “{_total_argument(invoice)}”."
        f" {_lines_in_words(invoice)}"
    )


def content_code(invoice: Invoice, run_id: str) -> str:
    """Stands for one content in one submission; nobody knows it before that was submitted.

    So two contents can't be made that have the same code, though it is short.
    """
    return hashlib.sha256(f"{run_id} {invoice.digest}".encode()).hexdigest()[:CODE_LENGTH]


CODE_OF_OTHER_CONTENT = "The content_code is that of another content."


def used_with_other_content(invoice_id: str) -> str:
    return f"The id {invoice_id} was used before with other content."


def submitted_too_often(invoice_id: str, compared: int) -> str:
    return (
        f"Invoice {invoice_id} was submitted more than {compared} times before, too often to"
        " compare the contents."
    )


def content_to_be_shown(invoice: Invoice, code: str, problem: str) -> InvoiceError:
    """Of an approval that doesn't show that the person has seen this very content.

    Args:
        problem: why that has to be shown: one of the three sentences above.
    """
    return InvoiceError(
        f"{problem} Nothing was approved. Invoice {invoice.id} is now for"
        f" {format_money(invoice.total, invoice.currency)}: show the person every line and the"
        " total. If they approve exactly this, call approve_invoice again with total"
        f" “{_total_argument(invoice)}” and content_code “{code}”. {_lines_in_words(invoice)}"
    )


def _total_argument(invoice: Invoice) -> str:
    return f"{invoice.total} {invoice.currency}"


def _lines_in_words(invoice: Invoice) -> str:
    """Who is charged and what for, as far as a person needs it to know an invoice again."""
    view = InvoiceView.of(invoice)
    charged = f"{view.charged}. " if view.charged else ""
    return f"{charged}Lines: {'; '.join(view.largest_lines(SHOWN_LINES))}."


def _decided(approve: bool) -> str:
    return "approved" if approve else "rejected"


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
    decided = f" ({status.decided.rstrip('.')})" if status.decided else ""
    return InvoiceError(
        f"Invoice {status.invoice_id} can't be {_decided(approve)} now,"
        f" status: {sanitized(status.status, 600)}{decided}. {next_step}"
    )
