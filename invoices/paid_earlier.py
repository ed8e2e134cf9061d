"""What the payment ledger has of an invoice from earlier submissions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

from invoices.invoice import Invoice
from invoices.messages import LedgerAnswer, PaidLine
from invoices.wording import format_money, format_ranges, sanitized_quote


@dataclass(frozen=True)
class PaidEarlier:
    """The lines that earlier submissions of an invoice have paid.

    `number in paid_earlier` asks for a line by its number, counted from 1.
    """

    lines: Sequence[PaidLine] = ()
    declined: Mapping[int, int] | None = None
    """As in a `LedgerAnswer`."""

    @classmethod
    def of(cls, answer: LedgerAnswer) -> "PaidEarlier":
        return cls(answer.lines or (), answer.declined)

    @cached_property
    def numbers(self) -> frozenset[int]:
        return frozenset(line.line for line in self.lines)

    def ranges(self, invoice: Invoice) -> str | None:
        """The numbers of those that the invoice still has as they were paid, as text.

        None if they are the first lines. Empty if all of them have been changed.
        """
        unchanged = self.numbers - {paid.line for paid in self._changed(invoice)}
        if unchanged == frozenset(range(1, len(self.lines) + 1)):
            return None
        return format_ranges(unchanged)

    def __contains__(self, number: object) -> bool:
        return number in self.numbers

    def next_attempt(self, number: int) -> int | None:
        """The next attempt of a line that isn't paid; None if it isn't known."""
        return None if self.declined is None else self.declined.get(number, 0) + 1

    def total(self, currency: str) -> Decimal | None:
        """Their sum, or None if one of them was paid in another currency."""
        if any(line.currency != currency for line in self.lines):
            return None
        return sum((line.amount for line in self.lines), Decimal("0.00"))

    def changes(self, invoice: Invoice) -> str:
        """Which of them the invoice no longer has as they were paid; empty if it has all."""
        return "; ".join(
            f"line {paid.line} was paid earlier as {sanitized_quote(paid.item)},"
            f" {format_money(paid.amount, paid.currency)}, and has been changed or removed since"
            for paid in self._changed(invoice)
        )

    def changed_lines(self, invoice: Invoice) -> str:
        """Their numbers: `line 1` or `lines 1, 3`."""
        numbers = [str(paid.line) for paid in self._changed(invoice)]
        return f"{'line' if len(numbers) == 1 else 'lines'} {', '.join(numbers)}"

    def _changed(self, invoice: Invoice) -> list[PaidLine]:
        lines = dict(enumerate(invoice.lines, start=1))
        return [
            paid
            for paid in self.lines
            if (line := lines.get(paid.line)) is None
            or (line.item, line.amount, invoice.currency) != (paid.item, paid.amount, paid.currency)
        ]
