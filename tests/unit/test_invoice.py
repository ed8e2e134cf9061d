"""The rules of an invoice, its exact amounts, and the texts made from it."""

import hashlib
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from invoices.invoice import (
    AS_STARTED,
    BEFORE_1_1,
    BILL_FIELDS,
    MAX_JSON_BYTES,
    MAX_LINES,
    MAX_NESTING,
    Invoice,
    rule_of_new_content,
    rule_of_new_id,
    workflow_id,
)
from invoices.status import Decision, RunProgress
from invoices.wording import (
    describe_validation_errors,
)

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)

CENTS = st.integers(min_value=1, max_value=10**12 - 1)
DEEPEST = 150
"""A nesting that every JSON parser on the way accepts."""


def invoice(**fields: Any) -> Invoice:
    return Invoice.model_validate({"id": "INV-1", "lines": [line()], **fields})


def line(**fields: Any) -> dict[str, Any]:
    return {"item": "Pens", "amount": "1.00", **fields}


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        invoice(**fields)
    return describe_validation_errors(caught.value)


def dollars(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_id_is_kept_as_it_is() -> None:
    for name in ("INV-001", "7", "ä", "日本", "２", "a" * 100, "2026/11.#7_b-"):
        assert invoice(id=name).id == name


def test_integer_id_is_taken_as_its_digits() -> None:
    assert invoice(id=42).id == "42"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "a" * 101,
            "-1",
            "#1",
            "a b",
            "a\n",
            "a\u200b",
            "a\u202eb",
            "²",
            "½",
            "a'b",
            "a\u0301",
        ),
        *(None, True, 5.0, ["a"], {"a": 1}, 10**200),
    ],
)
def test_any_other_id_is_refused(name: Any) -> None:
    assert refusal(id=name).startswith("id: must ")


@pytest.mark.parametrize("name", ["INV\u3164", "\u115f", "INV\uffa0", "a\u1160"])
def test_id_with_an_invisible_letter_is_refused(name: str) -> None:
    assert refusal(id=name).startswith("id: must ")


@pytest.mark.parametrize(
    "name", ["INV-001", "2026/11.#7_b-", "ä-1", "НОВ-7", "日本-1", "INV-日本", "ক৪৭", "한국-1"]
)
def test_new_id_may_be_of_any_script(name: str) -> None:
    assert rule_of_new_id(invoice(id=name).id) is None


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("INV-О01", "must not mix Cyrillic and Latin letters, which look alike"),
        ("ΙΝV-1", "must not mix Greek and Latin letters, which look alike"),
        ("ОΙ-1", "must not mix Cyrillic and Greek letters, which look alike"),
        ("INV-\uff11", "must be in Unicode's normal form NFKC: “INV-1”"),
        ("\U0001d408NV-1", "must be in Unicode's normal form NFKC: “INV-1”"),
        ("INV-৪", "must use only the digits 0 to 9, unless all its letters are of another script"),
        ("৪৭", "must use only the digits 0 to 9, unless all its letters are of another script"),
        ("INV-1ˮ", "must not have letters that look like punctuation"),
        ("INV-1ǃ", "must not have letters that look like punctuation"),
    ],
)
def test_new_id_that_looks_like_another_breaks_a_rule(name: str, rule: str) -> None:
    assert rule_of_new_id(name) == rule
    # Open runs have such ids.
    assert invoice(id=name).id == name


def test_one_to_five_hundred_lines() -> None:
    for number in (1, 500):
        assert len(invoice(lines=[line()] * number).lines) == number
    assert refusal(lines=[]).startswith("lines: must have at least 1 item")
    assert refusal(lines=[line()] * 501).startswith("lines: must have at most 500 items")


@pytest.mark.parametrize("lines", [None, 5, "x", "{}", {"0": {}}, "[" * 100_000])
def test_lines_that_are_not_a_list_are_refused(lines: Any) -> None:
    assert refusal(lines=lines) == "lines: must be a valid list"


@pytest.mark.parametrize("value", [None, 5, "x", [], ["item"]])
def test_line_that_is_not_an_object_is_refused(value: Any) -> None:
    assert refusal(lines=[line(), value]) == "lines[1]: must be a valid JSON object"


def test_item_of_one_to_two_hundred_characters() -> None:
    for item in ("x", "日" * 200):
        assert invoice(lines=[line(item=item)]).lines[0].item == item
    assert refusal(lines=[line(item="")]) == "lines[0].item: must have at least 1 character"
    assert "at most 200" in refusal(lines=[line(item="x" * 201)])
    assert refusal(lines=[{"amount": 1}]) == "lines[0].item: is required"
    assert refusal(lines=[line(item=5)]) == "lines[0].item: must be a valid string"


@pytest.mark.parametrize(
    ("amount", "cents"),
    [
        ("0.01", 1),
        ("9999999999.99", 10**12 - 1),
        (9999999999.99, 10**12 - 1),
        ("19.99", 1999),
        (19.99, 1999),
        (5, 500),
        (1e3, 100_000),
        ("5.000", 500),
        ("007", 700),
    ],
)
def test_amount_is_exact(amount: Any, cents: int) -> None:
    assert str(invoice(lines=[line(amount=amount)]).total) == dollars(cents)


@pytest.mark.parametrize(
    "amount",
    [
        *(
            0,
            "0",
            "0.00",
            -1,
            "-1",
            "0.001",
            0.1 + 0.2,
            1e-7,
            10**10,
            "10000000000",
            1e300,
            10**400,
        ),
        *("", " 5", "5 ", "5\n", "+5", "5.", ".5", "1e3", "1_000", "1,000", "$5", "0x5", "５"),
        *(True, None, "NaN", "Infinity", [0, [5], 2], {"value": 5}, float("nan"), float("inf")),
    ],
)
def test_any_other_amount_is_refused(amount: Any) -> None:
    assert " must " in refusal(lines=[line(amount=amount)])


def test_description_is_optional_text() -> None:
    assert invoice(lines=[line(description="Frontend")]).lines[0].description == "Frontend"
    assert invoice().lines[0].description is None
    assert refusal(lines=[line(description=5)]).startswith("lines[0].description: must be")


def test_currency_is_three_capitals() -> None:
    assert invoice().currency == "USD"
    assert invoice(currency="EUR").currency == "EUR"
    assert invoice(currency="eur").currency == "EUR"
    for other in ("EU", "EURO", "EUR\n", "ＥＵＲ", "ÄÖÜ", "", 5):
        assert refusal(currency=other).startswith("currency: must ")


def test_approval_timeout_is_above_0_up_to_365_days() -> None:
    assert invoice().approval_timeout_days == 5
    for days in (1e-9, 0.5, 365):
        assert invoice(approval_timeout_days=days).approval_timeout_days == days
    for other in (0, -1, 365.001, 10**400, "NaN", "inf", "soon", [5]):
        assert refusal(approval_timeout_days=other).startswith("approval_timeout_days: must ")


def test_payment_interval_is_0_to_3600_seconds() -> None:
    assert invoice().payment_interval_seconds == 2
    for seconds in (0, 0.5, 3600):
        assert invoice(payment_interval_seconds=seconds).payment_interval_seconds == seconds
    others: tuple[Any, ...] = (-0.001, 3600.001, "NaN", "soon", {})
    for other in others:
        assert refusal(payment_interval_seconds=other).startswith("payment_interval_seconds: ")


@pytest.mark.parametrize("field", ["approval_timeout_days", "payment_interval_seconds"])
def test_a_boolean_is_not_a_duration(field: str) -> None:
    assert refusal(**{field: True}).startswith(f"{field}: must ")


@pytest.mark.parametrize(
    "field",
    ["currency", "customer", "payment_method", "approval_timeout_days", "payment_interval_seconds"],
)
def test_null_means_the_default(field: str) -> None:
    assert invoice(**{field: None}).digest == invoice().digest


@pytest.mark.parametrize("field", ["customer", "payment_method"])
def test_who_is_charged_and_how_is_text_of_255_characters_at_most(field: str) -> None:
    assert invoice(**{field: "x" * 255}).digest != invoice().digest
    assert refusal(**{field: "x" * 256}).startswith(f"{field}: must have at most 255 characters")
    assert refusal(**{field: 5}).startswith(f"{field}: must be a valid string")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("lines[0].item", {"lines": [line(item="a\0b")]}),
        ("customer", {"customer": "\0"}),
        ("payment_method", {"payment_method": "pm\0"}),
    ],
)
def test_what_a_new_invoices_payments_have_is_text_that_a_ledger_can_store(
    field: str, fields: dict[str, Any]
) -> None:
    assert refusal(**fields) == f"{field}: must be text without NUL or half characters"
    # A run has it in its content, and says so when a worker reads it.
    assert as_started(**fields).content == as_started(BEFORE_1_1, **fields).content
    assert invoice(supplier="a\0b", lines=[line(description="\0", note="\0")], note="\0")


BILL = {
    "supplier": "Northwind Web Ltd",
    "supplier_reference": "2026-4711",
    "due_date": "2026-12-31",
}


def as_started(context: str = AS_STARTED, **fields: Any) -> Invoice:
    content = {"id": "INV-1", "lines": [line()], **fields}
    return Invoice.model_validate_json(json.dumps(content), context=context)


def digest_of_1_1(**fields: Any) -> str:
    """Of an invoice that has all fields of before, in the spelling of the wire format."""
    content = {"id": "INV-1", "lines": [line()], "currency": "USD", **fields}
    content |= {"approval_timeout_days": 5.0, "payment_interval_seconds": 2.0}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def test_whose_bill_it_is_is_kept_as_it_was_given() -> None:
    new = invoice(**BILL)
    assert {name: getattr(new, name) for name in BILL_FIELDS} == BILL
    assert new.digest == as_started(**BILL).digest == digest_of_1_1(**BILL)
    assert invoice(supplier_reference=4711).supplier_reference == "4711"


@pytest.mark.parametrize("nothing", [None, "", " \t"])
def test_whose_bill_it_is_may_be_left_empty(nothing: str | None) -> None:
    assert invoice(**dict.fromkeys(BILL_FIELDS, nothing)).digest == invoice().digest


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("supplier", "x" * 256, "must have at most 255 characters"),
        ("supplier", 5, "must be a valid string"),
        ("supplier_reference", "x" * 256, "must have at most 255 characters"),
        ("supplier_reference", {"no": 1}, "must be a valid string"),
        ("due_date", 20261231, "must be a valid string"),
        *(
            ("due_date", value, "must be a date such as 2026-12-31")
            for value in (
                "soon",
                "20261231",
                "2026-W53-4",
                "2026-02-30",
                "31.12.2026",
                "٢٠٢٦-12-31",
            )
        ),
    ],
)
def test_whose_bill_a_new_invoice_is_follows_rules(field: str, value: Any, rule: str) -> None:
    assert refusal(**{field: value}) == f"{field}: {rule}"


@pytest.mark.parametrize("odd", [None, "", 5, 1.5, True, ["x"], {"x": [None]}, "x" * 10_000])
@pytest.mark.parametrize("field", BILL_FIELDS)
def test_a_run_may_have_anything_where_a_new_invoice_has_whose_bill_it_is(
    field: str, odd: Any
) -> None:
    for context in (AS_STARTED, BEFORE_1_1):
        read = as_started(context, **{field: odd})
        assert getattr(read, field) is None
        assert read.content[field] == odd
        assert read.digest == digest_of_1_1(**{field: odd})
        assert as_started(context, **read.content) == read


def test_a_run_from_before_1_1_tells_whose_bill_it_is_as_before() -> None:
    read = as_started(BEFORE_1_1, **BILL)
    assert not any(getattr(read, name) for name in BILL_FIELDS)
    assert read.digest == digest_of_1_1(**BILL)
    assert RunProgress.of(read).to_memo().keys() & set(BILL_FIELDS) == set()


def test_other_fields_are_kept() -> None:
    extra = {"vendor": {"vat": "DE1", "tags": [1, 2.5, None, True, "ü"]}, "total": 5, "digest": ""}
    kept = json.loads(invoice(**extra, lines=[line(tax=0.19)]).to_json())
    assert {name: kept[name] for name in extra} == extra
    assert kept["lines"][0]["tax"] == 0.19


def test_json_is_parsed_once_and_other_fields_are_not_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each further parse or copy of a megabyte of nested lists would take as long again."""

    def not_again(*_: Any, **__: Any) -> Any:
        raise AssertionError("the content is taken apart again")

    extra = {"id": "INV-1", "lines": [line()], "vendor": nested(DEEPEST)}
    text = json.dumps(extra)
    monkeypatch.setattr("invoices.invoice.from_json", not_again)
    monkeypatch.setattr(Invoice, "model_dump", not_again)
    parsed = Invoice.model_validate_json(text)
    assert json.loads(parsed.to_json())["vendor"] == nested(DEEPEST)


def test_new_content_may_be_nested_to_a_limit() -> None:
    deepest, deeper = nested(MAX_NESTING - 1), nested(MAX_NESTING)
    assert rule_of_new_content(invoice(vendor=deepest, lines=[line(tax=deepest)]).content) is None
    for name, fields in (("vendor", {"vendor": deeper}), ("lines", {"lines": [line(tax=deeper)]})):
        # Open runs have such fields.
        rule = rule_of_new_content(invoice(**fields).content)
        assert rule == f"must have at most {MAX_NESTING} levels of nesting in “{name}”"


def test_new_content_may_have_other_fields_to_a_limit() -> None:
    most = {f"field_{n}": n for n in range(100)}
    known = {"customer": "c", "supplier": "s"}
    assert rule_of_new_content(invoice(**most, **known, lines=[line(**most)]).content) is None
    more = {**most, "one_more": 1}
    rule = rule_of_new_content(invoice(**more).content)
    assert rule == "must have at most 100 other fields"
    rule = rule_of_new_content(invoice(lines=[line(), line(**more)]).content)
    assert rule == "must have at most 100 other fields in lines[1]"


def test_new_content_may_have_values_to_a_limit() -> None:
    full = line(description="d", **{f"field_{n}": n for n in range(15)})
    assert rule_of_new_content(invoice(lines=[full] * MAX_LINES).content) is None
    many: list[Any] = [[0] * 10_000, {str(n): [] for n in range(10_000)}, [[0] * 100] * 100]
    for vendor in many:
        rule = rule_of_new_content(invoice(vendor=vendor).content)
        assert rule == "must have at most 10,000 values, counting those in lists and objects"


def test_json_stays_below_one_mebibyte() -> None:
    # The fields around the note take less than 300 bytes, however they are written.
    assert invoice(note="x" * (MAX_JSON_BYTES - 300)).id == "INV-1"
    assert refusal(note="x" * MAX_JSON_BYTES) == "invoice: must be smaller than 1 MiB as JSON"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", nested(400), nested(900)])
def test_what_is_not_plain_json_is_refused(value: Any) -> None:
    assert refusal(note=value) == "invoice: must be plain JSON"


@pytest.mark.parametrize("note", ["NaN", "1e999", r'"\ud800"', "[" * 230 + "]" * 230])
@pytest.mark.parametrize("whole", [True, False], ids=["invoice", "lines"])
def test_what_is_not_plain_json_is_refused_within_a_json_string_too(note: str, whole: bool) -> None:
    lines = f'[{{"item": "Pens", "amount": 1, "note": {note}}}]'
    value = f'{{"id": "INV-1", "lines": {lines}}}' if whole else {"id": "INV-1", "lines": lines}
    with pytest.raises(ValidationError) as caught:
        Invoice.model_validate(value)
    assert "must be plain JSON" in describe_validation_errors(caught.value)


def test_size_is_that_of_the_json_however_it_is_spelled() -> None:
    lines = '[{"item": "Pens", "amount": 1, "note": [' + ",".join(["1e15"] * 200_000) + "]}]"
    assert refusal(lines=lines) == "invoice: must be smaller than 1 MiB as JSON"


def test_json_string_is_taken_for_the_object_and_for_its_lines() -> None:
    whole = {"id": "INV-1", "lines": [line()]}
    assert Invoice.model_validate(json.dumps(whole)) == invoice()
    assert invoice(lines=json.dumps([line()])) == invoice()


@pytest.mark.parametrize("value", [None, 5, True, "", "x", "5", "null", "[]", [], [1], b"\xff"])
def test_what_is_not_an_object_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Invoice.model_validate(value)
    assert describe_validation_errors(caught.value) == "invoice: must be a valid JSON object"


@UNTIMED
@given(st.lists(CENTS, min_size=50, max_size=50))
def test_totals_are_those_of_whole_cents(cents: list[int]) -> None:
    # 50 examples of 50 lines: 2,500 amounts.
    total = invoice(lines=[line(amount=dollars(c)) for c in cents]).total
    assert str(total) == dollars(sum(cents))


def test_tenths_add_up_exactly() -> None:
    assert invoice(lines=[line(amount=0.1), line(amount=0.2)]).total == Decimal("0.30")
    assert invoice(lines=[line(amount=19.99)] * 3).total == Decimal("59.97")


@UNTIMED
@given(CENTS)
@example(10**12 - 1)
def test_amount_as_number_or_string_has_one_digest(cents: int) -> None:
    as_number = invoice(lines=[line(amount=json.loads(dollars(cents)))])
    assert as_number.digest == invoice(lines=[line(amount=dollars(cents))]).digest


@pytest.mark.parametrize(
    "same",
    [
        {"lines": [{"amount": 1, "item": "Pens"}], "id": "INV-1"},
        {"id": "INV-1", "lines": [line(amount=1.0, description=None)]},
        {"id": "INV-1", "lines": json.dumps([line(amount="1.0")])},
        {"id": "INV-1", "lines": [line()], "currency": "USD", "approval_timeout_days": 5.0},
        {"id": "INV-1", "lines": [line()], "payment_interval_seconds": 2},
    ],
)
def test_same_content_in_other_spelling_has_the_same_digest(same: dict[str, Any]) -> None:
    assert Invoice.model_validate(same).digest == invoice().digest


@pytest.mark.parametrize(
    "change",
    [
        {"id": "INV-2"},
        {"currency": "EUR"},
        {"approval_timeout_days": 6},
        {"payment_interval_seconds": 0},
        {"vendor": None},
        {"lines": [line(), line()]},
        {"lines": [line(amount="1.01")]},
        {"lines": [line(item="pens")]},
        {"lines": [line(description="")]},
        {"lines": [line(tax=0)]},
    ],
)
def test_any_change_gives_another_digest(change: dict[str, Any]) -> None:
    assert invoice(**change).digest != invoice().digest


def test_order_of_lines_is_content() -> None:
    lines = [line(), line(item="Paper")]
    assert invoice(lines=lines).digest != invoice(lines=lines[::-1]).digest


JSON_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # NaN, infinity and surrogates aren't JSON.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@UNTIMED
@given(
    JSON_VALUE,
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200
    ),
)
@example(nested(DEEPEST), "x")
def test_json_gives_the_same_invoice_again(extra: Any, item: str) -> None:
    first = invoice(extra=extra, lines=[line(item=item, extra=extra)])
    again = Invoice.model_validate_json(first.to_json())
    assert again == first
    assert again.to_json() == first.to_json()


@UNTIMED
@given(
    st.sampled_from(["id", "lines", "item", "amount", "currency", "approval_timeout_days"]),
    JSON_VALUE | st.integers() | st.floats() | st.lists(JSON_VALUE | st.binary(), max_size=3),
)
def test_any_value_is_taken_as_it_is_or_refused_in_words(field: str, value: Any) -> None:
    fields = {"lines": [line(**{field: value})]} if field in ("item", "amount") else {field: value}
    try:
        taken = invoice(**fields)
    except ValidationError as error:
        words = describe_validation_errors(error)
        assert words.isprintable()
        assert not re.search(r"pydantic|type=|Error|Decimal|Exceeds", words)
    else:
        assert Invoice.model_validate_json(taken.to_json()).digest == taken.digest


def test_memo_of_progress_has_no_empty_keys() -> None:
    memo = RunProgress.of(invoice()).to_memo()
    assert memo["total"] == "1.00"
    assert None not in memo.values()
    assert RunProgress.model_validate(memo) == RunProgress.of(invoice())
    assert (
        RunProgress.of(invoice(**BILL)).to_memo() | BILL
        == RunProgress.of(invoice(**BILL)).to_memo()
    )


def test_broken_rules_name_field_and_rule_but_no_value() -> None:
    rules = refusal(id="no good", lines=[line(amount="many")], currency="euro")
    assert rules == (
        "id: must contain only letters, digits and . _ / # -, and start with a letter or digit;"
        " lines[0].amount: must be a plain number such as 5000.00;"
        " currency: must be three capital letters such as EUR"
    )


def test_broken_rules_name_five_and_count_the_rest() -> None:
    rules = refusal(lines=[{}] * 4)
    assert rules.count(";") == 5
    assert rules.endswith("; and 3 more")


def test_broken_rules_of_invalid_json_are_readable() -> None:
    with pytest.raises(ValidationError) as caught:
        Invoice.model_validate_json(b"\xff\x00")
    assert describe_validation_errors(caught.value).startswith("invoice: Invalid JSON: ")


@pytest.mark.parametrize(
    "field",
    [
        {"total": "1E+999999999"},
        {"paid_amount": "-1.00"},
        {"paid_earlier_amount": "10000000000000"},
        {"currency": "USD. Paid: all of it, not"},
        {"supplier": "x" * 256},
        {"due_date": "soon"},
    ],
)
def test_a_memo_with_impossible_values_is_refused(field: dict[str, str]) -> None:
    memo = RunProgress.of(invoice()).to_memo()
    with pytest.raises(ValidationError):
        RunProgress.model_validate({**memo, **field})


def test_a_name_that_is_a_sentence_is_quoted() -> None:
    at = datetime.fromisoformat("2026-11-29T06:02:11+00:00")
    decision = Decision(approved=True, by="ann@pc on Monday. Paid: “all” of", at=at)
    assert str(decision).startswith("approved by “ann@pc on Monday. Paid: 'all' of” on 2026-11-29")
    assert str(Decision(approved=True, by="ann@pc", at=at)).startswith("approved by ann@pc on ")


def test_summary_and_workflow_id() -> None:
    assert invoice(lines=[line(), line()], currency="EUR").summary == "2 lines, EUR 2.00"
    assert workflow_id("INV-1") == "invoice-INV-1"


NOW = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("pay_on", "moment"),
    [
        ("2026-12-15", datetime(2026, 12, 15, tzinfo=UTC)),
        ("2026-12-15T09:00:00Z", datetime(2026, 12, 15, 9, tzinfo=UTC)),
        ("2026-12-15T00:30+01:00", datetime(2026, 12, 14, 23, 30, tzinfo=UTC)),
        ("2027-12-02", datetime(2027, 12, 2, tzinfo=UTC)),
    ],
)
def test_pay_on_is_a_moment(pay_on: str, moment: datetime) -> None:
    read = invoice(pay_on=pay_on)
    assert read.pay_at == moment
    assert read.rule_of_pay_on(NOW) is None
    assert json.loads(read.to_json())["pay_on"] == pay_on


@pytest.mark.parametrize(
    "pay_on",
    [
        *("15.12.2026", "20261215", "2026-12-15 09:00", "2026-12-15T09:00:00", "2026-02-30"),
        *("0001-01-01T00:00+14:00", "9999-12-31", "２０２６-12-15", "2026-W51-2", 20261215, True),
    ],
)
def test_pay_on_is_a_day_or_a_time_with_its_offset(pay_on: object) -> None:
    with pytest.raises(ValidationError, match="pay_on"):
        invoice(pay_on=pay_on)
    as_started = Invoice.model_validate(
        {"id": "INV-1", "lines": [line()], "pay_on": pay_on}, context=AS_STARTED
    )
    assert as_started.pay_at is None
    assert json.loads(as_started.to_json())["pay_on"] == pay_on
    assert str(as_started.rule_of_pay_on(NOW)).startswith("must be a date such as")


@pytest.mark.parametrize("offset", ["+09:99", "-00:60"])
def test_a_new_pay_ons_offset_has_at_most_59_minutes(offset: str) -> None:
    pay_on = f"2026-12-15T09:00{offset}"
    assert refusal(pay_on=pay_on).startswith("pay_on: must be a date such as 2026-12-15, or a time")
    # Runs that have begun with one go on.
    read = as_started(pay_on=pay_on)
    assert read.pay_at == datetime.fromisoformat(pay_on)
    assert read.rule_of_pay_on(NOW) is None


def test_pay_on_is_at_most_a_year_ahead() -> None:
    too_late = invoice(pay_on="2027-12-03")
    assert too_late.rule_of_pay_on(NOW) == "must be at most 366 days ahead"


@pytest.mark.parametrize("pay_on", [None, "", " "])
def test_an_empty_pay_on_is_not_given(pay_on: object) -> None:
    assert invoice(pay_on=pay_on).digest == invoice().digest
