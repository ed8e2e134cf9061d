"""Which decisions an invoice's run has received, when they were made, and which were in time."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities import decision_in_time
    from invoices.approvals import Judgement, can_matter, judge
    from invoices.messages import LedgerAnswer
    from invoices.status import Decision, RequiredApprovals, RunProgress


@dataclass
class ReceivedDecisions:
    """The decisions on one invoice, in the order in which they were made."""

    submitted_by: str | None = None
    required: RequiredApprovals | None = None
    is_rule_known: bool = False
    """Whether a worker has said what is required. Until then, one approval seems to be enough, and
    decisions after the first are kept too.
    """
    has_late_one: bool = False
    """Whether a decision was read after the deadline. It may still have arrived in time."""
    made: list[Decision] = field(default_factory=list)

    @property
    def judgement(self) -> Judgement:
        return judge(self.made, self.required, self.submitted_by)

    def note_in(self, progress: RunProgress) -> None:
        """Adds what a person who decides next needs to know, if two people are required."""
        if self.required:
            progress.required_approvals = self.required
            progress.first_approval = self.judgement.first
            progress.decision = self.judgement.decision

    def learn_rule(self, answer: LedgerAnswer) -> bool:
        """Takes over what the first worker that answers requires. True if it is two people.

        If it has a different ledger or gateway, that holds only until the right one answers.
        """
        if self.is_rule_known:
            return False
        self.is_rule_known = not answer.is_of_another
        self.required = answer.required_approvals
        return self.required is not None

    def receive(
        self, approved: bool, payload: RawValue, deadline: datetime, outcome: bool | None
    ) -> bool:
        """Takes in a signal, and says whether it may change what the decisions mean together.

        Args:
            outcome: what has been decided so far; None while the invoice waits.
        """
        is_decided = outcome is not None
        if is_decided and self.is_rule_known:
            return False
        decision = Decision.from_signal(approved, payload.payload.data, workflow.now())
        # A decision that is read after the deadline counts only if the Temporal Service received
        # it before the deadline. The run looks that up once the deadline's timer has fired.
        if decision.at >= deadline:
            if is_decided or workflow.patched("deadline-by-the-service"):
                workflow.logger.info("A decision is read after the deadline")
                self.has_late_one = True
                return False
            # Older runs: the sender's clock counted.
            if workflow.patched("deadline-is-a-decision") and not _date_if_sent_in_time(
                decision, deadline
            ):
                return False
        sent_at = decision.dated_by_sender(workflow.info().workflow_start_time)
        if sent_at and not is_decided and workflow.patched("dated-by-the-sender"):
            decision.at = sent_at
        if can_matter(decision, self.made):
            self.made.append(decision)
        return True

    async def look_up_those_in_time(self, deadline: datetime, retry_policy: RetryPolicy) -> Any:
        """Asks which decisions the Temporal Service received before the deadline.

        A local activity: anyone with access to the service could complete a regular one.

        Raises:
            FailureError: there is no answer, because the run is cancelled.
        """
        may_need_two = self.required is not None or not self.is_rule_known
        return await workflow.execute_local_activity(
            decision_in_time,
            args=[deadline.isoformat(), True] if may_need_two else [deadline.isoformat()],
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=retry_policy,
        )

    def replace(self, found: Any) -> None:
        """Takes over what `look_up_those_in_time` has found."""
        decisions = found if isinstance(found, list) else [found] if found else []
        self.made = [Decision.model_validate(decision) for decision in decisions]


def _date_if_sent_in_time(decision: Decision, deadline: datetime) -> bool:
    """Decides by the sender's clock, and then dates the decision by it."""
    submitted_at = workflow.info().workflow_start_time
    if decision.sent_at is None or not submitted_at <= decision.sent_at < deadline:
        return False
    decision.at = decision.sent_at
    return True
