"""The details of an invoice in Temporal's Web UI, as Markdown."""

from collections.abc import Iterator
from datetime import datetime

from invoices.invoice import Invoice, LineItem
from invoices.status import Progress
from invoices.wording import (
    DESCRIPTION_LIMIT,
    capitalized,
    describe_bill,
    format_day,
    format_money,
    format_utc,
    sanitized,
    sanitized_quote,
)

_GAP = "\N{NO-BREAK SPACE}" * 2
"""Separates the columns, because the Web UI leaves no space between them."""

FEW_LINES = 100
"""Up to so many lines, descriptions have `DESCRIPTION_LIMIT` characters, else fewer: the Web UI
loads all lines each time.
"""
SHORT_DESCRIPTION = 40


class WebUiDetails:
    """Renders the details of one invoice. Builds the cells of its table only once."""

    def __init__(self, invoice: Invoice, deadline: datetime) -> None:
        self._deadline = deadline
        bill = describe_bill(invoice.supplier, invoice.supplier_reference, invoice.due_date)
        self._bill = capitalized(f"{bill}.") if bill else ""
        limit = DESCRIPTION_LIMIT if len(invoice.lines) <= FEW_LINES else SHORT_DESCRIPTION
        self._cells = [
            (
                f"| {number} |{_GAP}{format_money(line.amount, invoice.currency)} |",
                f"| {_described(line, limit)} |",
            )
            for number, line in enumerate(invoice.lines, start=1)
        ]

    def render(self, progress: Progress) -> str:
        """The Markdown."""
        until = f", until {format_utc(self._deadline)}" if progress.state == "waiting" else ""
        date = f"Payment date: {format_day(progress.pay_on)}." if progress.pay_on else ""
        about = [self._bill, progress.submitted, progress.paid, date, progress.approval_rule]
        sentences = [*about, progress.decided, progress.cancelled]
        match progress.state:
            case "paying":
                pending = "A payment that is being retried is listed under Pending Activities."
                sentences.append(pending)
            case "failed" | "cancelled":
                sentences.append(progress.advice)
        header = (
            f"### {progress.status}{until}\n\n"
            f"{' '.join(filter(None, sentences))}\n\n"
            f"| # |{_GAP}Amount |{_GAP}State{_GAP}| Item |\n|--:|--:|:--|:--|\n"
        )
        rows = [
            f"{number_and_amount}{_GAP}{state}{_GAP}{item}"
            for (number_and_amount, item), state in zip(
                self._cells, self._line_states(progress), strict=True
            )
        ]
        # The Web UI renders $...$ as mathematics, and cuts off the last lines.
        table = (header + "\n".join(rows)).replace("$", "\\$")
        return table + "\n\n\N{NO-BREAK SPACE}" * 2

    def _line_states(self, progress: Progress) -> Iterator[str]:
        """The state of each line in one or two words."""
        states = progress.line_states(len(self._cells))
        unpaid = (n for n, state in enumerate(states) if state not in ("paid", "paid_earlier"))
        reached = next(unpaid, None) if progress.current_line else None
        for number, state in enumerate(states):
            current = {"failed": "failed", "cancelled": "stopped"}.get(progress.state, "next")
            yield (current if number == reached else state).replace("_", "\N{NO-BREAK SPACE}")


def _described(line: LineItem, limit: int) -> str:
    """`Web Development: “Frontend work”`. One more column would leave no room for texts."""
    item = sanitized(line.item, 40)
    has_description = line.description and line.description.strip()
    return f"{item}: {sanitized_quote(line.description or '', limit)}" if has_description else item
