"""What the tools answer: typed content for programs, and the same in words for a person.

Other people's text (items, reasons, names, errors) goes through `invoice.shown` on its way into
words; the typed content has it as it is.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from invoice import (
    APPROVAL_TIMEOUT,
    CANCELLED,
    COMPLETED,
    INVALID_INVOICE,
    PAYMENT_FAILED,
    PROCESSING_PAYMENTS,
    REJECTED,
    Decision,
    counted,
    money,
    quoted,
    shown,
    span,
    utc,
)

State = Literal[
    "waiting", "paying", "completed", "rejected", "timed_out", "failed", "cancelled", "terminated"
]
"""Every state an invoice can be in; `waiting` and `paying` are open, the others final."""


def state_of(status: str) -> State:
    """The state behind a status text of the workflow."""
    for text, state in _STATES.items():
        if status.startswith(text):
            return state
    return "waiting"


_STATES: dict[str, State] = {
    PROCESSING_PAYMENTS: "paying",
    COMPLETED: "completed",
    REJECTED: "rejected",
    APPROVAL_TIMEOUT: "timed_out",
    PAYMENT_FAILED: "failed",
    INVALID_INVOICE: "failed",
    CANCELLED: "cancelled",
}


class Retry(BaseModel):
    """A payment that is being tried again."""

    line: Annotated[int, Field(description="The line's number, from 1.")]
    attempt: Annotated[int, Field(description="The number of the attempt under way or next.")]
    next_attempt_at: datetime | None
    last_error: str


class InvoiceStatus(BaseModel):
    """Where one invoice stands. Amounts are decimal strings, times are UTC."""

    invoice_id: str
    workflow_id: str
    state: State
    status: Annotated[str, Field(description="The status in words, as the workflow gives it.")]
    line_count: int | None = None
    total: Decimal | None = None
    currency: str | None = None
    paid_lines: int = 0
    paid_amount: Decimal = Decimal("0.00")
    current_line: Annotated[str | None, Field(description="The line being paid.")] = None
    submitted_at: datetime
    deadline: Annotated[
        datetime | None, Field(description="A waiting invoice is rejected then.")
    ] = None
    decision: Decision | None = None
    retry: Retry | None = None
    closed_at: datetime | None = None
    worker_answers: Annotated[
        bool | None, Field(description="Whether a worker runs; null if that was not asked.")
    ] = None

    @property
    def open(self) -> bool:
        return self.state in ("waiting", "paying")

    @property
    def amounts(self) -> str:
        """`2 lines, $7,000.00`, or a word on why that isn't known."""
        if self.line_count is None or self.total is None or self.currency is None:
            return "content unreadable"
        return f"{counted(self.line_count, 'line')}, {money(self.total, self.currency)}"

    @property
    def paid(self) -> str:
        """How much is paid, as a sentence."""
        if self.total is None or self.currency is None or self.line_count is None:
            return "Nothing is paid."
        if not self.paid_lines:
            return f"{self.amounts}; nothing of it is paid."
        amount = money(self.paid_amount, self.currency)
        return (
            f"Paid: {self.paid_lines:,} of {counted(self.line_count, 'line')},"
            f" {amount} of {money(self.total, self.currency)}."
        )

    @property
    def decided(self) -> str:
        """Who decided, when and why, as a sentence; empty if nobody did."""
        if not self.decision:
            return ""
        verb = "Approved" if self.decision.approved else "Rejected"
        by = shown(self.decision.by, 200) if self.decision.by else "another client, name unknown"
        reason = f", reason: {quoted(self.decision.reason, 300)}" if self.decision.reason else ""
        return f"{verb} by {by} on {utc(self.decision.at)}{reason}."

    def in_words(self) -> str:
        """The answer of `get_invoice_status`: the tutorial's sentence, then `details`."""
        return f"Invoice {self.invoice_id} status: {shown(self.status, 600)}. {self.details}"

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
            f"Approval deadline: {utc(self.deadline)} (in {span(left)});"
            " without a decision by then it is rejected."
        )

    def _retry(self) -> str:
        if self.retry is None:
            return ""
        at = self.retry.next_attempt_at
        return (
            f"Line {self.retry.line} is being retried, attempt {self.retry.attempt}"
            f"{f' at {utc(at)}' if at else ''}; last error: {shown(self.retry.last_error, 300)}."
        )

    def in_a_line(self) -> str:
        """One line of `list_invoices`."""
        parts = [shown(self.status, 200), self.amounts]
        parts.append(f"submitted {span(datetime.now(UTC) - self.submitted_at)} ago")
        if self.paid_lines and self.state != "completed" and self.currency:
            parts.append(f"{money(self.paid_amount, self.currency)} paid")
        if self.state == "waiting" and self.deadline:
            parts.append(f"deadline {utc(self.deadline)}")
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

    def in_words(self, which: str) -> str:
        """The answer of `list_invoices`; `which` is the state asked for, or `all`."""
        kind = "invoice" if which == "all" else f"{which.replace('_', ' ')} invoice"
        if not self.invoices and not self.not_shown:
            return f"There are no {kind}s."
        totals = " and ".join(money(amount, code) for code, amount in self.total.items())
        order = "open ones first, newest first" if which == "all" else "newest first"
        head = f"{counted(len(self.invoices), kind)}, {order}"
        lines = [f"{head}, {totals} in all:" if totals else f"{head}:"]
        lines += [f"- {invoice.in_a_line()}" for invoice in self.invoices]
        if self.not_shown:
            lines.append(
                f"Not looked at: {counted(self.not_shown, 'older one')} that may match too."
            )
        return "\n".join(lines)
