"""What the tools answer: typed content for programs, and the same in words for a person.

Other people's text (items, reasons, names, errors) is sanitized on its way into words; the typed
content has it as it is.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, Field

from invoices.status import Progress
from invoices.wording import (
    format_duration,
    format_lines_and_total,
    format_money,
    format_utc,
    pluralize,
    sanitized,
)


class Retry(BaseModel):
    """A payment that is being tried again."""

    line: Annotated[int, Field(description="The line's number, from 1.")]
    attempt: Annotated[int, Field(description="The number of the attempt under way or next.")]
    next_attempt_at: datetime | None
    last_error: str


class InvoiceStatus(Progress):
    """Where one invoice stands. Amounts are decimal strings, times are UTC."""

    invoice_id: str
    workflow_id: str
    submitted_at: datetime
    deadline: Annotated[
        datetime | None, Field(description="A waiting invoice is rejected then.")
    ] = None
    retry: Retry | None = None
    closed_at: datetime | None = None
    worker_answers: Annotated[
        bool | None, Field(description="Whether a worker runs; null if that was not asked.")
    ] = None

    @property
    def amounts(self) -> str:
        """`2 lines, $7,000.00`, or a word on why that isn't known."""
        if self.line_count is None or self.total is None or self.currency is None:
            return "content unreadable"
        return format_lines_and_total(self.line_count, self.total, self.currency)

    @property
    def paid(self) -> str:
        """How much is paid, as a sentence."""
        if self.total is None or self.currency is None or self.line_count is None:
            return "Nothing is paid."
        if not self.paid_lines:
            return f"{self.amounts}; nothing of it is paid."
        amount = format_money(self.paid_amount, self.currency)
        return (
            f"Paid: {self.paid_lines:,} of {pluralize(self.line_count, 'line')},"
            f" {amount} of {format_money(self.total, self.currency)}."
        )

    @property
    def decided(self) -> str:
        """Who decided, when and why, as a sentence; empty if nobody did."""
        sentence = f"{self.decision}." if self.decision else ""
        return sentence[:1].upper() + sentence[1:]

    def to_text(self) -> str:
        """The answer of `get_invoice_status`: the tutorial's sentence, then `details`."""
        return f"Invoice {self.invoice_id} status: {sanitized(self.status, 600)}. {self.details}"

    @property
    def details(self) -> str:
        """What a person would ask next, in sentences."""
        sentences = self._details()
        if self.worker_answers is False:
            sentences.append(
                "No worker answers now: this is what was last noted, and it goes on when a worker"
                " runs."
            )
        return " ".join(filter(None, sentences))

    def _details(self) -> list[str]:
        match self.state:
            case "waiting":
                return [self.paid, self._deadline()]
            case "paying":
                line = f"Now: {self.current_line}." if self.current_line else ""
                return [self.paid, line, self._retry(), self.decided]
            case "timed_out":
                return ["Nobody decided before the deadline.", self.paid]
            case "failed" | "cancelled" if self.decision:
                stopped = self.current_line if self.state == "cancelled" else None
                return [
                    self.paid,
                    f"It was stopped at {stopped}." if stopped else "",
                    self.decided,
                    "Submitted again and approved, it pays only the lines not yet paid.",
                ]
            case "terminated":
                return [
                    f"When last noted: {self.paid} A payment under way at the end may have been"
                    " made as well; the payment ledger has the last word.",
                    self.decided,
                ]
            case _:
                return [self.paid, self.decided]

    def _deadline(self) -> str:
        if self.deadline is None:
            return ""
        left = self.deadline - datetime.now(UTC)
        return (
            f"Approval deadline: {format_utc(self.deadline)} (in {format_duration(left)});"
            " without a decision by then it is rejected."
        )

    def _retry(self) -> str:
        if self.retry is None:
            return ""
        next_attempt_at = self.retry.next_attempt_at
        at = f" at {format_utc(next_attempt_at)}" if next_attempt_at else ""
        return (
            f"Line {self.retry.line} is being retried, attempt {self.retry.attempt}{at};"
            f" last error: {sanitized(self.retry.last_error, 300)}."
        )

    def to_line(self) -> str:
        """One line of `list_invoices`."""
        parts = [sanitized(self.status, 200), self.amounts]
        parts.append(f"submitted {format_duration(datetime.now(UTC) - self.submitted_at)} ago")
        if self.paid_lines and self.state != "completed" and self.currency:
            parts.append(f"{format_money(self.paid_amount, self.currency)} paid")
        if self.state == "waiting" and self.deadline:
            parts.append(f"deadline {format_utc(self.deadline)}")
        if self.decision:
            parts.append(self.decided.rstrip("."))
        return f"{self.invoice_id}: " + "; ".join(parts)


class InvoiceList(BaseModel):
    """Invoices: open ones first, and each kind newest first."""

    invoices: list[InvoiceStatus]
    not_shown: Annotated[
        int,
        Field(description="How many more there are that may match; they were not looked at."),
    ]
    total: Annotated[
        dict[str, Decimal], Field(description="Sum of the invoices shown, by currency.")
    ]

    def to_text(self, which: str) -> str:
        """The answer of `list_invoices`; `which` is the state asked for, or `all`."""
        kind = "invoice" if which == "all" else f"{which.replace('_', ' ')} invoice"
        if not self.invoices and not self.not_shown:
            return f"There are no {kind}s."
        totals = " and ".join(format_money(amount, code) for code, amount in self.total.items())
        order = "open ones first, newest first" if which == "all" else "newest first"
        head = f"{pluralize(len(self.invoices), kind)}, {order}"
        lines = [f"{head}, {totals} in all:" if totals else f"{head}:"]
        lines += [f"- {invoice.to_line()}" for invoice in self.invoices]
        if self.not_shown:
            lines.append(
                f"Not looked at: {pluralize(self.not_shown, 'older one')} that may match too."
            )
        return "\n".join(lines)
