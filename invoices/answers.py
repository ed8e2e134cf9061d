"""The tools' answers: structured content for programs, and the same as text for people.

Text that other people wrote (items, reasons, names, errors) is sanitized in the text for people.
The structured content has it unchanged.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from invoices.invoice import is_invoice_id, rule_of_new_id
from invoices.similar import SimilarInvoice
from invoices.status import Decision, Progress
from invoices.wording import (
    describe_bill,
    format_duration,
    format_money,
    format_utc,
    pluralize,
    sanitized,
    sanitized_quote,
)

CLOCK_TOLERANCE_SECONDS = 3
"""If two computers' clocks differ by no more than this, the answers don't mention it."""


class Retry(BaseModel):
    """A payment that is being retried."""

    line: Annotated[
        int | None,
        Field(description="The line's number, from 1. Missing for a call to the ledger."),
    ] = None
    attempt: Annotated[int, Field(description="The number of the current or next attempt.")]
    next_attempt_at: datetime | None = None
    last_error: str

    @property
    def what(self) -> str:
        """`line 2`, or `the payment ledger`."""
        return f"line {self.line}" if self.line else "the payment ledger"


Outcome = Literal[
    "started",
    "already_in_process",
    "approved",
    "rejected",
    "already_approved",
    "already_rejected",
    "decision_kept",
    "asked_on_card",
    "cancelled",
    "being_cancelled",
    "cancellation_kept",
    "already_cancelled",
]
"""The result of a call.

`decision_kept`: the Temporal Service has the decision, and it takes effect when a worker runs,
unless an earlier decision is also waiting.
`being_cancelled`: a payment in progress finishes first.
`cancellation_kept`: the Temporal Service has the cancellation, and it takes effect when a worker
runs.
`already_cancelled`: it was cancelled earlier, or is being cancelled.
"""


class InvoiceStatus(Progress):
    """Where one invoice stands. Amounts are decimal strings, times are UTC."""

    model_config = ConfigDict(frozen=True)

    invoice_id: str
    workflow_id: str
    submitted_at: datetime
    deadline: Annotated[
        datetime | None, Field(description="When a waiting invoice is rejected.")
    ] = None
    kept_decision: Annotated[
        Decision | None,
        Field(
            description="The decision that takes effect when a worker runs. Missing if a worker"
            " answers."
        ),
    ] = None
    retry: Retry | None = None
    closed_at: datetime | None = None
    worker_answers: Annotated[
        bool | None, Field(description="Whether a worker answered. Missing if none was asked.")
    ] = None
    worker_failures: Annotated[
        int | None, Field(description="How often a worker failed to process this invoice.")
    ] = None
    replaces: Annotated[
        str | None,
        Field(description="The last submission with this id, if its content was different."),
    ] = None
    similar: Annotated[
        list[SimilarInvoice] | None,
        Field(
            description="Other invoices that may be the same bill, since they have the same total."
            " Only of a waiting invoice."
        ),
    ] = None
    outcome: Annotated[
        Outcome | None, Field(description="The result of this call, if it changes something.")
    ] = None
    clock_offset_seconds: Annotated[
        float | None,
        Field(
            description="How far the Temporal Service's clock is ahead of this computer's. Missing"
            f" up to {CLOCK_TOLERANCE_SECONDS} seconds, and if they haven't been compared yet."
        ),
    ] = None
    message: Annotated[str | None, Field(description="All of this as text.")] = None

    @property
    def caution(self) -> str:
        """A warning about an unusual id, as a sentence; empty if the id isn't unusual.

        Other clients and earlier versions can start invoices with ids that aren't allowed now.
        """
        rule = rule_of_new_id(self.invoice_id)
        return f"Take care with its id: an id {rule}." if rule else ""

    @property
    def similarity(self) -> str:
        """Which invoices may be the same bill, in sentences; empty if none is known."""
        return " ".join(f"{other}." for other in self.similar or [])

    @property
    def now(self) -> datetime:
        """The Temporal Service's time if that is known, otherwise this computer's."""
        return datetime.now(UTC) + timedelta(seconds=self.clock_offset_seconds or 0)

    @property
    def is_past_deadline(self) -> bool:
        """Whether the invoice still waits but can no longer be approved. A worker will end it."""
        return self.deadline is not None and self.deadline <= self.now

    @property
    def is_decided(self) -> bool:
        """Whether somebody has decided, even if that hasn't taken effect yet."""
        return self.state != "waiting" or bool(self.decision or self.kept_decision)

    def to_structured(self) -> dict[str, Any]:
        """The structured content, without empty fields and without fields for internal use."""
        of_decision = {"request", "sent_at"}
        inner: dict[str, Any] = {"decision": of_decision, "kept_decision": of_decision}
        if not self._clock_is_wrong:
            inner["clock_offset_seconds"] = True
        return message_first(self.model_dump(mode="json", exclude_none=True, exclude=inner))

    def to_text(self) -> str:
        """The answer of `get_invoice_status`: the tutorial's sentence, then `details`."""
        return f"Invoice {self.invoice_id} status: {sanitized(self.status, 600)}. {self.details}"

    @property
    def details(self) -> str:
        """What a person would want to know next, in sentences."""
        return f"{self.bill} {self.details_without_bill}".strip()

    @property
    def details_without_bill(self) -> str:
        """The same without whose bill it is."""
        return " ".join(filter(None, [*self._details(), self._worker(), self.clock]))

    def _details(self) -> list[str]:
        match self.state:
            case "waiting" if self.decision:  # the decision is about to take effect
                return [self.paid, self.decided, self.stopping]
            case "waiting" if self.kept_decision:
                return [self.caution, self.paid, self.kept, self.stopping]
            case "waiting" if self.cancellation:
                return [self.caution, self.paid, self.stopping]
            case "waiting":
                is_new = self.outcome == "started" and self.paid_earlier_lines is None
                amounts = f"{self.amounts}." if is_new else self.paid
                return [self.caution, amounts, self.similarity, self._deadline()]
            case "paying":
                line = f"Now: {sanitized(self.current_line, 200)}." if self.current_line else ""
                return [self.paid, line, self.stopping, self._retry(), self.decided]
            case "timed_out":
                return ["Nobody decided before the deadline.", self.paid]
            case "failed" | "cancelled":
                stopped = self.current_line if self.state == "cancelled" else None
                where = f"It was stopped at {sanitized(stopped, 200)}." if stopped else ""
                return [self.paid, where, self.decided, self.cancelled, self.advice]
            case "terminated":
                return [
                    f"Last recorded: {self.paid} If a payment was in progress at the end, it may"
                    " have been made too: check the payment ledger.",
                    self.decided,
                ]
            case _:
                return [self.paid, self.decided]

    @property
    def kept(self) -> str:
        """The decision that no worker has read yet, as a sentence; empty if there is none."""
        if self.kept_decision is None:
            return ""
        if self.cancellation:
            return f"A decision is kept: {self.kept_decision}."
        passed = (
            "It was made before the deadline, which has passed." if self.is_past_deadline else ""
        )
        return (
            f"A decision is kept and takes effect when a worker runs: {self.kept_decision}."
            f" {passed}".rstrip()
        )

    @property
    def stopping(self) -> str:
        """Who has asked to cancel an open invoice, and when it stops; empty if nobody has."""
        if self.cancellation is None or not self.is_open:
            return ""
        if self.worker_answers is False:
            when = "The cancellation is kept and takes effect when a worker runs."
        elif self.state == "paying":
            when = "The line that is being paid is finished first, and no other is started."
        else:
            when = ""
        return f"Cancellation requested {self.cancellation}. {when}".rstrip()

    def _deadline(self) -> str:
        if self.deadline is None:
            return ""
        if self.is_past_deadline:
            return (
                f"The approval deadline, {format_utc(self.deadline)}, has passed: it can't be"
                " approved any more. Once it has timed out, you can submit it again."
            )
        left = self.deadline - self.now
        return (
            f"Approval deadline: {format_utc(self.deadline)} (in {format_duration(left)});"
            " without a decision by then it is rejected."
        )

    def _retry(self) -> str:
        if self.retry is None:
            return ""
        next_attempt_at = self.retry.next_attempt_at
        at = f" at {format_utc(next_attempt_at)}" if next_attempt_at else ""
        what = self.retry.what
        return (
            f"{what[0].upper()}{what[1:]} is being retried, attempt {self.retry.attempt}{at};"
            f" last error: {sanitized(self.retry.last_error, 300)}."
        )

    def _worker(self) -> str:
        if self.worker_answers is not False:
            return ""
        if self.worker_failures:
            times = pluralize(self.worker_failures, "time")
            return (
                f"A worker tried to process this invoice and failed, {times} so far; its log says"
                " why. This is the last recorded status."
            )
        return (
            "No worker answers now: this is the last recorded status. The invoice continues when a"
            " worker runs."
        )

    @property
    def _clock_is_wrong(self) -> bool:
        return abs(self.clock_offset_seconds or 0) > CLOCK_TOLERANCE_SECONDS

    @property
    def clock(self) -> str:
        """A sentence that this computer's clock is wrong; empty if it isn't known to be."""
        if self.clock_offset_seconds is None or not self._clock_is_wrong:
            return ""
        difference = format_duration(timedelta(seconds=abs(self.clock_offset_seconds)))
        direction = "behind" if self.clock_offset_seconds > 0 else "ahead of"
        return (
            f"This computer's clock is {difference} {direction} the Temporal Service's. The"
            " service's clock counts, so correct this computer's."
        )

    def to_line(self) -> str:
        """The invoice's line in the text of `list_invoices`."""
        parts = [sanitized(self.status, 200), self.amounts]
        parts.append(describe_bill(self.supplier, self.supplier_reference, self.due_date, limit=60))
        parts.append(f"submitted {format_duration(self.now - self.submitted_at)} ago")
        if self.paid_lines and self.state != "completed" and self.currency:
            paid = f"{format_money(self.paid_amount, self.currency)} paid"
            if self.is_open and self.total is not None:
                paid += f", {format_money(self.total - self.paid_amount, self.currency)} to pay"
            parts.append(paid)
        if self.retry:
            parts.append(f"{self.retry.what} is being retried, attempt {self.retry.attempt}")
        if self.state == "waiting" and self.deadline:
            passed = "deadline passed" if self.is_past_deadline else "deadline"
            parts.append(f"{passed} {format_utc(self.deadline)}")
        if self.decision:
            parts.append(str(self.decision))
        if self.cancelled:
            parts.append(f"cancelled {self.cancellation}")
        if self.caution:
            parts.append(self.caution.rstrip("."))
        # Another client's id may be a sentence.
        id = self.invoice_id
        id = sanitized(id, 100) if is_invoice_id(id) else sanitized_quote(id, 100)
        return f"{id}: " + "; ".join(filter(None, parts))


def message_first(content: dict[str, Any]) -> dict[str, Any]:
    """Programs such as FastMCP's command line show a person the content in this order."""
    return {"message": content["message"], **content} if "message" in content else content
