"""Refusals: why something can't be done with an invoice, and what to do instead."""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Self

from invoices.answers import InvoiceStatus
from invoices.approval_view import InvoiceView
from invoices.approvals import is_same_person
from invoices.invoice import WORKFLOW_ID_PREFIX, Invoice, invoice_id_of, workflow_id
from invoices.wording import format_money, format_utc, sanitized

SHOWN_LINES = 20
"""How many lines a refusal lists at most: the largest ones."""
CODE_LENGTH = 12
"""Hexadecimal digits of a `content_code`."""
_TIMES_OUT = (
    "Unless somebody decided before the deadline, it times out and this submission pays nothing."
    " After that, you can submit it again."
)


class InvoiceError(Exception):
    """Tells a person why something can't be done with an invoice, and what to do instead."""


def unknown_invoice(invoice_id: str) -> InvoiceError:
    text = f"There is no invoice {invoice_id}; list_invoices shows the invoices that exist."
    if invoice_id.startswith(WORKFLOW_ID_PREFIX):
        text += (
            f" {invoice_id} looks like a workflow id: the invoice's own id is"
            f" {invoice_id_of(invoice_id)}."
        )
    return InvoiceError(text)


def id_not_allowed(rule: str) -> InvoiceError:
    """A new invoice has an id that could be mistaken for another."""
    return InvoiceError(f"Nothing was done. invoice_data.id: {rule}.")


def content_not_allowed(rule: str, field: str = "") -> InvoiceError:
    """Of a new invoice that breaks a rule which older ones needn't follow."""
    return InvoiceError(f"Nothing was done. invoice_data{field and f'.{field}'}: {rule}.")


def id_in_use_by_invoice(status: InvoiceStatus) -> InvoiceError:
    """An open invoice with different content has the same id."""
    end = "reject" if status.state == "waiting" else "cancel"
    return InvoiceError(
        f"The id {status.invoice_id} is in use by a different invoice: {status.amounts},"
        f" {sanitized(status.status, 600)}; nothing was changed. Use another id, or {end} that"
        " invoice first."
    )


def being_closed(status: InvoiceStatus) -> InvoiceError:
    """The latest run has told its end, but Temporal hasn't closed it yet."""
    return InvoiceError(
        f"The last submission of invoice {status.invoice_id} has ended and is just being closed,"
        f" status: {sanitized(status.status, 600)}. Nothing was started. Make the same call again."
    )


def id_in_use_by_workflow(invoice_id: str) -> InvoiceError:
    """An open workflow that isn't for an invoice has the workflow id of this one."""
    return InvoiceError(
        f"The id {invoice_id} is in use by something that isn't an invoice: the workflow"
        f" {workflow_id(invoice_id)}. Nothing was started. Use another id, or terminate that"
        " workflow in the Web UI."
    )


def not_an_invoice(status: InvoiceStatus, workflow_type: str) -> InvoiceError:
    """The workflow with this invoice's workflow id has a different type."""
    return InvoiceError(
        f"The id {status.invoice_id} is in use by something that isn't an invoice: the workflow"
        f" {status.workflow_id} of type {sanitized(workflow_type)}."
    )


def already_paid(status: InvoiceStatus) -> InvoiceError:
    when = f" on {format_utc(status.closed_at)}" if status.closed_at else ""
    return InvoiceError(
        f"Invoice {status.invoice_id} was already paid{when}: {status.amounts}. Nothing was"
        " started."
    )


def id_of_paid_invoice(status: InvoiceStatus) -> InvoiceError:
    """A paid invoice with different content has the same id."""
    when = f" on {format_utc(status.closed_at)}" if status.closed_at else ""
    return InvoiceError(
        f"The id {status.invoice_id} belongs to a different invoice, which was paid{when}:"
        f" {status.amounts}. {status.bill} Nothing was started. If yours is another bill, use"
        " another id.".replace("  ", " ")
    )


def failed_at_start(status: InvoiceStatus) -> InvoiceError:
    return InvoiceError(
        f"Invoice {status.invoice_id} failed when it started: {sanitized(status.status, 600)}."
        f" {status.paid} {status.advice}"
    )


def submitted_again(invoice_id: str) -> InvoiceError:
    """The decision was on a run that is no longer the latest."""
    return InvoiceError(
        f"Invoice {invoice_id} was submitted again a moment ago, so nothing was decided. Look at"
        " the new submission before you decide."
    )


def content_unreadable(invoice_id: str) -> InvoiceError:
    return InvoiceError(
        f"The content of invoice {invoice_id} breaks the rules, so it can't be shown to a person."
        " Nothing was approved. Reject it."
    )


def expect_not_cancelled(status: InvoiceStatus, approve: bool) -> None:
    """Raises `InvoiceError` for a decision on a waiting invoice that somebody has cancelled."""
    if status.stopping:
        raise InvoiceError(
            f"Invoice {status.invoice_id} can't be {_decided(approve)} any more. {status.stopping}"
            " Once it is cancelled, you can submit it again."
        )


def expect_may_approve(status: InvoiceStatus, name: str) -> None:
    """Raises `InvoiceError` if a waiting invoice needs two people who haven't submitted it."""
    if status.is_submitter_excluded and is_same_person(status.submitted_by, name):
        raise InvoiceError(
            f"Invoice {status.invoice_id} can't be approved by you, because you submitted it."
            f" {status.approvals} Nothing was approved."
        )


def expect_one_ledger(status: InvoiceStatus) -> None:
    """Raises `InvoiceError` if an earlier submission began to pay from another ledger."""
    if status.earlier_ledger:
        raise InvoiceError(
            f"Invoice {status.invoice_id} can't be approved. {status.two_ledgers} Nothing was"
            " approved."
        )


def expect_before_deadline(status: InvoiceStatus, approve: bool) -> None:
    """Raises `InvoiceError` for a decision on a waiting invoice whose deadline has passed."""
    if status.deadline and status.is_past_deadline:
        # The clock that counts is the Temporal Service's. Say so if it isn't known yet.
        clock = " by this computer's clock" if status.clock_offset_seconds is None else ""
        raise InvoiceError(
            f"Invoice {status.invoice_id} can't be {_decided(approve)} now: its approval deadline,"
            f" {format_utc(status.deadline)}, has passed{clock}."
            f" {_TIMES_OUT} {status.clock}".rstrip()
        )


def arrived_late(status: InvoiceStatus, approve: bool, arrived_at: datetime) -> InvoiceError:
    """The Temporal Service received the decision after the deadline, by its own clock."""
    deadline = format_utc(status.deadline) if status.deadline else "which has passed"
    return InvoiceError(
        f"Invoice {status.invoice_id} can't be {_decided(approve)} any more: the Temporal Service"
        f" received the decision on {format_utc(arrived_at)}, after the approval deadline,"
        f" {deadline}. {_TIMES_OUT} {status.clock}".rstrip()
    )


@dataclass(frozen=True)
class NamedTotal:
    """The total that is passed with an approval."""

    amount: Decimal
    currency: str | None
    """None for a bare number, which means US dollars."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `7000.00 KWD`, `KWD 7000.00` or `7000.00`.

        Raises:
            ValueError: the text is anything else.
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
    """A code for the content of one submission.

    It depends on the run id, which nobody knows before the submission. So nobody can prepare two
    invoices with the same code, although the code is short.
    """
    return hashlib.sha256(f"{run_id} {invoice.digest}".encode()).hexdigest()[:CODE_LENGTH]


CODE_OF_OTHER_CONTENT = "This content_code is for different content."


def used_with_other_content(invoice_id: str) -> str:
    return f"The id {invoice_id} was used before with different content."


def looks_like_others(invoice_id: str) -> str:
    """For an id that isn't ASCII: in one alphabet alone, it can look like one in another."""
    return f"The id {invoice_id} has letters that may look like others."


def submitted_too_often(invoice_id: str, compared: int) -> str:
    return (
        f"Invoice {invoice_id} was submitted more than {compared} times before, which is too often"
        " to compare the contents."
    )


def content_to_be_shown(invoice: Invoice, code: str, problem: str) -> InvoiceError:
    """The approval doesn't show that the person has seen the invoice's present content.

    Args:
        problem: why that is necessary: one of the sentences above.
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
    """Whose bill it is, who is charged and for what, so that a person can recognize it."""
    view = InvoiceView.of(invoice)
    whose = "".join(f"{text}. " for text in (view.bill, view.charged) if text)
    return f"{whose}Lines: {'; '.join(view.largest_lines(SHOWN_LINES))}."


def _decided(approve: bool) -> str:
    return "approved" if approve else "rejected"


def decided_otherwise(status: InvoiceStatus, approve: bool) -> InvoiceError:
    """The decision can't take effect: says what the invoice's status is, and what to do now."""
    if next_step := _open_workflow(status) or status.stopping:
        pass
    elif approve and status.approval_rule and not status.is_decided:
        next_step = status.approval_rule
    elif approve and status.is_open:
        next_step = "Once it has ended, you can submit it again."
    elif approve:
        next_step = status.advice or "You can submit it again."
    elif status.is_open:
        next_step = (
            "To stop it before the next line, call cancel_invoice. Lines that are already paid stay"
            " paid."
        )
    else:
        next_step = status.paid
    decision = status.decided or status.kept
    decided = f" ({decision.rstrip('.')})" if decision else ""
    return InvoiceError(
        f"Invoice {status.invoice_id} can't be {_decided(approve)} now,"
        f" status: {sanitized(status.status, 600)}{decided}. {next_step}"
    )


def cancelled_too_late(status: InvoiceStatus) -> InvoiceError:
    """The invoice has ended otherwise, or what is open isn't an invoice."""
    told = _open_workflow(status) or " ".join(filter(None, (status.paid, status.decided)))
    return InvoiceError(
        f"Invoice {status.invoice_id} can't be cancelled now, status:"
        f" {sanitized(status.status, 600)}. {told}"
    )


def _open_workflow(status: InvoiceStatus) -> str:
    """What to do about an open run with content that isn't an invoice; empty for any other."""
    if status.state != "failed" or status.closed_at:
        return ""
    return (
        f"The workflow {status.workflow_id} is open but isn't an invoice. Terminate it in the"
        " Web UI."
    )
