"""What a person decides on, ready to be shown in the question, on the card and in refusals.

Text that other people wrote is sanitized here. Where it shares a line with our own words, it is in
quotation marks, which it can't close itself.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Self

from invoices.answers import InvoiceStatus
from invoices.invoice import Invoice
from invoices.wording import (
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
    item: str
    description: str | None
    amount: Decimal
    price: str
    """The amount with its currency, `$5,000.00`."""

    def __str__(self) -> str:
        """`1. $5,000.00 for “Web Development”`."""
        return f"{self.number}. {self.price} for {sanitized_quote(self.item)}"


@dataclass(frozen=True)
class InvoiceView:
    """The content of an invoice."""

    id: str
    summary: str
    """`2 lines, $7,000.00`."""
    charged: str | None
    """`Charged: customer “cus_1”, payment method “pm_1”`."""
    lines: list[LineView]
    total: str
    currency: str

    @classmethod
    def of(cls, invoice: Invoice) -> Self:
        parts = (("customer", invoice.customer), ("payment method", invoice.payment_method))
        named = [f"{name} {sanitized_quote(str(value), 255)}" for name, value in parts if value]
        return cls(
            id=invoice.id,
            summary=invoice.summary,
            charged=f"Charged: {', '.join(named)}" if named else None,
            lines=[
                LineView(
                    number=number,
                    item=sanitized(line.item, 200),
                    description=sanitized(line.description, 300) if line.description else None,
                    amount=line.amount,
                    price=format_money(line.amount, invoice.currency),
                )
                for number, line in enumerate(invoice.lines, start=1)
            ],
            total=format_money(invoice.total, invoice.currency),
            currency=invoice.currency,
        )

    def largest_lines(self, limit: int) -> list[str]:
        """The largest lines, in the invoice's order, and the number and sum of the others."""
        by_amount = sorted(self.lines, key=lambda line: line.amount, reverse=True)
        largest, others = by_amount[:limit], by_amount[limit:]
        texts = [str(line) for line in sorted(largest, key=lambda line: line.number)]
        if others:
            more = pluralize(len(others), "more line")
            rest = sum((line.amount for line in others), Decimal(0))
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
    deadline: datetime | None
    reason: str | None
    """The whole reason that will be recorded with an approval, in quotation marks."""

    @classmethod
    def of(cls, invoice: Invoice, status: InvoiceStatus, reason: str | None = None) -> Self:
        paid_earlier = None
        if status.paid_earlier_lines is None:
            paid_earlier = "not known"
        elif status.paid_lines:
            paid_earlier = format_lines_and_total(
                status.paid_lines, status.paid_amount, invoice.currency
            )
        return cls(
            invoice=InvoiceView.of(invoice),
            caution=status.caution,
            similarity=status.similarity,
            paid_earlier=paid_earlier,
            to_pay=format_money(invoice.total - status.paid_amount, invoice.currency),
            deadline=status.deadline,
            # Show all of it, since the model wrote it. Normalizing can triple its length.
            reason=sanitized_quote(reason, 3 * len(reason)) if reason else None,
        )
