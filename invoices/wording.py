"""Money, times and other people's text, as a person reads them."""

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from pydantic import ValidationError


def currency_sign(currency: str) -> str:
    """What stands before an amount: `$`, or `EUR ` for any currency but the US dollar."""
    return "$" if currency == "USD" else f"{currency} "


def format_money(amount: Decimal, currency: str) -> str:
    """`$5,000.00`, or `EUR 5,000.00`."""
    return f"{currency_sign(currency)}{amount:,.2f}"


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


# Characters that mean something to Markdown or HTML, and what stands in for them.
_LOOKALIKES = str.maketrans("<>[]*`~|\\&", "‹›()∗’∼¦⧵＆")


def sanitized(text: str, limit: int = 60) -> str:
    """Somebody else's text as it is safe to show a person, a model, Markdown or a terminal.

    On one line, without markup, without control and formatting characters (which could hide or
    reorder what stands beside it), with two accents on a letter at most, cut after `limit`
    characters.
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


def describe_payment(item: str, amount: Decimal, currency: str) -> str:
    """`Web Development: $5,000.00`."""
    return f"{sanitized(item)}: {format_money(amount, currency)}"


_STRAIGHT_QUOTES = str.maketrans("“”", '""')


def sanitized_quote(text: str, limit: int = 60) -> str:
    """The same in quotation marks, which the text itself can't end."""
    return f"“{sanitized(text.translate(_STRAIGHT_QUOTES), limit)}”"


def describe_validation_errors(error: ValidationError) -> str:
    """The fields and the rules they break, in one line: `lines[0].amount: must be ...; id: ...`.

    Names five at most and says how many more there are. Values are left out: they may be long, or
    written to mislead.
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
    "Unexpected keyword argument": "is no argument of this tool",
}
