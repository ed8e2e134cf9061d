"""An invoice's progress: its state, the decision on it and what has been paid."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from invoices.invoice import FromOthers, Invoice, iso_date, storable
from invoices.wording import (
    capitalized,
    describe_bill,
    format_lines_and_total,
    format_money,
    format_utc,
    parse_ranges,
    pluralize,
    sanitized,
    sanitized_quote,
)

State = Literal[
    "waiting",
    "scheduled",
    "paying",
    "completed",
    "rejected",
    "timed_out",
    "failed",
    "cancelled",
    "terminated",
]
"""Every state of an invoice. `scheduled`: approved, and to be paid on its payment date."""

OPEN_STATES: tuple[State, ...] = ("waiting", "scheduled", "paying")

LineState = Literal["unpaid", "being_paid", "paid_earlier", "paid", "not_known"]
"""Every state of a line. `not_known`: whether it is paid."""

RequiredApprovals = Literal["two_people", "two_other_people"]
"""Who must approve an invoice above the limit. Neither of `two_other_people` has submitted it."""

# The status texts, which the query `get_status` returns. Six of the first seven are the tutorial's.
PROCESSING = "Processing"
AWAITING_APPROVAL = "Awaiting approval"
APPROVAL_TIMEOUT = "Approval timeout - invoice rejected"
REJECTED = "Rejected by approver"
SCHEDULED = "Approved, to be paid on"
"""Followed by the day."""
PROCESSING_PAYMENTS = "Processing payments"
COMPLETED = "Completed"
CANCELLED = "Cancelled"
PAYMENT_FAILED = "Payment failed"
"""Followed by a colon, the line and the reason."""
INVALID_INVOICE = "Invalid invoice"
"""Followed by a colon, the fields and their rules."""
UNKNOWN_RESULT = "Ended with a result that is not an invoice's"
"""For a run that was completed by a worker that is neither ours nor the tutorial's."""

TERMINATED = "Terminated by an operator in Temporal"
"""Set by the client, because a terminated run no longer runs any code."""
TIMED_OUT_IN_TEMPORAL = "Timed out in Temporal"
"""For a run whose starter set a timeout. Its state is `terminated`, as it ended as suddenly."""
NOT_KNOWN = "Status not known, because too many signals were sent"
"""Set by the client if it can't tell whether the memo is the workflow's."""
REJECTED_OR_TIMED_OUT = "Rejected by an approver or timed out, which of them isn't known"
"""The same, for a run whose result says that it wasn't paid."""
NOT_READ = "Status not known, because its content is too complex for a list"
"""The same, for a run that no worker has taken yet."""
NOT_KNOWN_TEXTS = (NOT_KNOWN, REJECTED_OR_TIMED_OUT, NOT_READ)

STATUS_TEXTS: dict[State, str] = {
    "waiting": AWAITING_APPROVAL,
    "scheduled": SCHEDULED,
    "paying": PROCESSING_PAYMENTS,
    "completed": COMPLETED,
    "rejected": REJECTED,
    "timed_out": APPROVAL_TIMEOUT,
    "failed": PAYMENT_FAILED,
    "cancelled": CANCELLED,
    "terminated": TERMINATED,
}
"""How the status text begins in each state."""


def state_of_text(status: str) -> State:
    """The state for a status text from the tutorial's worker or from a memo of before 1.1."""
    if status.startswith(INVALID_INVOICE):
        return "failed"
    return next((s for s, text in STATUS_TEXTS.items() if status.startswith(text)), "waiting")


def describe_failure(kind: str, line: str | None, reason: str) -> str:
    """`Payment failed: line 2 of 2, “Server”, $1,500.00: declined`; `line` is the one reached."""
    text = INVALID_INVOICE if kind == "InvalidInvoice" else PAYMENT_FAILED
    return f"{text}: {f'{line}: ' if line else ''}{sanitized(reason, 500)}"


def failure_message(kind: str, line: str | None, reason: str) -> str:
    """The same for the failure of a run, which Temporal may keep in plain text where payloads are
    encrypted: with the number of the line or lines, and without items and amounts.
    """
    if kind == "PaymentConflict":  # its reason has what was paid
        reason = "paid earlier with different content"
    number = line.partition(", “")[0] if line else None
    return describe_failure(kind, number, reason)


def approval_deadline(submitted_at: datetime, timeout_days: float) -> datetime:
    """The deadline counts from the submission, even if the first worker started later."""
    return submitted_at + timedelta(days=timeout_days)


# Other clients can write memos and answers. With larger numbers or odd times, calculations would
# fail or never end. These aren't `Field(ge=...)`, because that would appear in the tools' schemas.


def _known_century(moment: datetime) -> datetime:
    if not 1970 < moment.year < 9000:
        raise ValueError("must be between the years 1971 and 8999")
    return moment.astimezone(UTC)


def _amount(value: Decimal) -> Decimal:
    if not 0 <= value < 10**13 or value != round(value, 2):
        raise ValueError("must be an amount of money")
    return value


def _count(value: int) -> int:
    if not 0 <= value < 10**6:
        raise ValueError("must be a number of lines")
    return value


def _currency(value: str) -> str:
    if not (len(value) == 3 and value.isascii() and value.isupper()):
        raise ValueError("must be a currency")
    return value


def _bill_text(value: str) -> str:
    if len(value) > 255:
        raise ValueError("must have at most 255 characters")
    return value


def _name(value: str) -> str:
    if len(value) > MAX_NAME:
        raise ValueError(f"must have at most {MAX_NAME} characters")
    return value


def _ranges(value: str) -> str:
    if value:
        parse_ranges(value)
    return value


def _cut_text(value: str) -> str:
    return value[:MAX_TEXT]


Moment = Annotated[AwareDatetime, AfterValidator(_known_century)]
Amount = Annotated[Decimal, AfterValidator(_amount)]
LineCount = Annotated[int, AfterValidator(_count)]
Currency = Annotated[str, AfterValidator(_currency)]
BillText = Annotated[str, AfterValidator(_bill_text)]
Name = Annotated[str, AfterValidator(_name)]
CutText = Annotated[str, AfterValidator(_cut_text)]
"""Another client's may be of any length: it is cut, and the other fields still count."""


MAX_TEXT = 2000
"""The longest status text, in characters, taken from another client. Our own are shorter."""
MAX_NAME = 200
MAX_REASON = 1000
READ_AT_ONCE = timedelta(seconds=2)
"""A decision that a running worker reads is at most this old, if the clocks agree."""


def text_in_memo(value: object) -> str | None:
    """A text that a run's starter wrote into the memo, cut; None for anything else.

    A memo that repeated half a character couldn't be read. In a signal, pydantic refuses it.
    """
    with suppress(ValueError):
        return storable(value[:MAX_NAME]) if isinstance(value, str) else None
    return None


class DecisionDetails(FromOthers):
    """What a signal says about a decision, besides approve or reject. Each field is optional."""

    by: Annotated[str | None, Field(max_length=MAX_NAME)] = None
    reason: Annotated[str | None, Field(max_length=MAX_REASON)] = None
    request: SkipJsonSchema[Annotated[str | None, Field(max_length=100)]] = None
    """An id that the sender makes up, so that it can recognize its own decision."""
    sent_at: SkipJsonSchema[AwareDatetime | None] = None
    """By the sender's clock. A decision that was kept until a worker ran is dated by it. Whether a
    decision was in time is judged by it only for runs that read a decision after the deadline under
    a version before 1.2. For all others, the time at which the service received it counts.
    """


DECISIONS = {"approve_invoice": True, "reject_invoice": False}
"""The signals that carry a decision, and whether each one approves."""


class Decision(DecisionDetails):
    """The first decision on an invoice, which stands."""

    approved: bool
    at: Moment

    @classmethod
    def from_signal(cls, approved: bool, data: bytes, at: datetime) -> Self:
        """Reads the details from a signal's JSON. Invalid JSON doesn't invalidate the decision."""
        try:
            details = DecisionDetails.model_validate_json(data)
        except ValidationError:
            details = DecisionDetails()
        return cls(**details.model_dump(), approved=approved, at=at)

    def dated_by_sender(self, submitted_at: datetime) -> datetime | None:
        """When its sender made it, if that is clearly earlier than `at`, when it was read.

        Only between the submission and then, since the sender can write anything.
        """
        if self.sent_at and submitted_at <= self.sent_at < self.at - READ_AT_ONCE:
            return self.sent_at.astimezone(UTC)
        return None

    def __str__(self) -> str:
        """`approved by user@host on 2026-11-29 06:02:11 UTC, reason: “as agreed”`."""
        verb = "approved" if self.approved else "rejected"
        return f"{verb} {_by_whom(self.by, self.at, self.reason)}"


class Cancellation(FromOthers):
    """A request to Temporal to cancel an invoice's run. The name and the reason are the sender's
    word.
    """

    by: Annotated[str | None, Field(max_length=MAX_NAME)] = None
    reason: Annotated[str | None, Field(max_length=MAX_REASON)] = None
    at: Moment | None = None
    """None if the request wasn't found, so that neither the time nor the sender is known."""

    @classmethod
    def from_request(cls, by: str, reason: str, at: datetime | None) -> Self:
        """Cuts the texts, which can be of any length."""
        return cls(by=by[:MAX_NAME] or None, reason=reason[:MAX_REASON] or None, at=at)

    def __str__(self) -> str:
        """`by user@host on 2026-11-29 06:02:11 UTC, reason: “ordered twice”`."""
        if self.at is None:
            because = f", reason: {sanitized_quote(self.reason, 300)}" if self.reason else ""
            return f"by an unknown client at an unknown time{because}"
        return _by_whom(self.by, self.at, self.reason)


def describe_name(name: str | None) -> str:
    """`user@host`, in quotation marks if it isn't such a name: a sender can write anything."""
    by = sanitized(name, MAX_NAME) if name else "another client, name unknown"
    if name and not re.fullmatch(r"[\w.@+-]+", by):
        by = sanitized_quote(name, MAX_NAME)
    return by


def _by_whom(name: str | None, at: datetime, reason: str | None) -> str:
    by = describe_name(name)
    because = f", reason: {sanitized_quote(reason, 300)}" if reason else ""
    return f"by {by} on {format_utc(at)}{because}"


class Progress(FromOthers):
    """An invoice's progress. Amounts are decimal strings, times are UTC."""

    state: State
    status: Annotated[CutText, Field(description="The status text, as the workflow reports it.")]
    line_count: LineCount | None = None
    total: Amount | None = None
    currency: Currency | None = None
    supplier: Annotated[BillText | None, Field(description="Whom the bill is from.")] = None
    supplier_reference: Annotated[
        BillText | None, Field(description="The supplier's number for the bill.")
    ] = None
    due_date: Annotated[
        Annotated[str, AfterValidator(iso_date)] | None,
        Field(description="The day by which the bill is to be paid, as an ISO date."),
    ] = None
    pay_on: Annotated[
        Moment | None,
        Field(description="When it is paid, if it is approved. Missing: as soon as it is."),
    ] = None
    submitted_by: Annotated[
        Name | None,
        Field(description="Who submitted it, user@host, as the submitting client says."),
    ] = None
    paid_lines: Annotated[LineCount, Field(description="Lines paid so far, by any submission.")] = 0
    paid_amount: Amount = Decimal("0.00")
    paid_earlier_lines: Annotated[
        LineCount | None,
        Field(description="Lines paid by earlier submissions. Missing if that isn't known."),
    ] = None
    paid_earlier_amount: Amount | None = None
    paid_earlier_numbers: Annotated[
        Annotated[str, AfterValidator(_ranges)] | None,
        Field(
            description="Which of its lines those are, such as 2, 5-7. Missing for the first lines,"
            " empty if all of them have been changed since."
        ),
    ] = None
    more_may_be_paid: Annotated[
        bool | None,
        Field(description="True if more lines may be paid, because the run was reset."),
    ] = None
    current_line: Annotated[CutText | None, Field(description="The line being paid.")] = None
    required_approvals: Annotated[
        RequiredApprovals | None,
        Field(
            description="Who must approve it: two different people, or two who aren't the one who"
            " submitted it. Missing if one approval is enough, or if that isn't known yet."
        ),
    ] = None
    first_approval: Annotated[
        Decision | None, Field(description="The first of two people's approvals.")
    ] = None
    decision: Decision | None = None
    cancellation: Annotated[
        Cancellation | None,
        Field(description="Who asked to stop it, when and why. It may not have stopped yet."),
    ] = None
    failure: Annotated[
        CutText | None,
        Field(
            description="Why it failed: PaymentDeclined, PaymentConflict (a line was paid earlier"
            " with different content) or InvalidInvoice."
        ),
    ] = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def is_cancelled(self) -> bool:
        return self.state == "cancelled"

    @property
    def amounts(self) -> str:
        """`2 lines, $7,000.00`, or `content unreadable`."""
        if self.line_count is None or self.total is None or self.currency is None:
            return "content unreadable"
        return format_lines_and_total(self.line_count, self.total, self.currency)

    @property
    def paid(self) -> str:
        """How much has been paid, as a sentence."""
        if self.total is None or self.currency is None or self.line_count is None:
            return (
                "This submission paid nothing." if self.failure else "It isn't known what was paid."
            )
        earlier = self.paid_earlier_lines
        if not self.paid_lines:
            if self.failure == "PaymentConflict":
                return f"{self.amounts}; this submission paid nothing."
            if earlier == 0:
                return f"{self.amounts}; nothing has been paid."
            ends_unpaid = self.state in ("rejected", "timed_out", "cancelled")
            if (ends_unpaid or self.failure == "InvalidInvoice") and not self.current_line:
                return (
                    f"{self.amounts}; this submission paid nothing. It isn't known whether an"
                    " earlier one did."
                )
            return f"{self.amounts}; it isn't known whether any of it was paid."
        if self.failure == "PaymentConflict" and self.paid_lines == earlier:
            amount = format_money(self.paid_amount, self.currency)
            lines = pluralize(self.paid_lines, "line")
            return f"Paid before the change: {self.at_least}{lines}, {amount}."
        lines = f"{self.paid_lines:,} of {pluralize(self.line_count, 'line')}"
        amount = format_money(self.paid_amount, self.currency)
        if earlier == self.paid_lines and self.is_open:
            left = format_money(self.total - self.paid_amount, self.currency)
            return (
                f"{self.amounts}: {self.at_least}{lines} paid earlier, {amount};"
                f" {self.at_most}{left} to pay."
            )
        total = format_money(self.total, self.currency)
        paid = f"Paid: {self.at_least}{lines}, {self.at_least}{amount} of {total}"
        if earlier and self.paid_earlier_amount is not None:
            paid_earlier = format_money(self.paid_earlier_amount, self.currency)
            paid += f", including {paid_earlier} paid earlier"
        return f"{paid}."

    @property
    def at_least(self) -> str:
        """What comes before what is paid: nothing, unless more may be."""
        return "at least " if self.more_may_be_paid else ""

    @property
    def at_most(self) -> str:
        """What comes before what is to pay: nothing, unless it may be less."""
        return "at most " if self.more_may_be_paid else ""

    @property
    def decided(self) -> str:
        """Who decided or approved first, when and why, in sentences; empty if nobody did."""
        decided = capitalized(f"{self.decision}.") if self.decision else ""
        return f"{self.first_approved} {decided}".strip()

    @property
    def first_approved(self) -> str:
        """Who of two people approved first, when and why, as a sentence; empty if nobody did."""
        return f"First {self.first_approval}." if self.first_approval else ""

    @property
    def needs_second_person(self) -> bool:
        """Whether one of two people has approved, and nobody has decided."""
        return self.state == "waiting" and bool(self.first_approval) and not self.decision

    @property
    def approval_rule(self) -> str:
        """Whose approval a waiting invoice needs, as a sentence; empty if one is enough."""
        if self.state != "waiting" or not self.required_approvals or self.decision:
            return ""
        others = ", neither of whom submitted it" if self.is_submitter_excluded else ""
        if self.first_approval:
            other = " who didn't submit it" if others else ""
            return f"A second person{other} must approve it too."
        return f"Two different people must approve it{others}."

    @property
    def approvals(self) -> str:
        """Who approved first and who else must, in sentences; empty if one approval is enough."""
        rule = self.approval_rule
        return f"{self.first_approved} {rule}".strip() if rule else ""

    @property
    def is_submitter_excluded(self) -> bool:
        return self.required_approvals == "two_other_people"

    @property
    def bill(self) -> str:
        """Whom the bill is from, its number and when it is due, as a sentence; may be empty."""
        described = describe_bill(self.supplier, self.supplier_reference, self.due_date)
        return capitalized(f"{described}.") if described else ""

    @property
    def submitted(self) -> str:
        """`Submitted by user@host.`; empty if the submitting client gave no name."""
        return f"Submitted by {describe_name(self.submitted_by)}." if self.submitted_by else ""

    def line_states(self, count: int) -> list[LineState]:
        """The state of each of its lines, of which there are `count`."""
        earlier = self.paid_earlier_lines or 0
        # Lines are paid in their order, so these are almost always the first ones.
        paid_earlier = frozenset(range(1, earlier + 1))
        if self.paid_earlier_numbers is not None:
            numbers = self.paid_earlier_numbers
            paid_earlier = parse_ranges(numbers) if numbers else frozenset()
        elif self.failure == "PaymentConflict":  # from 1.1: some of them have been changed since
            return ["not_known"] * count
        # From a run that doesn't know what was paid earlier, the first lines are known at most.
        is_known = self.paid_earlier_lines is not None or self.paid_lines > 0
        rest: LineState = "unpaid" if is_known and not self.more_may_be_paid else "not_known"
        paid_now, current = self.paid_lines - earlier, self._state_of_current_line(rest)
        states: list[LineState] = []
        for number in range(1, count + 1):
            if number in paid_earlier:
                states.append("paid_earlier")
            elif paid_now > 0:
                states.append("paid")
                paid_now -= 1
            else:
                states.append(current)
                current = rest
        return states

    def _state_of_current_line(self, otherwise: LineState) -> LineState:
        """The state of the line that was reached, the first that isn't paid."""
        if self.current_line and self.state == "paying":
            return "being_paid"
        # A run that ended without its workflow may have made the payment.
        ended_outside = self.state == "terminated" or (self.state == "failed" and not self.failure)
        return "not_known" if self.current_line and ended_outside else otherwise

    @property
    def cancelled(self) -> str:
        """Who cancelled it, when and why, as a sentence; empty unless it is cancelled."""
        return f"Cancelled {self.cancellation}." if self.is_cancelled and self.cancellation else ""

    @property
    def advice(self) -> str:
        """What to do about an invoice that failed or was cancelled; may be empty."""
        if self.failure == "PaymentConflict":
            return (
                "Submit it with that line as it was when it was paid, or submit only the unpaid"
                " lines under a new id."
            )
        if self.decision and self.failure != "InvalidInvoice":
            if not self.paid_lines:
                return "You can submit it again."
            return "If you submit it again and approve it, only its unpaid lines are paid."
        return ""


class RunProgress(Progress):
    """What a run keeps in its memo and returns from a query: progress and a few internal fields."""

    digest: CutText
    """`Invoice.digest`, which shows whether two submissions have the same content."""
    approval_timeout_days: Annotated[float, Field(gt=0, le=365)]
    ledger: CutText | None = None
    """The id of the payment ledger that this invoice belongs to."""
    gateway: CutText | None = None
    """The name of the payment gateway that this run belongs to."""
    submitted_at: Moment | None = None
    deadline: datetime | None = None
    """Not in the memo, since it is computed from the other fields."""

    @classmethod
    def of(cls, invoice: Invoice, submitted_by: object = None) -> Self:
        """`submitted_by` is what its starter says, which can be anything."""
        return cls(
            submitted_by=text_in_memo(submitted_by),
            state="waiting",
            status=AWAITING_APPROVAL,
            line_count=len(invoice.lines),
            total=invoice.total,
            currency=invoice.currency,
            supplier=invoice.supplier,
            supplier_reference=invoice.supplier_reference,
            due_date=invoice.due_date,
            pay_on=invoice.pay_at,
            digest=invoice.digest,
            approval_timeout_days=invoice.approval_timeout_days,
        )

    @model_validator(mode="before")
    @classmethod
    def _with_state(cls, memo: Any) -> Any:
        """Memos from before 1.1 have only the status text."""
        if isinstance(memo, dict) and "state" not in memo and isinstance(memo.get("status"), str):
            return {**memo, "state": state_of_text(memo["status"])}
        return memo

    def to_memo(self) -> dict[str, Any]:
        """The memo, with a key for each field that isn't None."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"deadline"})

    def to_first_memo(self) -> dict[str, Any]:
        """The memo that a run is started with. What depends on the worker's version isn't in it, so
        that nobody is told a payment date that an older worker doesn't keep.
        """
        return self.model_copy(update={"pay_on": None}).to_memo()
