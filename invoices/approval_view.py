"""What a person decides on, ready to be shown in the question, on the card and in refusals.

Text that other people wrote is sanitized here. Where it shares a line with our own words, it is in
quotation marks, which it can't close itself.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Self

from invoices.answers import InvoiceStatus
from invoices.invoice import Invoice, LineItem
from invoices.wording import (
    DESCRIPTION_LIMIT,
    capitalized,
    describe_bill,
    format_lines_and_total,
    format_money,
    pluralize,
    sanitized,
    sanitized_quote,
)


@dataclass(frozen=True)
class LineView:
    """One line of an invoice."""

    number: int
    """From 1."""
    line: LineItem
    currency: str
    is_paid_earlier: bool = False
    """Whether an earlier submission has paid it. False if that isn't known."""

    @property
    def price(self) -> str:
        """The amount with its currency, `$5,000.00`."""
        return format_money(self.line.amount, self.currency)

    @cached_property
    def item(self) -> str:
        return sanitized(self.line.item, 200)

    @cached_property
    def description(self) -> str:
        """Empty if there is none."""
        return sanitized(self.line.description or "", DESCRIPTION_LIMIT)

    def __str__(self) -> str:
        """`1. $5,000.00 for “Web Development”: “Frontend work”`."""
        text = f"{self.number}. {self.price} for {sanitized_quote(self.item)}"
        if self.description:
            text += f": {sanitized_quote(self.description, DESCRIPTION_LIMIT)}"
        return f"{text} (paid earlier)" if self.is_paid_earlier else text


@dataclass(frozen=True)
class InvoiceView:
    """The content of an invoice."""

    id: str
    summary: str
    """`2 lines, $7,000.00`."""
    bill: str | None
    """`From “Northwind Web Ltd”, their reference “4711”, due 2026-12-31`."""
    charged: str | None
    """`Charged: customer “cus_1”, payment method “pm_1”`."""
    lines: list[LineView]
    total: str
    currency: str

    @classmethod
    def of(cls, invoice: Invoice, paid_earlier: Container[int] = ()) -> Self:
        """`paid_earlier` has the numbers of the lines that earlier submissions have paid."""
        parts = (("customer", invoice.customer), ("payment method", invoice.payment_method))
        named = [f"{name} {sanitized_quote(str(value), 255)}" for name, value in parts if value]
        bill = describe_bill(invoice.supplier, invoice.supplier_reference, invoice.due_date)
        return cls(
            id=invoice.id,
            summary=invoice.summary,
            bill=capitalized(bill) or None,
            charged=f"Charged: {', '.join(named)}" if named else None,
            lines=[
                LineView(number, line, invoice.currency, number in paid_earlier)
                for number, line in enumerate(invoice.lines, start=1)
            ],
            total=format_money(invoice.total, invoice.currency),
            currency=invoice.currency,
        )

    def largest_lines(self, limit: int, states: Sequence[str] = ()) -> list[str]:
        """The largest lines, in the invoice's order, and the number and sum of the others.

        Args:
            states: what to say of each line of the invoice, if anything.
        """
        by_amount = sorted(self.lines, key=lambda line: line.line.amount, reverse=True)
        largest, others = by_amount[:limit], by_amount[limit:]
        texts = [
            f"{line} ({states[line.number - 1]})" if states else str(line)
            for line in sorted(largest, key=lambda line: line.number)
        ]
        if others:
            more = pluralize(len(others), "more line")
            rest = sum((line.line.amount for line in others), Decimal(0))
            together = format_money(rest, self.currency)
            texts.append(f"and {more} of {largest[-1].price} at most, together {together}")
        return texts


@dataclass(frozen=True)
class ApprovalView:
    """An invoice that a person decides on, with what is known about it besides its content."""

    invoice: InvoiceView
    caution: str
    """A warning about an unusual id; empty if it isn't unusual."""
    similarity: str
    """Which invoices may be the same bill; empty if none is known."""
    paid_earlier: str | None
    """`1 line, $10.00` or `not known`; None if nothing was paid earlier."""
    to_pay: str
    submitted: str | None
    """`Submitted by user@host.`; None if that isn't known."""
    approvals: str | None
    """Who approved first and who else must; None if one approval is enough."""
    is_first_of_two: bool
    """Whether an approval now is the first of two, after which nothing is paid yet."""
    payment_date: str | None
    """When it is paid, as a sentence; None if that is as soon as it is approved."""
    deadline: datetime | None
    reason: str | None
    """The whole reason that will be recorded with an approval, in quotation marks."""

    @classmethod
    def of(cls, invoice: Invoice, status: InvoiceStatus, reason: str | None = None) -> Self:
        paid_earlier = None
        if status.paid_earlier_lines is None:
            paid_earlier = "not known"
        elif status.paid_lines:
            paid_earlier = status.at_least + format_lines_and_total(
                status.paid_lines, status.paid_amount, invoice.currency
            )
        to_pay = format_money(invoice.total - status.paid_amount, invoice.currency)
        is_at_most = status.paid_earlier_lines is None or status.more_may_be_paid
        states = enumerate(status.line_states(len(invoice.lines)), start=1)
        numbers = {number for number, state in states if state == "paid_earlier"}
        return cls(
            invoice=InvoiceView.of(invoice, numbers),
            caution=status.caution,
            similarity=status.similarity,
            paid_earlier=paid_earlier,
            to_pay=f"at most {to_pay}" if is_at_most else to_pay,
            submitted=status.submitted or None,
            approvals=" ".join(filter(None, (status.approvals, status.kept))) or None,
            is_first_of_two=bool(status.approval_rule) and not status.judgement.first,
            payment_date=status.payment_date or _unheeded_date(invoice, status) or None,
            deadline=status.deadline,
            # Show all of it, since the model wrote it. Normalizing can triple its length.
            reason=sanitized_quote(reason, 3 * len(reason)) if reason else None,
        )


def _unheeded_date(invoice: Invoice, status: InvoiceStatus) -> str:
    """What to say of a `pay_on` that the run doesn't act on; empty if it has none."""
    given = invoice.given_pay_on
    if given is None or status.pay_on or status.state != "waiting":
        return ""
    return f"Its pay_on, {sanitized_quote(str(given)[:100])}, isn't kept: it is paid at once."
