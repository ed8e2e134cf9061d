"""Texts and amounts that are shown: harmless, on one line and exact."""

import re
import unicodedata
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from invoices.status import failure_message
from invoices.wording import (
    describe_validation_errors,
    format_duration,
    format_money,
    format_utc,
    pluralize,
    sanitized,
    sanitized_quote,
)

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)


CENTS = st.integers(min_value=1, max_value=10**12 - 1)


def dollars(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


@pytest.mark.parametrize(
    "text",
    ["Web Development", "Müller + Söhne", "日本語の請求書", "Ünï (1/2): 5 %", ""],
)
def test_ordinary_text_is_shown_unchanged(text: str) -> None:
    assert sanitized(text) == text


@UNTIMED
@given(st.text(), st.integers(min_value=2, max_value=80))
@example("\u202egnp.exe\u202c \x1b[31m <b>|`*[x](y)", 60)
@example("e" + "\u0301" * 50, 60)
@example("a\r\nb\u2028c\x85d", 60)
@example("＜｜＞", 60)
def test_shown_text_is_one_harmless_line(text: str, limit: int) -> None:
    clean = sanitized(text, limit)
    assert len(clean) <= limit
    assert not set(clean) & set("<>[]*`~|\\&\n\r\t")
    assert not {unicodedata.category(c) for c in clean} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert sanitized(clean, limit) == clean


def test_text_is_cut_before_it_is_normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    normalize, lengths = unicodedata.normalize, []

    def record_and_normalize(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
        lengths.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr("invoices.wording.unicodedata.normalize", record_and_normalize)
    # Normalization sorts these marks, which takes quadratic time.
    text = "e" + "\u0301\u0323" * 100_000
    sanitized(text, 600)
    sanitized_quote(text, 600)
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Strict).validate_python({text: 1})
    describe_validation_errors(caught.value)
    assert len(lengths) >= 3
    assert max(lengths) <= 3 * 600


class Strict(BaseModel, extra="forbid"):
    """A model without fields, which refuses all others, as tools refuse unknown arguments."""


def test_shown_text_that_is_cut_says_so() -> None:
    assert sanitized("e" + "\u0301" * 1000 + "5") == "é\u0301\u0301…"
    assert sanitized("e" + " " * 1000 + "5") == "e…"
    assert sanitized("e" + " " * 1000) == "e"


def test_shown_text_is_cut_after_the_limit() -> None:
    assert sanitized("x" * 60) == "x" * 60
    assert sanitized("x" * 61) == "x" * 59 + "…"
    assert sanitized("x" * 10**6, 5) == "xxxx…"


BLANKS = "\u00a0\u2007\u202f\u3000\u2028\u2029\x85\u115f\u1160\u3164\uffa0\u2800\U0001d159"


@pytest.mark.parametrize("blank", [*BLANKS, "\U00013441", f" {BLANKS}"], ids=ascii)
def test_blanks_of_every_kind_are_one_space(blank: str) -> None:
    assert sanitized(f"{blank}Pens{blank * 5}and paper{blank}", 200) == "Pens and paper"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("5.00\u030b, 1\u20e3", "5.00, 1"),
        ("\u0338Pens \u030b", "Pens"),
        ("Pe\ufe0fn\U000e0101s\u034f", "Pens"),
        ("R\u20ddA\u0489", "RA"),
        ("Pens\U000e0022\u2066", "Pens��"),
        ("\ufdfd \U0001242b \U00012219", "� � �"),
        ("Tiê\u0301ng Việt, हिन्दी, עִבְרִית", "Tiếng Việt, हिन्दी, עִבְרִית"),
    ],
    ids=ascii,
)
def test_marks_stand_on_letters_only_and_are_seen(text: str, clean: str) -> None:
    assert sanitized(text) == clean


def test_quoted_text_cannot_end_the_quotation_marks_around_it() -> None:
    assert sanitized_quote("Pens”, $1.00. “Paper") == "“Pens', $1.00. 'Paper”"
    assert sanitized_quote("Pens'', $1.00. ,,Paper``") == "“Pens', $1.00. ,,Paper'”"


def is_quotation_mark(character: str) -> bool:
    category = unicodedata.category(character)
    if category not in {"Pi", "Pf", "Po", "Ps", "Pe", "So", "Lm", "Sk"}:
        return False  # at once, because each test process asks this of every character
    name = unicodedata.name(character, "")
    if re.match("(SINGLE|HEAVY) (LEFT|RIGHT)-POINTING", name):  # ‹ stands for <
        return False
    words = r"QUOTATION MARK|\b(PRIME|APOSTROPHE|GERSHAYIM|GERESH|DITTO MARK|CORNER BRACKET)\b"
    return category in {"Pi", "Pf"} or bool(re.search(words, name))


QUOTATION_MARKS = {chr(code) for code in range(0x110000) if is_quotation_mark(chr(code))}


def test_quotation_marks_of_every_script_are_replaced() -> None:
    assert len(QUOTATION_MARKS) > 50
    for mark in sorted(QUOTATION_MARKS):
        for text in (f"Pens{mark}, $1.00", mark * 3):
            assert not set(sanitized_quote(text)[1:-1]) & QUOTATION_MARKS - {"'"}, ascii(mark)


HOSTILE_TEXT = st.text(
    st.sampled_from(
        [*sorted(QUOTATION_MARKS), *BLANKS, *"a1.$<`´ \u0301\u20dd\ufe0f\u09c7\u09be\u1100\u1161"]
    )
    | st.characters(),
    max_size=40,
)


@UNTIMED
@given(HOSTILE_TEXT, st.integers(min_value=2, max_value=80))
def test_quoted_text_is_one_harmless_line_in_its_quotation_marks(text: str, limit: int) -> None:
    quoted = sanitized_quote(text, limit)
    inside = quoted[1:-1]
    assert quoted == f"“{inside}”"
    assert len(inside) <= limit
    assert not set(inside) & ({*QUOTATION_MARKS, *BLANKS} - {"'"})
    assert "''" not in inside
    assert "  " not in inside
    assert sanitized(quoted, limit + 2) == quoted
    assert sanitized(sanitized(text, limit), limit) == sanitized(text, limit)


def test_what_is_shown_can_be_shown_again() -> None:
    assert sanitized(sanitized_quote("Pens <b>")) == sanitized_quote("Pens <b>")


def test_an_endless_amount_is_shortened() -> None:
    assert format_money(Decimal("1E+999999"), "USD") == "$1.00e+999999"
    assert format_money(Decimal("1E-999999"), "USD") == "$0.00"


def test_money_names_the_currency() -> None:
    assert format_money(Decimal("5000.00"), "USD") == "$5,000.00"
    assert format_money(Decimal("9999999999.99"), "EUR") == "EUR 9,999,999,999.99"
    assert format_money(Decimal("0.1"), "JPY") == "JPY 0.10"


@UNTIMED
@given(CENTS)
def test_money_loses_no_cent(cents: int) -> None:
    assert format_money(Decimal(dollars(cents)), "USD").replace(",", "") == f"${dollars(cents)}"


def test_counted_things() -> None:
    assert [pluralize(n, "line") for n in (0, 1, 2, 1000)] == [
        "0 lines",
        "1 line",
        "2 lines",
        "1,000 lines",
    ]


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=12.4), "12 s"),
        (timedelta(seconds=59.6), "1 min"),
        (timedelta(minutes=59, seconds=59), "1 h"),
        (timedelta(hours=5, minutes=10), "5 h 10 min"),
        (timedelta(hours=23, minutes=40), "23 h 40 min"),
        (timedelta(hours=23, minutes=59, seconds=50), "1 day"),
        (timedelta(days=1, minutes=20), "1 day"),
        (timedelta(days=4, hours=23), "4 days 23 h"),
        (timedelta(days=4, hours=23, minutes=59), "5 days"),
        (timedelta(days=365), "365 days"),
    ],
)
def test_duration_has_two_units_at_most(duration: timedelta, words: str) -> None:
    assert format_duration(duration) == words


def test_utc_time_has_seconds() -> None:
    assert (
        format_utc(datetime.fromisoformat("2026-11-29T07:02:11+01:00")) == "2026-11-29 06:02:11 UTC"
    )


@pytest.mark.parametrize(
    ("kind", "line", "reason", "message"),
    [
        ("PaymentDeclined", "line 2 of 3, “A, “b””, $9.00", "no money", "line 2 of 3: no money"),
        ("PaymentConflict", "line 2 of 3, “A”, $9.00", "paid as “A”", "line 2 of 3: paid earlier"),
        ("PaymentConflict", "lines 1, 3", "line 1 was paid as “A”", "lines 1, 3: paid earlier"),
        ("PaymentFailed", None, "it can't be read", "it can't be read"),
    ],
)
def test_the_message_of_a_failed_run_has_no_item(
    kind: str, line: str | None, reason: str, message: str
) -> None:
    rest = " with different content" if kind == "PaymentConflict" else ""
    assert failure_message(kind, line, reason) == f"Payment failed: {message}{rest}"
