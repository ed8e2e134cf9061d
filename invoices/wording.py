"""Formats money, times and other people's text for people to read."""

import re
import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from pydantic import ValidationError

DESCRIPTION_LIMIT = 100
"""How many characters of a line's description people are shown at most."""


def currency_sign(currency: str) -> str:
    """What comes before an amount: `$` for US dollars, otherwise the code, such as `EUR `."""
    return "$" if currency == "USD" else f"{currency} "


def format_money(amount: Decimal, currency: str) -> str:
    """`$5,000.00` or `EUR 5,000.00`. Uses an exponent for huge amounts such as 1E+999999."""
    return f"{currency_sign(currency)}{amount:{',.2f' if amount.adjusted() < 30 else '.2e'}}"


def pluralize(number: int, noun: str) -> str:
    """`1 line`, `2,000 lines`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_lines_and_total(line_count: int, total: Decimal, currency: str) -> str:
    """`2 lines, $7,000.00`."""
    return f"{pluralize(line_count, 'line')}, {format_money(total, currency)}"


def format_utc(moment: datetime) -> str:
    """`2026-11-29 06:02:11 UTC`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def format_duration(duration: timedelta) -> str:
    """A duration, rounded to its two largest units: `4 days 23 h`, `5 h 10 min`, `12 s`."""
    seconds = max(0, round(duration.total_seconds()))
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes >= 24 * 60:
        return pluralize(hours // 24, "day") + (f" {hours % 24} h" if hours % 24 else "")
    if minutes >= 60:
        return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
    return f"{minutes} min" if seconds >= 60 else f"{seconds} s"


# Characters with a meaning in Markdown or HTML, and their replacements.
_LOOKALIKES = str.maketrans("<>[]*`~|\\&", "‹›()∗’∼¦⧵＆")

_LEFT_OUT = str.maketrans(
    {
        # Letters or symbols in Unicode that are drawn as blanks: Hangul, Braille, musical,
        # SignWriting and Egyptian.
        **dict.fromkeys(
            map(chr, (0x115F, 0x1160, 0x3164, 0xFFA0, 0x2800, 0x1D159, 0x1DA7F, 0x1DA80)), " "
        ),
        **dict.fromkeys(map(chr, (0x13441, 0x13442)), " "),
        # Invisible marks, including the variation selectors.
        **dict.fromkeys((0x034F, 0x17B4, 0x17B5, 0x16FE4, *range(0x180B, 0x1810)), None),
        **dict.fromkeys((*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)), None),
        # Marks that enclose the character before them.
        **dict.fromkeys((0x0488, 0x0489, 0x1ABE, 0xA670, 0xA671, 0xA672), None),
        **dict.fromkeys((*range(0x20DD, 0x20E1), *range(0x20E2, 0x20E5)), None),
        # As wide as a line, as high as several lines, or often invisible.
        **dict.fromkeys("\ufdfd\ua9c5\U00012219\U0001242b\ufffc", "\N{REPLACEMENT CHARACTER}"),
    }
)


def sanitized(text: str, limit: int = 60) -> str:
    """Makes somebody else's text safe to show to people and models, in Markdown and terminals.

    The result is one line of at most `limit` characters. Every kind of blank becomes a single
    space. Markup is replaced, and so are control and formatting characters, which could hide or
    reorder the text next to them. Only letters keep accents, and at most two each.
    """
    text = text.strip()
    # Cut before normalizing, which takes time with the square of the accents on a letter. In the
    # scripts in use, a letter has at most three characters before it is normalized.
    start = text[: 3 * limit].translate(_LEFT_OUT)
    clean = ""
    accents = 0
    """How many more accents the current letter may have."""
    for character in unicodedata.normalize("NFC", start):
        category = unicodedata.category(character)
        if category == "Mn":
            if not accents:
                continue
            accents -= 1
        else:
            accents = 2 if category[0] in "LM" else 0
        if character.isspace():
            if clean.endswith(" "):
                continue
            character = " "
        elif category in {"Cc", "Cf", "Cs", "Co", "Cn"}:
            character = "\N{REPLACEMENT CHARACTER}"
        clean += character.translate(_LOOKALIKES)
    # Characters that were apart may now be next to each other and combine.
    clean = unicodedata.normalize("NFC", clean.strip())
    if len(clean) > limit or len(text) > 3 * limit:
        return clean[: limit - 1] + "…"
    return clean


def cut(text: str, limit: int) -> str:
    """The text, or as much of it as has `limit` characters with the mark that it is cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe_payment(item: str, amount: Decimal, currency: str) -> str:
    """`Web Development: $5,000.00`."""
    return f"{sanitized(item)}: {format_money(amount, currency)}"


# Quotation marks, characters that people use for them, and characters that look like them, in
# every script. Without ‹ and ›, which replace < and >.
_QUOTATION_MARKS = re.compile(
    "["
    "\"'`\u00ab\u00b4\u00bb\u2018-\u201f\u275b-\u2760\u2e42\u300c-\u300f\u301d-\u301f"
    "\ufe41-\ufe44\uff02\uff07\uff40\uff62\uff63\U0001f676-\U0001f678"
    # Substitution and paraphrase brackets
    "\u2e02-\u2e05\u2e09\u2e0a\u2e0c\u2e0d\u2e1c\u2e1d\u2e20\u2e21"
    # Primes, accents that stand alone, and ditto marks
    "\u2032-\u2037\u2057\u02b9-\u02bf\u02c8\u02ca\u02cb\u02dd\u02ee\u02f4-\u02f6\u0374\u0384"
    "\u0385\u1fbd\u1fbf-\u1fc1\u1fcd-\u1fcf\u1fdd-\u1fdf\u1fed-\u1fef\u1ffd\u1ffe\u3003"
    # Armenian, Hebrew, N'Ko, Vedic, Canadian, Runic, Miao, and the saltillo
    "\u055a\u055b\u055d\u05f3\u05f4\u07f4\u07f5\u1cd3\u1425\u144a\u16cc\U00016f51\U00016f52"
    "\ua78b\ua78c"
    "]+"
)


def sanitized_quote(text: str, limit: int = 60) -> str:
    """The sanitized text in quotation marks. It can't close them: its own become `'`."""
    return "“" + _QUOTATION_MARKS.sub("'", sanitized(text, limit)) + "”"


def describe_bill(
    supplier: str | None, supplier_reference: str | None, due_date: str | None, limit: int = 255
) -> str:
    """`from “Northwind Web Ltd”, their reference “4711”, due 2026-12-31`; empty if none is given.

    Args:
        due_date: an ISO date.
        limit: of each text, in characters.
    """
    named = {"from": supplier, "their reference": supplier_reference}
    parts = [f"{name} {sanitized_quote(text, limit)}" for name, text in named.items() if text]
    return ", ".join([*parts, f"due {due_date}"] if due_date else parts)


def capitalized(text: str) -> str:
    """The text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def format_ranges(numbers: Collection[int]) -> str:
    """`2, 5-7` for the numbers 2, 5, 6 and 7."""
    starts = sorted(number for number in numbers if number - 1 not in numbers)
    ends = sorted(number for number in numbers if number + 1 not in numbers)
    pairs = zip(starts, ends, strict=True)
    return ", ".join(f"{start}-{end}" if end > start else str(start) for start, end in pairs)


def parse_ranges(text: str) -> frozenset[int]:
    """The numbers, up to 999, in a text by `format_ranges`.

    Raises:
        ValueError: it is any other text, or longer than 2,000 characters.
    """
    part = "[0-9]{1,3}(?:-[0-9]{1,3})?"
    if len(text) > 2000 or not re.fullmatch(f"{part}(?:, {part})*", text):
        raise ValueError("must be numbers and ranges such as 2, 5-7")
    pairs = (one.partition("-") for one in text.split(", "))
    return frozenset(n for start, _, end in pairs for n in range(int(start), int(end or start) + 1))


def describe_validation_errors(error: ValidationError) -> str:
    """The fields and the rules they break, in one line: `lines[0].amount: must be ...; id: ...`.

    Names at most five fields and says how many more there are. Values are left out, because they
    can be long or misleading.
    """
    errors = error.errors(include_url=False, include_input=False)
    described = [f"{_path(one['loc'])}: {_rule(one['msg'])}" for one in errors[:5]]
    if len(errors) > 5:
        described.append(f"and {len(errors) - 5} more")
    return "; ".join(described)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{sanitized(part)}" if path else sanitized(part)
    return path or "invoice"


def _rule(message: str) -> str:
    message = re.sub(r"^(Decimal )?[Ii]nput should ", "must ", message)
    message = re.sub(r"^(String|List|Value) should ", "must ", message)
    message = re.sub(r"(items?) after validation, not \d+", r"\1", message)
    for pydantics, plain in _PLAIN_WORDS.items():
        message = message.replace(pydantics, plain)
    return message


_PLAIN_WORDS = {
    "an integer, float, string or Decimal object": "a number",
    "dictionary or instance of Invoice": "JSON object",
    "dictionary or instance of LineItem": "JSON object",
    "match pattern '^[A-Z]{3}$'": "be three capital letters such as EUR",
    "Field required": "is required",
    "Missing required argument": "is required",
    "Unexpected keyword argument": "isn't an argument of this tool",
}
