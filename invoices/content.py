"""What `get_invoice_status` adds to a status: the invoice's lines and the other fields it has.

The whole answer stays below 100 kB, text and structured content together: some hosts cut longer
ones, or refuse them.
"""

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import islice
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from invoices.answers import InvoiceStatus
from invoices.approval_view import InvoiceView
from invoices.invoice import Invoice
from invoices.status import LineState
from invoices.wording import cut, pluralize, sanitized, sanitized_quote

WORDED_LINES = 20
"""How many lines the text shows at most: the largest ones."""
TYPED_LINES = 100
"""How many lines the structured content has at most: the first ones."""
LINES_BYTES = 30_000
"""How long their JSON may be, if the rest of the answer leaves room for it."""
ANSWER_BYTES = 95_000
"""How long the whole answer may be, with a reserve for what is added to it."""
TEXT_LIMITS = (10_000, 1000, 300, 200, 100, 60, 30, 10)
"""To how many characters the texts of lines are cut, where they are too long all together."""
OTHER_FIELDS = 10
"""How many other fields are told at most."""
OTHER_VALUE = 100
"""How many characters of a name or a value of one are told."""

LINE_STATES: dict[LineState, str] = {
    "unpaid": "unpaid",
    "being_paid": "being paid",
    "paid_earlier": "paid earlier",
    "paid": "paid",
    "not_known": "not known whether it is paid",
}
"""Each state of a line in words."""

Line = TypeVar("Line", bound=BaseModel)


def fit(make_lines: Callable[[int], list[Line]], most_bytes: int) -> tuple[list[Line], int]:
    """Lines with as much of their texts as there is room for.

    Args:
        make_lines: the lines with each text cut to this many characters.
        most_bytes: of the lines' JSON.

    Returns:
        The lines, and to how many characters their texts are cut.
    """
    for limit in TEXT_LIMITS:
        lines = make_lines(limit)
        if sum(len(line.model_dump_json().encode()) for line in lines) <= most_bytes:
            break
    return lines, limit


class InvoiceLine(BaseModel):
    """One line of an invoice."""

    model_config = ConfigDict(frozen=True)

    number: Annotated[int, Field(description="From 1.")]
    item: str
    description: str | None = None
    amount: Decimal
    state: LineState


class StatusWithContent(InvoiceStatus):
    """Where one invoice stands, with its lines. Amounts are decimal strings, times are UTC."""

    lines: Annotated[
        list[InvoiceLine] | None,
        Field(description=f"The first {TYPED_LINES} lines. Missing if they can't be read."),
    ] = None
    lines_not_shown: Annotated[
        int | None,
        Field(
            description="How many lines after those were left out, if any. To submit such an"
            " invoice again, take its lines from their source."
        ),
    ] = None
    texts_cut_at: Annotated[
        int | None,
        Field(
            description="To how many characters long items and descriptions were cut, if any were."
        ),
    ] = None
    customer: Annotated[
        str | None, Field(description="Who is charged, by the payment provider's id.")
    ] = None
    payment_method: Annotated[
        str | None, Field(description="How they are charged, by the payment provider's id.")
    ] = None
    other_fields: Annotated[
        dict[str, str | int | float | bool | None] | None,
        Field(
            description="Other fields of the invoice. Texts are cut at"
            f" {OTHER_VALUE} characters, and lists and objects are given as JSON text."
        ),
    ] = None
    other_fields_not_shown: Annotated[
        int | None, Field(description="How many more other fields there are, if any.")
    ] = None
    _words: Sequence[str] = PrivateAttr(())

    @classmethod
    def of(cls, status: InvoiceStatus, invoice: Invoice | None) -> Self:
        """The status with the content of the same run; None if that can't be read."""
        fields = {name: getattr(status, name) for name in InvoiceStatus.model_fields}
        if invoice is None:
            unreadable = cls.model_construct(**fields)
            unreadable._words = ["Its lines can't be shown: its content breaks the rules."]
            return unreadable
        states = status.line_states(len(invoice.lines))
        others = _other_fields(invoice)
        if invoice.pay_on and status.pay_on is None:  # from before it had a meaning
            others["pay_on"] = invoice.pay_on
        # By their cut names, of which two may be the same: the second isn't shown then.
        shown: dict[str, str | int | float | bool | None] = {}
        for name, value in islice(others.items(), OTHER_FIELDS):
            shown.setdefault(cut(name, OTHER_VALUE), _typed_other(value))
        with_content = cls.model_construct(
            **fields,
            customer=_text(invoice.customer),
            payment_method=_text(invoice.payment_method),
            other_fields=shown or None,
            other_fields_not_shown=len(others) - len(shown) or None,
        )
        with_content._words = _words(invoice, states, others)
        # The text is in the answer twice.
        words = with_content.to_text()
        rest = sum(map(_size, [with_content.to_structured(), words, words]))
        room = min(LINES_BYTES, ANSWER_BYTES - rest)
        lines, limit = fit(lambda limit: _typed_lines(invoice, states, limit), room)
        is_cut = any(
            len(text) > limit
            for line in invoice.lines[: len(lines)]
            for text in (line.item, line.description or "")
        )
        of_lines = {
            "lines": lines,
            "lines_not_shown": len(invoice.lines) - len(lines) or None,
            "texts_cut_at": limit if is_cut else None,
        }
        return with_content.model_copy(update=of_lines)

    def to_text(self) -> str:
        return "\n".join([super().to_text(), *self._words])


def _size(content: Any) -> int:
    """In bytes, as it is sent."""
    return len(json.dumps(content, ensure_ascii=False).encode())


def _typed_lines(invoice: Invoice, states: Sequence[LineState], limit: int) -> list[InvoiceLine]:
    return [
        InvoiceLine(
            number=number,
            item=cut(line.item, limit),
            description=cut(line.description, limit) if line.description else None,
            amount=line.amount,
            state=states[number - 1],
        )
        for number, line in enumerate(invoice.lines[:TYPED_LINES], start=1)
    ]


def _words(invoice: Invoice, states: Sequence[LineState], others: dict[str, Any]) -> list[str]:
    view = InvoiceView.of(invoice)
    words = [f"{view.charged}."] if view.charged else []
    if others:
        words.append(also_given(invoice))
    count = pluralize(len(states), "line")
    is_all = len(states) <= WORDED_LINES
    words.append("Lines:" if is_all else f"Lines, the {WORDED_LINES} largest of {count}:")
    return [*words, *view.largest_lines(WORDED_LINES, [LINE_STATES[state] for state in states])]


def also_given(invoice: Invoice) -> str:
    """A sentence that names the fields that nothing else tells; empty if there are none."""
    others = list(_other_fields(invoice).items())
    named = [_worded_other(*other) for other in others[:OTHER_FIELDS]]
    if len(others) > OTHER_FIELDS:
        named.append(f"and {len(others) - OTHER_FIELDS:,} more")
    return f"Also given: {', '.join(named)}." if named else ""


def _other_fields(invoice: Invoice) -> dict[str, Any]:
    """The fields that this module doesn't tell otherwise, and limits that aren't the default."""
    limits = ("approval_timeout_days", "payment_interval_seconds")
    values = {name: getattr(invoice, name) for name in limits}
    return {
        **(invoice.model_extra or {}),
        **{
            name: int(value) if value == int(value) else value
            for name, value in values.items()
            if value != Invoice.model_fields[name].default
        },
    }


def _typed_other(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 2**53:  # larger ones aren't exact for every host
        return value
    return cut(value if isinstance(value, str) else json.dumps(value), OTHER_VALUE)


def _worded_other(name: str, value: Any) -> str:
    """`cost_center “4711”`, and only the name where the value is a list, an object or null."""
    # Any other name may read as an address or as a sentence.
    is_plain = re.fullmatch("[a-z][a-z0-9_]{0,39}", name)
    words = name if is_plain else sanitized_quote(name, 40)
    if isinstance(value, str):
        return f"{words} {sanitized_quote(value, 40)}"
    if isinstance(value, int | float):
        return f"{words} {sanitized(json.dumps(value), 40)}"
    return words


def _text(value: Any) -> str | None:
    """A customer or payment method, which older runs can have of any type and size."""
    return None if value is None else cut(str(value), 255)
