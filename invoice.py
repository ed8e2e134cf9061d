"""What an invoice is: its lines and limits, its money, and the words for where it stands.

Nothing here knows Temporal or MCP. Money is `Decimal` with two places, time is aware UTC.
"""

import hashlib
import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

MAX_LINES = 500
MAX_JSON_BYTES = 1024 * 1024
"""An invoice's JSON stays well below Temporal's 2 MiB for one payload."""

# The status of an invoice; the first six are the tutorial's texts.
PROCESSING = "Processing"
AWAITING_APPROVAL = "Awaiting approval"
APPROVAL_TIMEOUT = "Approval timeout - invoice rejected"
REJECTED = "Rejected by approver"
PROCESSING_PAYMENTS = "Processing payments"
COMPLETED = "Completed"
CANCELLED = "Cancelled"
PAYMENT_FAILED = "Payment failed"
"""Followed by a colon, the line and the reason."""
INVALID_INVOICE = "Invalid invoice"
"""Followed by a colon, the fields and their rules."""


def _json_string(value: Any) -> Any:
    """Some hosts send an object as the JSON text of it."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _digits(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_FILLERS = "\u115f\u1160\u3164\uffa0"
"""Letters to Unicode, but blank."""


def _invoice_id(value: str) -> str:
    def letter_or_digit(character: str) -> bool:
        return (character.isalpha() or character.isdecimal()) and character not in _FILLERS

    if not letter_or_digit(value[0]) or not all(letter_or_digit(c) or c in "._/#-" for c in value):
        raise PydanticCustomError(
            "invoice_id", "must begin with a letter or digit and go on with those or . _ / # - only"
        )
    return value


def _plain_number(value: Any) -> Any:
    # Python would also take "1_000", " 5 ", digits of other scripts, and true for 1.
    text = isinstance(value, str) and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)
    if text or isinstance(value, bool):
        raise PydanticCustomError("number", "must be a plain number such as 5000.00")
    return value


def _cents(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.01"))


InvoiceId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        description="The invoice's id: letters, digits and . _ / # - only, beginning with a letter "
        "or digit, 100 characters at most.",
        examples=["INV-001"],
    ),
    AfterValidator(_invoice_id),
    BeforeValidator(_digits),
]

Amount = Annotated[
    Decimal,
    Field(
        gt=0,
        lt=10**10,
        decimal_places=2,
        description="Greater than 0, below 10,000,000,000, two decimals at most. A string such as "
        '"5000.00" is exact; a number is accepted too.',
        examples=["5000.00"],
    ),
    BeforeValidator(_plain_number),
    AfterValidator(_cents),
]


class LineItem(BaseModel):
    """One line of an invoice. Fields not named here are kept as they are."""

    model_config = ConfigDict(extra="allow")

    item: Annotated[
        str,
        Field(min_length=1, max_length=200, description="What is charged, 1 to 200 characters."),
    ]
    amount: Amount
    description: Annotated[
        str | None, Field(description="Optional detail.", exclude_if=lambda text: text is None)
    ] = None


class Invoice(BaseModel):
    """An invoice of 1 to 500 lines in one currency. Fields not named here are kept as they are.

    Raises:
        pydantic.ValidationError: naming each field that breaks its rule.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "id": "INV-001",
                    "lines": [
                        {"item": "Web Development", "amount": "5000.00", "description": "Frontend"},
                        {"item": "Design Services", "amount": "2000.00"},
                    ],
                }
            ]
        },
    )

    id: InvoiceId
    lines: Annotated[
        list[LineItem],
        Field(min_length=1, max_length=MAX_LINES, description="1 to 500 lines, paid in order."),
    ]
    currency: Annotated[
        str, Field(pattern="^[A-Z]{3}$", description="ISO 4217 code in capitals, such as EUR.")
    ] = "USD"
    approval_timeout_days: Annotated[
        float,
        Field(
            gt=0,
            le=365,
            allow_inf_nan=False,
            description="Days to wait for a person's decision; then the invoice is rejected.",
        ),
        BeforeValidator(_plain_number),
    ] = 5
    payment_interval_seconds: Annotated[
        float,
        Field(ge=0, le=3600, allow_inf_nan=False, description="Seconds to pause before each line."),
        BeforeValidator(_plain_number),
    ] = 2

    @model_validator(mode="before")
    @classmethod
    def _plain_json(cls, value: Any) -> Any:
        value = _json_string(value)
        if isinstance(value, dict) and "lines" in value:
            value = {**value, "lines": _json_string(value["lines"])}
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=str).encode()
            from_json(text)  # as the workflow will, with its limits to nesting and digits
        except (ValueError, RecursionError):  # NaN, a lone surrogate, nesting without end
            raise PydanticCustomError("json", "must be plain JSON") from None
        return value

    @model_validator(mode="after")
    def _bounded_size(self) -> Self:
        if len(self.to_json()) >= MAX_JSON_BYTES:
            raise PydanticCustomError("size", "must be smaller than 1 MiB as JSON")
        return self

    @property
    def total(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal("0.00"))

    @property
    def summary(self) -> str:
        """Lines and total in words: `2 lines, $7,000.00`."""
        return f"{counted(len(self.lines), 'line')}, {money(self.total, self.currency)}"

    def to_json(self) -> bytes:
        """The wire format: the same invoice always gives the same bytes; amounts are strings."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    @property
    def digest(self) -> str:
        """Tells one content from another: two invoices are the same if this is."""
        return hashlib.sha256(self.to_json()).hexdigest()


class Decider(BaseModel):
    """What a signal says about a decision besides the decision; each part may be missing."""

    by: Annotated[str | None, Field(max_length=200)] = None
    reason: Annotated[str | None, Field(max_length=1000)] = None
    request: Annotated[str | None, Field(max_length=100)] = None
    """Made up by the sender, to know its own decision again."""


class Decision(Decider):
    """The first decision on an invoice, which stands."""

    approved: bool
    at: datetime


class Progress(BaseModel):
    """Where an invoice stands: what the workflow answers when asked, and keeps in its memo."""

    submitted_at: datetime | None = None
    """Not in the memo, since Temporal shows it anyway."""
    status: str
    digest: str
    total: Decimal
    currency: str
    line_count: int
    approval_timeout_days: Annotated[float, Field(gt=0, le=365)]
    paid_lines: int = 0
    paid_amount: Decimal = Decimal("0.00")
    current_line: str | None = None
    """The line whose turn it is, in words."""
    decision: Decision | None = None

    @classmethod
    def of(cls, invoice: Invoice) -> Self:
        return cls(
            status=AWAITING_APPROVAL,
            digest=invoice.digest,
            total=invoice.total,
            currency=invoice.currency,
            line_count=len(invoice.lines),
            approval_timeout_days=invoice.approval_timeout_days,
        )

    def to_memo(self) -> dict[str, Any]:
        """A key for each field that is there."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"submitted_at"})


def workflow_id(invoice_id: str) -> str:
    return f"invoice-{invoice_id}"


def broken_rules(error: ValidationError, prefix: str = "") -> str:
    """The fields and the rules they break, in one line: `lines[0].amount: must be ...; id: ...`.

    Names five at most and says how many more there are. Values are left out: they may be long, or
    written to mislead.
    """
    problems = error.errors(include_url=False, include_input=False)
    told = [f"{_path(prefix, problem['loc'])}: {_rule(problem['msg'])}" for problem in problems[:5]]
    if len(problems) > 5:
        told.append(f"and {len(problems) - 5} more")
    return "; ".join(told)


def _path(prefix: str, location: tuple[int | str, ...]) -> str:
    path = prefix
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{shown(part)}" if path else shown(part)
    return path or "invoice"


def _rule(message: str) -> str:
    message = re.sub(r"^(Decimal )?[Ii]nput should ", "must ", message)
    message = re.sub(r"^(String|List|Value) should ", "must ", message)
    for jargon, plain in _PLAIN_WORDS.items():
        message = message.replace(jargon, plain)
    return message


_PLAIN_WORDS = {
    "an integer, float, string or Decimal object": "a number",
    "dictionary or instance of Invoice": "JSON object",
    "dictionary or instance of LineItem": "JSON object",
    "match pattern '^[A-Z]{3}$'": "be three capital letters such as EUR",
    "Field required": "is required",
    "Missing required argument": "is required",
    "Unexpected keyword argument": "is no argument of this tool",
}


def money(amount: Decimal, currency: str) -> str:
    """`$5,000.00`, or `EUR 5,000.00` for any currency but the US dollar."""
    return f"${amount:,.2f}" if currency == "USD" else f"{currency} {amount:,.2f}"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def utc(moment: datetime) -> str:
    """`2026-11-29 06:02:11 UTC`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(duration: timedelta) -> str:
    """A duration, rounded to its two largest units: `4 days 23 h`, `5 h 10 min`, `12 s`."""
    seconds = max(0, round(duration.total_seconds()))
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes >= 24 * 60:
        return counted(hours // 24, "day") + (f" {hours % 24} h" if hours % 24 else "")
    if minutes >= 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"{minutes} min" if seconds >= 60 else f"{seconds} s"


# Characters that mean something to Markdown or HTML, and what stands in for them.
_LOOKALIKES = str.maketrans("<>[]*`~|\\&", "‹›()∗’∼¦⧵＆")


def shown(text: str, limit: int = 60) -> str:
    """Somebody else's text as it is safe to show a person, a model, Markdown or a terminal.

    On one line, without markup, without control and formatting characters (which could hide or
    reorder what stands beside it) and without towers of accents, cut after `limit` characters.
    """
    clean = ""
    marks = 0
    for character in unicodedata.normalize("NFC", " ".join(text.split())):
        category = unicodedata.category(character)
        marks = marks + 1 if category in {"Mn", "Me"} else 0
        if marks > 2:
            continue
        if category in {"Cc", "Cf", "Cs", "Co", "Cn"}:
            character = "\N{REPLACEMENT CHARACTER}"
        clean += character.translate(_LOOKALIKES)
        if len(clean) > limit:
            return clean[: limit - 1] + "…"
    return clean


def quoted(text: str, limit: int = 60) -> str:
    """The same in quotation marks, which the text itself can't end."""
    return f"“{shown(text.translate(_STRAIGHT), limit)}”"


_STRAIGHT = str.maketrans("“”", '""')
