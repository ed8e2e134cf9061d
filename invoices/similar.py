"""Which invoices may be the same bill under another id."""

import unicodedata
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from invoices.invoice import is_invoice_id
from invoices.status import OPEN_STATES, State
from invoices.wording import sanitized

if TYPE_CHECKING:
    from invoices.answers import InvoiceStatus

SIMILAR_DAYS = 90
"""How long before an invoice a similar one can have been submitted."""
SHOWN_SIMILAR = 3
"""How many similar invoices are pointed out at most."""


class SimilarInvoice(BaseModel):
    """Another invoice with the same total, which is open or paid."""

    invoice_id: str
    state: State
    at: Annotated[
        datetime, Field(description="When it was paid or, if it is open, when it was submitted.")
    ]
    same_bill: Annotated[
        bool, Field(description="Whether it names the same supplier and the same reference.")
    ]

    def __str__(self) -> str:
        """`Same total as INV-007 (paid 2026-11-20)`."""
        what = "bill" if self.same_bill else "total"
        states: dict[State, str] = {
            "completed": "paid",
            "paying": "being paid, submitted",
            "scheduled": "approved, submitted",
        }
        state = states.get(self.state, "waiting since")
        return f"Same {what} as {sanitized(self.invoice_id, 100)} ({state} {self.at:%Y-%m-%d})"


def total_text(total: Decimal, currency: str) -> str:
    """`USD 7000.00`: the same text for the same total, for the search attribute `InvoiceTotal`."""
    return f"{currency} {total:.2f}"


def similar_to(invoice: "InvoiceStatus", others: Iterable["InvoiceStatus"]) -> list[SimilarInvoice]:
    """The others that may be the same bill, the latest first; at most `SHOWN_SIMILAR`.

    They have the same total and currency, are open or paid, and were submitted at most
    `SIMILAR_DAYS` before the invoice, or after it. Those of a different supplier are left out.
    """
    since = invoice.submitted_at - timedelta(days=SIMILAR_DAYS)
    found: dict[str, tuple[bool, datetime, InvoiceStatus]] = {}
    for other in others:
        if (
            other.invoice_id != invoice.invoice_id
            # No tool takes any other id, and it may be a stranger's sentence.
            and is_invoice_id(other.invoice_id)
            and other.state in (*OPEN_STATES, "completed")
            and (other.total, other.currency) == (invoice.total, invoice.currency)
            and other.submitted_at >= since
            and _is_same(invoice.supplier, other.supplier) is not False
        ):
            same_bill = bool(
                _is_same(invoice.supplier, other.supplier)
                and _is_same(invoice.supplier_reference, other.supplier_reference)
            )
            found.setdefault(other.invoice_id, (same_bill, other.submitted_at, other))
    # A bill that is surely the same is shown even if there are many with its total.
    chosen = sorted(found.values(), key=lambda one: one[:2], reverse=True)[:SHOWN_SIMILAR]
    return [
        SimilarInvoice(
            invoice_id=other.invoice_id,
            state=other.state,
            at=(other.closed_at if other.state == "completed" else None) or submitted_at,
            same_bill=same_bill,
        )
        for same_bill, submitted_at, other in sorted(chosen, key=lambda one: one[1], reverse=True)
    ]


def _is_same(text: str | None, other: str | None) -> bool | None:
    """Whether two names are the same except for case and blanks; None if one is missing."""
    if not text or not other:
        return None
    return _folded(text) == _folded(other)


def _folded(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
