"""The details that Temporal's Web UI shows of an invoice, as Markdown."""

from datetime import datetime

from invoices.invoice import Invoice
from invoices.status import Progress
from invoices.wording import format_money, format_utc, sanitized


class WebUiDetails:
    """Renders the details of one invoice; the cells of its table are made once."""

    def __init__(self, invoice: Invoice, deadline: datetime) -> None:
        self._deadline = deadline
        self._currency = invoice.currency
        self._total = format_money(invoice.total, invoice.currency)
        self._cells = [
            (
                f"| {number} | {format_money(line.amount, invoice.currency)} |",
                f"| {sanitized(line.item, 40)} |",
            )
            for number, line in enumerate(invoice.lines, start=1)
        ]

    def render(self, progress: Progress) -> str:
        until = f" until {format_utc(self._deadline)}" if progress.state == "waiting" else ""
        paid = format_money(progress.paid_amount, self._currency)
        decision = f"; {progress.decision}" if progress.decision else ""
        header = (
            f"### {progress.status}{until}\n\n"
            f"Paid: {progress.paid_lines} of {len(self._cells)} lines, {paid} of {self._total}"
            f"{decision}\n\n"
            "| # | Amount | State | Item |\n|--:|--:|:--|:--|\n"
        )
        rows = [
            f"{number_and_amount} {state} {item}"
            for (number_and_amount, item), state in zip(
                self._cells, self._line_states(progress), strict=True
            )
        ]
        # The Web UI takes $...$ for mathematics, and cuts off the last lines of what it shows.
        table = (header + "\n".join(rows)).replace("$", "\\$")
        return table + "\n\n\N{NO-BREAK SPACE}" * 2

    def _line_states(self, progress: Progress) -> list[str]:
        """One word a line: lines are paid in order, so the first unpaid one is the current one."""
        states = ["paid"] * progress.paid_lines
        if progress.current_line:
            words = {"failed": "failed", "cancelled": "stopped"}
            states.append(words.get(progress.state, "next"))
        return states + ["unpaid"] * (len(self._cells) - len(states))
