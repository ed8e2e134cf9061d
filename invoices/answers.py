"""The tools' answers: structured content for programs, and the same as text for people.

Text that other people wrote (items, reasons, names, errors) is sanitized in the text for people.
The structured content has it unchanged.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from invoices.approvals import Judgement, can_matter, is_same_person, is_settled, judge
from invoices.invoice import is_invoice_id, rule_of_new_id
from invoices.similar import SimilarInvoice
from invoices.status import Decision, Progress, describe_name
from invoices.wording import (
    capitalized,
    describe_bill,
    format_day,
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
    """A payment that is being retried, or was paused in Temporal."""

    line: Annotated[
        int | None,
        Field(description="The line's number, from 1. Missing for a call to the ledger."),
    ] = None
    attempt: Annotated[int, Field(description="The number of the current or next attempt.")]
    next_attempt_at: datetime | None = None
    paused: Annotated[
        bool | None, Field(description="True if it is paused in Temporal and not retried.")
    ] = None
    last_error: str

    @property
    def what(self) -> str:
        """`line 2`, or `the payment ledger`."""
        return f"line {self.line}" if self.line else "the payment ledger"

    def __str__(self) -> str:
        """`line 2 is being retried, attempt 3`."""
        how = "is paused in Temporal" if self.paused else "is being retried"
        return f"{self.what} {how}, attempt {self.attempt}"


Outcome = Literal[
    "started",
    "already_in_process",
    "approved",
    "approved_first",
    "rejected",
    "already_approved",
    "already_approved_first",
    "already_rejected",
    "decision_kept",
    "asked_on_card",
    "cancelled",
    "being_cancelled",
    "cancellation_kept",
    "already_cancelled",
]
"""The result of a call.

`approved_first`: by one of two people; nothing is paid before the second has approved.
`already_approved_first`: by the same person, whose second approval doesn't count.
`decision_kept`: the Temporal Service has the decision, and it takes effect when a worker runs, as
far as the other decisions that are kept allow it.
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
            description="The decision that takes effect when a worker runs, or once the invoice"
            " isn't paused. Missing if a worker answers."
        ),
    ] = None
    kept_decisions: Annotated[
        list[Decision] | None,
        Field(description="All that are kept and can matter, in order, if there is more than one."),
    ] = None
    approval_rule_unknown: Annotated[
        bool | None,
        Field(
            description="True if no worker has told yet whether two people must approve it."
            " `kept_decision` then takes effect if one person is enough."
        ),
    ] = None
    kept_decision_unknown: Annotated[
        bool | None,
        Field(
            description="True if a decision may be kept that isn't known, because too many signals"
            " were sent."
        ),
    ] = None
    earlier_ledger: Annotated[
        str | None,
        Field(
            description="The payment ledger from which an earlier submission began to pay, if this"
            " one isn't bound to it. Then it can't be approved."
        ),
    ] = None
    retry: Retry | None = None
    closed_at: datetime | None = None
    worker_answers: Annotated[
        bool | None, Field(description="Whether a worker answered. Missing if none was asked.")
    ] = None
    paused: Annotated[
        bool | None,
        Field(description="True if it is paused in Temporal, or in a status that isn't known."),
    ] = None
    starts_at: Annotated[
        datetime | None,
        Field(description="When its workflow starts, if that has been delayed or scheduled."),
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
    similar_incomplete: Annotated[
        bool | None,
        Field(
            description="True if there may be more invoices with the same total that weren't"
            " compared."
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
        """Which invoices may be the same bill, in sentences; empty if there is none."""
        told = [f"{other}." for other in self.similar or []]
        if self.similar_incomplete:
            told.append(
                "There may be more invoices with the same total that weren't compared."
                if told
                else "There may be invoices with the same total that weren't compared."
            )
        return " ".join(told)

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
        return self.state != "waiting" or bool(self.decision) or self._keeps_end

    @property
    def _keeps_end(self) -> bool:
        """Whether what is kept decides, whatever else is sent."""
        if self.approval_rule_unknown:
            return is_settled(self._made)
        return bool(self.kept_decision and self.judgement.decision)

    @property
    def unread_decisions(self) -> list[Decision]:
        """The decisions that are kept and can matter, in order."""
        return self.kept_decisions or ([self.kept_decision] if self.kept_decision else [])

    @property
    def _made(self) -> list[Decision]:
        first = [self.first_approval] if self.first_approval else []
        return first + self.unread_decisions

    @property
    def judgement(self) -> Judgement:
        """What a worker will make of the first of two approvals and of what is kept. While the rule
        isn't known, as if one person were enough.
        """
        return judge(self._made, self.required_approvals, self.submitted_by)

    def with_unread(self, decisions: list[Decision], *, is_rule_known: bool) -> Self:
        """The status with decisions that no worker has read, in order, of those that matter.

        Args:
            is_rule_known: whether a worker has told who must approve it.
        """
        with_all = self.model_copy(update={"kept_decisions": decisions})
        judgement = with_all.judgement
        kept = judgement.decision or (judgement.first if not self.first_approval else None)
        update = {
            "kept_decision": kept,
            "kept_decisions": decisions if kept and len(decisions) > 1 else None,
            "approval_rule_unknown": True if kept and not is_rule_known else None,
        }
        return self.model_copy(update=update)

    def can_change(self, name: str, *, approve: bool) -> bool:
        """Whether a decision by this person could change what those made so far mean together."""
        decision = Decision(approved=approve, by=name, at=self.now)
        if self.approval_rule_unknown:
            return can_matter(decision, self._made)
        judgement = self.judgement
        then = judge([*self._made, decision], self.required_approvals, self.submitted_by)
        return (then.decision, then.first) != (judgement.decision, judgement.first)

    def is_first_approval_by(self, name: str) -> bool:
        """Whether a second person must approve, and this isn't one."""
        first = self.judgement.first
        return bool(first and not self.is_decided and is_same_person(first.by, name))

    def to_structured(self) -> dict[str, Any]:
        """The structured content, without empty fields and without fields for internal use."""
        of_decision = {"request", "sent_at"}
        kinds = ("first_approval", "decision", "kept_decision")
        inner: dict[str, Any] = dict.fromkeys(kinds, of_decision)
        inner["kept_decisions"] = {"__all__": of_decision}
        if not self._clock_is_wrong:
            inner["clock_offset_seconds"] = True
        return message_first(self.model_dump(mode="json", exclude_none=True, exclude=inner))

    def to_text(self) -> str:
        """The answer of `get_invoice_status`: the tutorial's sentence, then `details`."""
        return f"Invoice {self.invoice_id} status: {sanitized(self.status, 600)}. {self.details}"

    @property
    def details(self) -> str:
        """What a person would want to know next, in sentences."""
        submitted = "" if self.outcome == "started" else self.submitted
        about = [self.bill, self.two_ledgers, *self._details(), submitted, self._worker()]
        return " ".join(filter(None, [*about, self.clock]))

    @property
    def details_without_bill(self) -> str:
        """The same without whose bill it is and who submitted it."""
        about = [self.two_ledgers, *self._details(), self._worker(), self.clock]
        return " ".join(filter(None, about))

    @property
    def two_ledgers(self) -> str:
        """That it could be paid from a second payment ledger, and what to do, in sentences."""
        if self.earlier_ledger is None:
            return ""
        return (
            f"An earlier submission began to pay it from the payment ledger"
            f" {sanitized(self.earlier_ledger, 8)}, to which this one isn't bound, so lines that"
            " are paid there could be paid again. Cancel this submission and submit the invoice"
            " again: the new one is bound to that ledger."
        )

    def _details(self) -> list[str]:
        match self.state:
            case "waiting" if self.decision:  # the decision is about to take effect
                return [self.paid, self.decided, self.stopping]
            case "waiting" if self.kept_decision:
                about = [self.caution, self.paid, self.payment_date, self.approvals]
                return [*about, self.kept, self.stopping]
            case "waiting" if self.cancellation:
                return [self.caution, self.paid, self.stopping]
            case "waiting":
                about = [self.caution, self._amounts(), self.similarity, self.payment_date]
                return [*about, self.approvals, self._deadline()]
            case "scheduled":
                return [self.paid, self.payment_date, self.stopping, self.decided]
            case "paying":
                line = f"Now: {sanitized(self.current_line, 200)}." if self.current_line else ""
                return [self.paid, line, self.stopping, self._retry(), self.decided]
            case "timed_out":
                nobody = "No second person" if self.first_approval else "Nobody"
                return [self.first_approved, f"{nobody} decided before the deadline.", self.paid]
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

    def _amounts(self) -> str:
        """What a waiting invoice is for, and what was paid earlier, as far as that was asked."""
        if self.outcome != "started" or self.paid_earlier_lines is not None:
            return self.paid
        if self.worker_answers is not None:
            return f"{self.amounts}."
        unchecked = "No worker has checked it yet. If it can't be paid, its status says why."
        return f"{self.amounts}. {unchecked}"

    @property
    def payment_date(self) -> str:
        """When it is paid, as a sentence; empty if that is past, or as soon as it is approved."""
        if self.pay_on is None or self.state not in ("waiting", "scheduled"):
            return ""
        if self.pay_on > self.now:
            left = format_duration(self.pay_on - self.now)
            return f"Payment date: {format_day(self.pay_on)} (in {left}); nothing is paid before."
        passed = "has passed: it is paid as soon as it is approved."
        if self.state == "scheduled":
            passed = "has come."
        return f"Payment date: {format_day(self.pay_on)}, which {passed}"

    @property
    def kept(self) -> str:
        """The decision that no worker has read yet, as a sentence; empty if there is none."""
        if self.kept_decision is None:
            return ""
        unread = self.unread_decisions
        is_one = len(unread) == 1
        effect = "" if self.cancellation else f" and takes effect {self.continues}"
        what = f"A decision is kept{effect}" if is_one else "Decisions are kept, in this order"
        told = f"{what}: {'; '.join(map(str, unread))}."
        if self.cancellation:
            return told
        if self.is_past_deadline:
            made = "It was" if is_one else "They were"
            told += f" {made} made before the deadline, which has passed."
        return f"{told} {self.effect_of_kept}".rstrip()

    @property
    def effect_of_kept(self) -> str:
        """What the kept decisions bring about, as a sentence; empty if a single one decides."""
        when, effect = capitalized(self.continues), self._effect(self.judgement)
        of_two = effect
        unless = ""
        if self.approval_rule_unknown:
            of_two = self._effect(judge(self._made, "two_people"))
            # Whichever of them has submitted it may be excluded for that.
            of_others = (judge(self._made, "two_other_people", one.by) for one in self._made)
            if of_two == "is approved" and not all(one.approved for one in of_others):
                unless = ", unless one of them submitted it and may not approve it"
        if (of_two, unless) == (effect, ""):
            is_plain = self._keeps_end and len(self._made) == 1
            return "" if is_plain else f"{when}, the invoice {effect}."
        return (
            f"{when}, the invoice {effect} if one person is enough. If two people must approve it,"
            f" which isn't known yet, it {of_two}{unless}."
        )

    def _effect(self, judgement: Judgement) -> str:
        if judgement.decision:
            return "is approved" if judgement.approved else "is rejected"
        if self.is_past_deadline:
            return "times out"
        return "needs a second person" if judgement.first else "needs two people's approval"

    @property
    def stopping(self) -> str:
        """Who has asked to cancel an open invoice, and when it stops; empty if nobody has."""
        if self.cancellation is None or not self.is_open:
            return ""
        if self.worker_answers is False:
            when = f"The cancellation is kept and takes effect {self.continues}."
        elif self.state == "paying":
            # It may also have been cancelled just before its payment would have begun.
            when = "If a payment is in progress, it finishes first. No other is started."
        else:
            when = ""
        return f"Cancellation requested {self.cancellation}. {when}".rstrip()

    def _deadline(self) -> str:
        if self.deadline is None:
            return ""
        if self.kept_decision_unknown:
            verb = "passed" if self.is_past_deadline else "is"
            return (
                f"The approval deadline {verb} on {format_utc(self.deadline)}. It isn't known"
                " whether a decision is kept already, because too many signals were sent."
            )
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
        error = sanitized(self.retry.last_error, 300)
        because = f"; last error: {error}" if error or not self.retry.paused else ""
        until = " It continues once that is unpaused." if self.retry.paused else ""
        return f"{capitalized(str(self.retry))}{at}{because}.{until}"

    def _worker(self) -> str:
        if self.worker_answers is not False:
            return ""
        if self.worker_failures and not self.paused:
            times = pluralize(self.worker_failures, "time")
            return (
                f"A worker tried to process this invoice and failed, {times} so far; its log says"
                " why. This is the last recorded status."
            )
        return (
            f"{self.why_kept}: this is the last recorded status. The invoice continues"
            f" {self.continues}."
        )

    @property
    def why_kept(self) -> str:
        """Why nothing happens now to an open invoice about which no worker has answered."""
        if self.paused:
            return "The invoice is paused in Temporal, or in a status that isn't known"
        if self.starts_at:
            return (
                "Its workflow hasn't started, because its starter gave it a delay or a schedule,"
                f" until {format_utc(self.starts_at)}"
            )
        if self.worker_failures:
            return "A worker tried to process this invoice and failed; its log says why"
        return "No worker answers now"

    @property
    def continues(self) -> str:
        """When an open invoice continues about which no worker has answered."""
        if self.paused:
            return "once it is unpaused in Temporal"
        return "once its workflow starts" if self.starts_at else "when a worker runs"

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
        by = f"by {describe_name(self.submitted_by)} " if self.submitted_by else ""
        parts = [
            sanitized(self.status, 200),
            self.amounts,
            describe_bill(self.supplier, self.supplier_reference, self.due_date, limit=60),
            f"submitted {by}{format_duration(self.now - self.submitted_at)} ago",
            *self._payment_in_line(),
            *(self._waiting_in_line() if self.state == "waiting" else ()),
        ]
        if self.decision:
            parts += [f"first {self.first_approval}"] if self.first_approval else []
            parts.append(str(self.decision))
        if self.cancelled:
            parts.append(f"cancelled {self.cancellation}")
        if self.caution:
            parts.append(self.caution.rstrip("."))
        # Another client's id may be a sentence.
        id = self.invoice_id
        id = sanitized(id, 100) if is_invoice_id(id) else sanitized_quote(id, 100)
        return f"{id}: " + "; ".join(filter(None, parts))

    def _payment_in_line(self) -> Iterator[str]:
        if self.paid_lines and self.state != "completed" and self.currency:
            paid = f"{self.at_least}{format_money(self.paid_amount, self.currency)} paid"
            if self.is_open and self.total is not None:
                left = format_money(self.total - self.paid_amount, self.currency)
                paid += f", {self.at_most}{left} to pay"
            yield paid
        if self.retry:
            yield str(self.retry)
        if self.paused:
            yield "paused in Temporal, or in a status that isn't known"

    def _waiting_in_line(self) -> Iterator[str]:
        if self.deadline:
            passed = "deadline passed" if self.is_past_deadline else "deadline"
            yield f"{passed} {format_utc(self.deadline)}"
        if self.required_approvals and not self.first_approval:
            yield "two people must approve"
        if self.pay_on:
            yield f"payment date {format_day(self.pay_on)}"


def message_first(content: dict[str, Any]) -> dict[str, Any]:
    """Programs such as FastMCP's command line show a person the content in this order."""
    return {"message": content["message"], **content} if "message" in content else content
