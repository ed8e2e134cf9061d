"""What an invoice is: its lines, its limits and its money (`Decimal` with two places)."""

import hashlib
import json
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json, to_jsonable_python

from invoices.wording import format_lines_and_total, format_money, sanitized_quote

MAX_LINES = 500
MAX_JSON_BYTES = 1024 * 1024
"""Keeps an invoice's JSON well below Temporal's limit of 2 MiB for a payload."""
MAX_NESTING = 20
"""How many levels of lists and objects a field of a new invoice may have."""
MAX_OTHER_FIELDS = 100
"""How many fields a new invoice and each of its lines may have that have no meaning here."""
MAX_VALUES = 10_000
"""How many JSON values a new invoice may have: 20 for each line of the longest."""


def _json_string(value: Any) -> Any:
    """Some hosts send an object as its JSON text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _digits(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_FILLERS = "\u115f\u1160\u3164\uffa0"
"""Letters in Unicode, but drawn as blanks."""


def _invoice_id(value: str) -> str:
    def letter_or_digit(character: str) -> bool:
        return (character.isalpha() or character.isdecimal()) and character not in _FILLERS

    if not letter_or_digit(value[0]) or not all(letter_or_digit(c) or c in "._/#-" for c in value):
        raise PydanticCustomError(
            "invoice_id",
            "must contain only letters, digits and . _ / # -, and start with a letter or digit",
        )
    return value


_ALIKE = {
    *("LATIN", "GREEK", "COPTIC", "CYRILLIC", "ARMENIAN", "CHEROKEE", "CANADIAN", "LISU", "OLD"),
    *("BAMUM", "CARIAN", "DESERET", "ELBASAN", "LYCIAN", "MIAO", "OSAGE", "RUNIC", "TIFINAGH"),
    "WARANG",
}
"""Scripts with letters that look alike, by the first word of their letters' Unicode names."""


def rule_of_new_id(invoice_id: str) -> str | None:
    """The additional rule for new ids that `invoice_id` breaks, if any.

    These rules make sure that two ids that look the same are the same. Invoices that already have
    an id that breaks them continue.
    """
    if invoice_id.isascii():
        return None
    if (normal := unicodedata.normalize("NFKC", invoice_id)) != invoice_id:
        return f"must be in Unicode's normal form NFKC: {sanitized_quote(normal, 100)}"
    names = [unicodedata.name(character, "") for character in invoice_id if character.isalpha()]
    alike = {name.split()[0] for name in names if name} & _ALIKE
    if len(alike) > 1:
        scripts = " and ".join(sorted(script.capitalize() for script in alike))
        return f"must not mix {scripts} letters, which look alike"
    # Some modifier letters look like punctuation, and all letters for clicks do.
    if any(name.startswith("MODIFIER LETTER") or name.endswith(" CLICK") for name in names):
        return "must not have letters that look like punctuation"
    ascii_digits = all(character.isascii() for character in invoice_id if character.isdecimal())
    # The Bengali digit 4 looks like an 8. Next to Bengali letters, nobody mistakes it for one.
    if not ascii_digits and (alike or not names):
        return "must use only the digits 0 to 9, unless all its letters are of another script"
    return None


def unpacked(content: Any) -> Any:
    """The content of an invoice, where some of it is given as the JSON text of it."""
    content = _json_string(content)
    if isinstance(content, dict) and isinstance(content.get("lines"), str):
        content = {**content, "lines": _json_string(content["lines"])}
    return content


def rule_of_new_content(content: dict[str, Any]) -> str | None:
    """The rule that unpacked content breaks, if any, besides those of `Invoice`.

    Only new invoices have to follow it: a megabyte of nesting or of small fields costs every parser
    on the way seconds and hundreds of megabytes. Invoices that break it go on.
    """
    if _has_more_values(content, MAX_VALUES):
        return f"must have at most {MAX_VALUES:,} values, counting those in lists and objects"
    if len(content.keys() - Invoice.model_fields) > MAX_OTHER_FIELDS:
        return f"must have at most {MAX_OTHER_FIELDS} other fields"
    lines = content.get("lines")
    for index, line in enumerate(lines if isinstance(lines, list) else []):
        if isinstance(line, dict) and len(line.keys() - LineItem.model_fields) > MAX_OTHER_FIELDS:
            return f"must have at most {MAX_OTHER_FIELDS} other fields in lines[{index}]"
    for name, field in content.items():
        # The lines are a list of objects by themselves.
        if _is_nested_deeper(field, MAX_NESTING + 2 if name == "lines" else MAX_NESTING):
            return f"must have at most {MAX_NESTING} levels of nesting in {sanitized_quote(name)}"
    return None


def _has_more_values(value: Any, limit: int) -> bool:
    count, containers = 1, [value]
    while containers:
        container = containers.pop()
        count += len(container)
        if count > limit:
            return True
        children = container.values() if isinstance(container, dict) else container
        containers += [child for child in children if isinstance(child, dict | list)]
    return False


def _is_nested_deeper(value: Any, limit: int) -> bool:
    containers = [value] if isinstance(value, dict | list) else []
    # Level by level, so what lies deeper isn't even looked at.
    for _ in range(limit):
        containers = [
            child
            for container in containers
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
    return bool(containers)


def plain_number(value: Any) -> Any:
    # Python would also accept "1_000", " 5 ", digits of other scripts, and true for 1.
    text = isinstance(value, str) and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)
    if text or isinstance(value, bool):
        raise PydanticCustomError("number", "must be a plain number such as 5000.00")
    return value


def _capitals(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


AS_STARTED = "as started"
"""Validation context for what a run was started with, by any version or any other client.

Without a context, an invoice is a new one.
"""
BEFORE_1_1 = "before 1.1"
"""The same for runs that began before `customer` and `payment_method` had rules."""


def _unless_before_1_1(
    value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> Any:
    return value if info.context == BEFORE_1_1 else validate(value)


def storable(text: str) -> str:
    """The same text, if a payment ledger can store it."""
    if re.search("[\0\ud800-\udfff]", text):
        raise PydanticCustomError("text", "must be text without NUL or half characters")
    return text


def _storable_if_new(text: str | None, info: ValidationInfo) -> str | None:
    # In a run, the activities refuse it. Version 1.0 paid it.
    return storable(text) if text and info.context is None else text


BILL_FIELDS = ("supplier", "supplier_reference", "due_date")
"""Whose bill an invoice is."""
NEWER_FIELDS = (*BILL_FIELDS, "pay_on")
"""Before 1.2 these were other fields, of any type and size."""
MAX_DAYS_AHEAD = 366
"""How far ahead an invoice's payment date may be when the invoice is submitted."""


@dataclass(frozen=True)
class _BreaksRule:
    value: Any


def _lenient_as_started(
    value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> Any:
    if info.context is None:
        return validate(value)
    # Runs from before 1.1 have them in no memo and must replay so.
    if info.context != BEFORE_1_1 and value is not None:
        with suppress(ValidationError):
            if validate(value) == value and value.strip():
                return value
    return _BreaksRule(value)


def iso_date(text: str) -> str:
    """The same text, if it is a date such as 2026-12-31."""
    with suppress(ValueError):
        # Python also reads 20261231 and 2026-W53-4.
        if date.fromisoformat(text).isoformat() == text:
            return text
    raise PydanticCustomError("date", "must be a date such as 2026-12-31")


def payment_moment(text: str) -> datetime:
    """When a `pay_on` begins, in UTC: a date at 00:00 UTC, a time with an offset as it is.

    Raises:
        ValueError: it is neither.
    """
    if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        moment = datetime.combine(date.fromisoformat(text), time.min, UTC)
    elif re.fullmatch(r"[0-9-]{10}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})", text):
        moment = datetime.fromisoformat(text)
    else:
        raise ValueError("neither a date nor a time with an offset")
    if not 1971 < moment.year < 8999:  # what a status can have
        raise ValueError("too early or too late")
    return moment.astimezone(UTC)


_PAY_ON_RULE = "must be a date such as 2026-12-15, or a time such as 2026-12-15T09:00:00+01:00"


def _pay_on(text: str, info: ValidationInfo) -> str:
    # Python also reads the offset +09:99, and runs have begun with such ones.
    if info.context is not None or not re.search("[+-][0-9]{2}:[6-9][0-9]$", text):
        with suppress(ValueError):
            payment_moment(text)
            return text
    raise PydanticCustomError("pay_on", _PAY_ON_RULE)


_OPTIONAL_FIELDS = {
    "currency",
    "customer",
    "payment_method",
    "approval_timeout_days",
    "payment_interval_seconds",
}


def _cents(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.01"))


InvoiceId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        description="The invoice's id: only letters, digits and . _ / # -, starting with a letter "
        "or digit, at most 100 characters.",
        examples=["INV-001"],
    ),
    AfterValidator(_invoice_id),
    BeforeValidator(_digits),
]

_invoice_ids: TypeAdapter[str] = TypeAdapter(InvoiceId)


def is_invoice_id(text: str) -> bool:
    """Whether this follows the rules of `InvoiceId`. Other clients' ids may not."""
    with suppress(ValidationError):
        return _invoice_ids.validate_python(text) == text
    return False


Amount = Annotated[
    Decimal,
    Field(
        gt=0,
        lt=10**10,
        decimal_places=2,
        description="Greater than 0, below 10,000,000,000, at most two decimals. A string such as "
        '"5000.00" is exact; a number is also accepted.',
        examples=["5000.00"],
    ),
    BeforeValidator(plain_number),
    AfterValidator(_cents),
]


class FromOthers(BaseModel):
    """What other clients can write. Its errors leave it out, since Temporal and logs keep them."""

    model_config = ConfigDict(hide_input_in_errors=True)


class LineItem(FromOthers):
    """One line of an invoice. Other fields are kept unchanged."""

    model_config = ConfigDict(extra="allow")

    item: Annotated[
        str,
        Field(min_length=1, max_length=200, description="What is paid for, 1 to 200 characters."),
        AfterValidator(_storable_if_new),
    ]
    amount: Amount
    description: Annotated[
        str | None, Field(description="Optional detail.", exclude_if=lambda text: text is None)
    ] = None

    @property
    def content(self) -> dict[str, Any]:
        """What stands for it in the wire format."""
        content = {**(self.model_extra or {}), "item": self.item, "amount": str(self.amount)}
        if self.description is not None:
            content["description"] = self.description
        return content


class Invoice(FromOthers):
    """An invoice of 1 to 500 lines in one currency. Other fields are kept unchanged.

    Raises:
        pydantic.ValidationError: names each field that breaks its rule.
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
        Field(
            min_length=1,
            max_length=MAX_LINES,
            description="1 to 500 lines, paid in this order.",
        ),
    ]
    currency: Annotated[
        str,
        Field(pattern="^[A-Z]{3}$", description="ISO 4217 code in capitals, such as EUR."),
        BeforeValidator(_capitals),
    ] = "USD"
    customer: Annotated[
        str | None,
        Field(max_length=255, description="Who is charged, by the payment provider's id."),
        AfterValidator(_storable_if_new),
        WrapValidator(_unless_before_1_1),
    ] = None
    payment_method: Annotated[
        str | None,
        Field(max_length=255, description="How they are charged, by the payment provider's id."),
        AfterValidator(_storable_if_new),
        WrapValidator(_unless_before_1_1),
    ] = None
    supplier: Annotated[
        str | None,
        Field(
            max_length=255,
            description="Whom the bill is from, by the name on it. Always pass it if it is known.",
            examples=["Northwind Web Ltd"],
        ),
        WrapValidator(_lenient_as_started),
    ] = None
    supplier_reference: Annotated[
        str | None,
        Field(
            max_length=255,
            description="The supplier's own number for the bill, as printed on it. Always pass it"
            " if it is known.",
            examples=["2026-4711"],
        ),
        BeforeValidator(_digits),
        WrapValidator(_lenient_as_started),
    ] = None
    due_date: Annotated[
        Annotated[str, AfterValidator(iso_date)] | None,
        Field(
            description="The day by which the bill is to be paid, as an ISO date. It is shown; it"
            " doesn't set when an approved invoice is paid.",
            examples=["2026-12-31"],
        ),
        WrapValidator(_lenient_as_started),
    ] = None
    pay_on: Annotated[
        Annotated[str, AfterValidator(_pay_on)] | None,
        Field(
            description="Pass it only if the person says when to pay: an ISO date (00:00 UTC of"
            " that day) or an ISO time with its offset, at most 366 days ahead. An approved invoice"
            " is then paid on that day; without it, at once.",
            examples=["2026-12-15"],
        ),
        WrapValidator(_lenient_as_started),
    ] = None
    approval_timeout_days: Annotated[
        float,
        Field(
            gt=0,
            le=365,
            allow_inf_nan=False,
            description="Days to wait for a person's decision. Then the invoice is rejected.",
        ),
        BeforeValidator(plain_number),
    ] = 5
    payment_interval_seconds: Annotated[
        float,
        Field(ge=0, le=3600, allow_inf_nan=False, description="Seconds to pause before each line."),
        BeforeValidator(plain_number),
    ] = 2

    @model_validator(mode="before")
    @classmethod
    def _plain_json(cls, value: Any, info: ValidationInfo) -> Any:
        given, value = value, unpacked(value)
        is_parsed = info.mode == "json" and value is given
        if isinstance(value, dict) and info.context != BEFORE_1_1:
            # Models set fields that they don't need to null.
            value = {
                name: field
                for name, field in value.items()
                if field is not None or name not in _OPTIONAL_FIELDS
            }
        if isinstance(value, dict) and info.context is None:
            value = {
                name: field
                for name, field in value.items()
                if name not in NEWER_FIELDS
                or not (field is None or (isinstance(field, str) and not field.strip()))
            }
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=str).encode()
            if not is_parsed:
                # The workflow reads it in the same way, with limits to nesting and digits.
                from_json(text)
        except (ValueError, RecursionError):  # NaN, a lone surrogate, endless nesting
            raise PydanticCustomError("json", "must be plain JSON") from None
        return value

    @model_validator(mode="after")
    def _keep_what_breaks_a_rule(self) -> Self:
        """As one of the other fields: it isn't given, and the content stays what it was."""
        values = {name: getattr(self, name) for name in NEWER_FIELDS}
        odd = {name: one.value for name, one in values.items() if isinstance(one, _BreaksRule)}
        for name in odd:
            setattr(self, name, None)
        self.__pydantic_extra__ = {**(self.model_extra or {}), **odd}
        return self

    @model_validator(mode="after")
    def _bounded_size(self) -> Self:
        if len(self.to_json()) >= MAX_JSON_BYTES:
            raise PydanticCustomError("size", "must be smaller than 1 MiB as JSON")
        return self

    @property
    def total(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal("0.00"))

    @property
    def pay_at(self) -> datetime | None:
        """When it is paid, if it is approved before. None: as soon as it is approved."""
        return payment_moment(self.pay_on) if self.pay_on else None

    @property
    def given_pay_on(self) -> Any:
        """`pay_on` as it was given, also if it breaks its rule; None if it wasn't given."""
        given = self.pay_on or (self.model_extra or {}).get("pay_on")
        return None if isinstance(given, str) and not given.strip() else given

    def rule_of_pay_on(self, now: datetime) -> str | None:
        """The rule that `pay_on` breaks, if any. Only invoices submitted now have to follow it."""
        if self.pay_at is None:
            return None if self.given_pay_on is None else _PAY_ON_RULE
        is_too_late = self.pay_at > now + timedelta(days=MAX_DAYS_AHEAD)
        return f"must be at most {MAX_DAYS_AHEAD} days ahead" if is_too_late else None

    @property
    def summary(self) -> str:
        """`2 lines, $7,000.00`."""
        return format_lines_and_total(len(self.lines), self.total, self.currency)

    def describe_line(self, number: int) -> str:
        """`line 1 of 2, “Web Development”, $5,000.00`; lines are counted from 1."""
        line = self.lines[number - 1]
        amount = format_money(line.amount, self.currency)
        return f"line {number} of {len(self.lines)}, {sanitized_quote(line.item)}, {amount}"

    @property
    def content(self) -> dict[str, Any]:
        """What the wire format says; other fields as they are."""
        content = {
            **(self.model_extra or {}),
            "id": self.id,
            "lines": [line.content for line in self.lines],
            "currency": self.currency,
            "approval_timeout_days": float(self.approval_timeout_days),
            "payment_interval_seconds": float(self.payment_interval_seconds),
        }
        # Without the fields that came with 1.1 where they aren't given: the digest of an invoice
        # that was submitted before must stay what it was.
        for name in {"customer", "payment_method"} & self.model_fields_set:
            content[name] = getattr(self, name)
        given = {name: getattr(self, name) for name in NEWER_FIELDS}
        return content | {name: value for name, value in given.items() if value is not None}

    def to_json(self) -> bytes:
        """The wire format: the same invoice always gives the same bytes; amounts are strings."""
        # Not by `model_dump`, which would copy the other fields, however large they are.
        return json.dumps(
            self.content,
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            default=to_jsonable_python,
        ).encode()

    @property
    def digest(self) -> str:
        """A hash of the content. Two invoices are the same if their digests are."""
        return hashlib.sha256(self.to_json()).hexdigest()


INVOICE_WORKFLOW = "InvoiceWorkflow"
"""The workflow type."""
WORKFLOW_ID_PREFIX = "invoice-"


def workflow_id(invoice_id: str) -> str:
    return WORKFLOW_ID_PREFIX + invoice_id


def line_id(number: int) -> str:
    """The id of a line within its invoice, counted from 1, and of the activity that pays it."""
    return f"line-{number}"


def line_number(line_id: str) -> int | None:
    """The number in a line's id. None for any other id, such as that of another activity."""
    digits = line_id.removeprefix("line-")
    is_line = digits != line_id and digits.isascii() and digits.isdecimal() and len(digits) < 10
    return int(digits) if is_line else None


def payment_key(workflow_id: str, line_id: str) -> str:
    """The permanent key of a line's payment: `invoice-{id}/line-{n}`."""
    return f"{workflow_id}/{line_id}"


def line_id_of(payment_key: str, invoice_id: str) -> str:
    """The line id in a payment's key, or whatever another client put there instead."""
    return payment_key.removeprefix(f"{workflow_id(invoice_id)}/")


def invoice_id_of(workflow_id: str) -> str:
    """The id of the invoice that the workflow with this id is for."""
    return workflow_id.removeprefix(WORKFLOW_ID_PREFIX)
