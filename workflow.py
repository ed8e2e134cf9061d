"""The course of one invoice: wait for a person's decision, then pay line by line.

Changing this file: invoices wait for days, so runs that began under the old code go on under the
new. Any change that adds, removes or reorders what a run asks of Temporal (timers, activities,
memo updates) goes behind `workflow.patched("name-of-the-change")`; the recorded histories in
`tests/histories` show whether old runs still replay. Don't ask `patched` about a change for the
first time right after a local activity: `RunReport.make_rule_known` says why.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from pydantic import ValidationError

    from activities import (
        HEARTBEAT_TIMEOUT,
        payment_outcome,
        payments_made,
        process_payment,
    )
    from decisions import ReceivedDecisions
    from invoices.invoice import (
        AS_STARTED,
        BEFORE_1_1,
        Invoice,
        LineItem,
        line_id,
        workflow_id,
    )
    from invoices.messages import LedgerAnswer, LedgerQuestion, PaymentRequest, Terms
    from invoices.paid_earlier import PaidEarlier
    from invoices.status import (
        PROCESSING,
        SCHEDULED,
        STATUS_TEXTS,
        Decision,
        RunProgress,
        State,
        approval_deadline,
        describe_failure,
        failure_message,
        text_in_memo,
    )
    from invoices.wording import describe_payment, describe_validation_errors, format_day
    from reports import RunReport, find_cancellation, report_invalid
    from temporal_service.payloads import NO_PAYLOAD

TASK_QUEUE = "invoice-task-queue"

# Retry until the gateway is back: an approved invoice must be paid.
RETRY_FOREVER = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(minutes=1),
)


@workflow.defn
class InvoiceWorkflow:
    """Returns `COMPLETED` or `REJECTED`, or fails: `InvalidInvoice`, or what stopped a payment."""

    invoice: Invoice
    progress: RunProgress
    deadline: datetime
    report: RunReport

    # Payloads are taken raw, here and in the signals; `temporal_service/payloads.py` says why.
    @workflow.init
    def __init__(self, invoice: RawValue = NO_PAYLOAD) -> None:
        self.approved: bool | None = None
        self.status = PROCESSING
        self.decision: Decision | None = None
        self.expected_ledger: str | None = None
        self.paid_earlier = PaidEarlier()
        self.asks_ledger = workflow.patched("paid-earlier")
        self.decisions = ReceivedDecisions(is_rule_known=not self.asks_ledger)
        content = _read_invoice(invoice, AS_STARTED if self.asks_ledger else BEFORE_1_1)
        self.invoice_problem = content if isinstance(content, str) else None
        if isinstance(content, Invoice):
            self._begin(content)

    @workflow.run
    async def run(self, invoice: RawValue = NO_PAYLOAD) -> str:
        if self.invoice_problem:
            self.status = report_invalid(self.invoice_problem)
            raise ApplicationError(self.invoice_problem, type="InvalidInvoice", non_retryable=True)
        workflow.logger.info("%s submitted: %s", self.invoice.id, self.invoice.summary)
        try:
            await self._look_up_earlier_payments()

            # Step 1: "Awaiting approval". Wait for a person's decision, until the deadline.
            self._set_state("waiting")
            await self._wait_for_decision()

            # Step 2: nobody decided in time.
            if self.approved is None:
                self.approved = False
                self._set_state("timed_out")
                return "REJECTED"

            # Step 3: a person rejected it.
            if not self.approved:
                self._set_state("rejected")
                return "REJECTED"

            # Step 4: pay one line after another, each by the activity `process_payment`.
            await self._wait_for_payment_date()
            for number, line in enumerate(self.invoice.lines, start=1):
                if number not in self.paid_earlier:
                    self._begin_line(number)
                    await _pause_before(number, self.invoice.payment_interval_seconds)
                    await self._pay(number, line)
            self.progress.current_line = None
            self._set_state("completed")
            return "COMPLETED"
        except asyncio.CancelledError:
            self.progress.cancellation = await find_cancellation()
            self.progress.decision = self.decision
            self._set_state("cancelled")
            raise
        finally:
            await self.report.hand_over_notices()

    @workflow.signal
    def approve_invoice(self, details: RawValue = NO_PAYLOAD) -> None:
        """Takes an optional `DecisionDetails` as JSON: who decides, and why."""
        self._receive_decision(True, details)

    @workflow.signal
    def reject_invoice(self, details: RawValue = NO_PAYLOAD) -> None:
        """Takes an optional `DecisionDetails` as JSON: who decides, and why."""
        self._receive_decision(False, details)

    @workflow.query
    def get_status(self) -> str:
        return self.status

    @workflow.query
    def get_progress(self) -> dict[str, Any]:
        """A `RunProgress`, empty for an invalid invoice."""
        if self.invoice_problem:
            return {}
        # Report a decision as soon as it is made, even while the ledger is still being asked.
        return self.progress.model_copy(update={"decision": self.decision}).model_dump(mode="json")

    def _begin(self, invoice: Invoice) -> None:
        self.invoice = invoice
        self.progress = RunProgress.of(invoice, workflow.memo_value("submitted_by", None))
        if invoice.pay_at and not workflow.patched("payment-date"):
            self.progress.pay_on = None  # an older run, in which the field had no meaning
        submitted_at = workflow.info().workflow_start_time
        if self.asks_ledger:
            self.progress.status = PROCESSING  # until the ledger has answered
            self.progress.submitted_at = submitted_at
        self.decisions.submitted_by = self.progress.submitted_by
        self.deadline = approval_deadline(submitted_at, invoice.approval_timeout_days)
        self.progress.deadline, self.report = self.deadline, RunReport(invoice, self.deadline)

    def _set_state(self, state: State, status: str | None = None) -> None:
        """Sets the state and its status, by default the state's own text, and makes them known."""
        texts = {**STATUS_TEXTS, "waiting": self.decisions.judgement.waiting_status}
        self.status = status or texts[state]
        self.progress.state, self.progress.status = state, self.status
        self.report.make_known(self.progress)

    async def _look_up_earlier_payments(self) -> None:
        """Asks the ledger for a few seconds. Without an answer, step 4 asks again."""
        if not self.asks_ledger:  # a run from before 1.1
            return
        # The client passes on the ledger of the previous run. It isn't reported as this run's own,
        # because anyone can write a memo.
        self.expected_ledger = text_in_memo(workflow.memo_value("ledger", None))
        try:
            found = await workflow.execute_local_activity(
                payments_made,
                LedgerQuestion.about(self.invoice, self._terms()).to_json(),
                schedule_to_close_timeout=timedelta(seconds=3),
                retry_policy=RetryPolicy(maximum_attempts=2),
            )
        except FailureError as error:
            if _is_final(error) or _is_cancelled():
                raise self._error_for(error) from error
        else:
            self._take_over(found)

    def _receive_decision(self, approved: bool, payload: RawValue) -> None:
        """The first decision stands or, where two people are required, what all mean together."""
        # No `await` between check and assignment, so a second signal can't slip in.
        if self.invoice_problem:
            return
        if self.decisions.receive(approved, payload, self.deadline, self.approved):
            self._judge()
            if self.decisions.required and self.approved is None:
                self._set_state("waiting")  # the status text says who else must approve

    def _judge(self) -> None:
        self.decision = self.decisions.judgement.decision
        self.approved = self.decision.approved if self.decision else None
        self.decisions.note_in(self.progress)

    async def _wait_for_decision(self) -> None:
        if self.report.sends_notices:
            wait = timedelta(days=self.invoice.approval_timeout_days)
            await self._wait_until(self.deadline - wait / 5, "Reminder")
            if self.approved is None and workflow.now() < self.deadline:
                self.report.notify("reminder", self.progress)
        if self.approved is None:
            await self._wait_until(self.deadline, "Approval deadline")
        if self.approved is None and self.decisions.has_late_one:
            await self._take_decision_in_time()
        self.progress.decision = self.decision
        if self.approved:
            await self._require_earlier_payments()
        self.decisions.is_rule_known = True

    async def _wait_until(self, moment: datetime, summary: str) -> None:
        await _wait_for(lambda: self.approved is not None, moment, summary)

    async def _take_decision_in_time(self) -> None:
        try:
            found = await self.decisions.look_up_those_in_time(self.deadline, RETRY_FOREVER)
        except FailureError as error:
            raise self._error_for(error) from error
        if self.approved is None:
            self.decisions.replace(found)
            self._judge()

    async def _require_earlier_payments(self) -> None:
        """Asks the ledger again, for as long as it takes, if it gave no answer at first."""
        if self.progress.paid_earlier_lines is not None or not _asks_again(self.asks_ledger):
            return
        self._set_state("paying")
        question = LedgerQuestion.about(self.invoice, self._terms()).to_json()
        found = await self._execute(payments_made, question, "ledger", "What was paid earlier")
        self._take_over(found)
        if self.approved is None:  # two people must approve, which wasn't known
            self._set_state("waiting")
            await self._wait_for_decision()

    async def _wait_for_payment_date(self) -> None:
        if (pay_on := self.progress.pay_on) and pay_on > workflow.now():
            self._set_state("scheduled", f"{SCHEDULED} {format_day(pay_on)}")
            await workflow.sleep(_whole_seconds_until(pay_on), summary="Payment date")

    def _take_over(self, found: dict[str, Any]) -> None:
        """Keeps what the ledger answered; fails where a line that was paid has been changed."""
        if (answer := _read_answer(found)) is None:
            raise self._fail_with("PaymentFailed", "what was paid earlier can't be read")
        self.progress.gateway, self.report.sends_notices = answer.gateway, answer.notify
        if self.decisions.learn_rule(answer):
            self._judge()
            self.report.make_rule_known(self.progress)
        if answer.lines is None:  # the ledger is away
            return
        self.progress.ledger, self.paid_earlier = answer.ledger, PaidEarlier.of(answer)
        self.paid_earlier.note_in(self.progress, self.invoice)
        if changes := self.paid_earlier.changes(self.invoice):
            lines = self.paid_earlier.changed_lines(self.invoice)
            raise self._fail_with("PaymentConflict", changes, lines)

    def _terms(self) -> Terms:
        ledger = self.progress.ledger or self.expected_ledger
        return Terms.of(self.invoice, ledger, self.progress.gateway)

    def _begin_line(self, number: int) -> None:
        self.progress.current_line = self.invoice.describe_line(number)
        # A payment in progress absorbs a cancellation. No other payment begins after it.
        if _is_cancelled() and workflow.patched("result-before-cancellation"):
            raise asyncio.CancelledError
        self._set_state("paying")

    async def _pay(self, number: int, line: LineItem) -> None:
        # Older runs: they look for a cancellation here, after the pause.
        if _is_cancelled():
            raise asyncio.CancelledError
        attempt = self.paid_earlier.next_attempt(number)
        request = PaymentRequest.of_line(line, self._terms(), attempt)
        try:
            await _outcome(_start_payment(number, request))
        except ActivityError as error:
            # After a cancellation it isn't known whether the payment was made, so ask. The
            # cancellation doesn't affect that question, because a run is cancelled only once.
            is_known = _is_final(error) or not workflow.patched("outcome-before-the-end")
            question = request.to_json(), line_id(number), "Whether the line was paid"
            if is_known or not await self._execute(payment_outcome, *question):
                raise self._error_for(error) from error
        self.progress.paid_lines += 1
        self.progress.paid_amount += line.amount
        workflow.logger.info("%s paid %s", self.invoice.id, self.progress.current_line)

    async def _execute(self, activity: Any, argument: Any, activity_id: str, summary: str) -> Any:
        """Returns the answer of an activity about the whole invoice, however long it takes."""
        try:
            return await workflow.execute_activity(
                activity,
                argument,
                activity_id=activity_id,
                start_to_close_timeout=timedelta(seconds=30),
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=RETRY_FOREVER,
                summary=summary,
            )
        except ActivityError as error:
            raise self._error_for(error) from error

    def _error_for(self, error: FailureError) -> BaseException:
        """What an activity that failed for good means for this run."""
        if _is_cancelled() and not (
            _is_final(error) and workflow.patched("result-before-cancellation")
        ):
            return asyncio.CancelledError()
        cause = _cause(error)
        if isinstance(cause, ApplicationError):
            return self._fail_with(cause.type or "PaymentFailed", cause.message)
        return self._fail_with("PaymentFailed", str(cause))

    def _fail_with(self, kind: str, reason: str, lines: str | None = None) -> ApplicationError:
        self.progress.failure = kind
        self._set_state("failed", describe_failure(kind, self.progress.current_line, reason))
        message = failure_message(kind, lines or self.progress.current_line, reason)
        return ApplicationError(message, self.status, type=kind, non_retryable=True)


def _read_invoice(payload: RawValue, context: str) -> Invoice | str:
    """The invoice that a run was started with, or what is wrong with it."""
    try:
        invoice = Invoice.model_validate_json(payload.payload.data, context=context)
    except ValidationError as error:
        return describe_validation_errors(error)
    # Payments are known by the workflow id: one invoice, one id.
    if workflow.info().workflow_id != workflow_id(invoice.id):
        return f"id: the workflow id must be {workflow_id(invoice.id)}"
    if invoice.given_pay_on is not None and workflow.patched("payment-date"):
        # A day more than for the tools, whose clocks may be ahead.
        now = workflow.info().workflow_start_time + timedelta(days=1)
        if rule := invoice.rule_of_pay_on(now):
            return f"pay_on: {rule}"
    return invoice


def _asks_again(asks_ledger: bool) -> bool:
    """Whether a run asks the ledger before paying: always, if it asks at the start too.

    Such a run needs no `patched`, which would be asked right after a local activity. The deprecated
    marker is for histories that have it, and a replay doesn't miss it.
    """
    if asks_ledger:
        workflow.deprecate_patch("ledger-before-paying")
    return asks_ledger or workflow.patched("ledger-before-paying")


def _read_answer(found: Any) -> LedgerAnswer | None:
    """None for what isn't a worker's answer: anybody who reaches the service can complete an
    activity.
    """
    with suppress(ValidationError):
        return LedgerAnswer.model_validate(found)
    return None


async def _wait_for(is_so: Callable[[], bool], moment: datetime, summary: str) -> None:
    """Waits until something is so, or until a moment."""
    seconds = max(_whole_seconds_until(moment), 0.001)
    with suppress(TimeoutError):
        await workflow.wait_condition(is_so, timeout=seconds, timeout_summary=summary)


def _whole_seconds_until(moment: datetime) -> int:
    """Rounded up, so that the Web UI shows a timer of five days and no millisecond less."""
    return ceil((moment - workflow.now()).total_seconds())


async def _pause_before(number: int, seconds: float) -> None:
    if seconds:
        await workflow.sleep(seconds, summary=f"Pacing before line {number}")


def _start_payment(number: int, request: PaymentRequest) -> workflow.ActivityHandle[Any]:
    return workflow.start_activity(
        process_payment,
        request.to_json(),
        activity_id=line_id(number),
        start_to_close_timeout=timedelta(seconds=30),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=RETRY_FOREVER,
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=describe_payment(request.item, request.amount, request.currency),
    )


async def _outcome(payment: workflow.ActivityHandle[Any]) -> None:
    """Returns once the payment is made, even if a cancellation arrives in the same workflow task.

    The SDK would discard the payment's result then. So the payment is cancelled only if it still
    has no result after the whole task has been processed.

    Raises:
        ActivityError: it wasn't made.
    """
    try:
        await workflow.wait([payment])
    except asyncio.CancelledError:
        if not _is_cancelled():  # the worker is only evicting this run
            raise
        # Conditions are checked only when no other task can run.
        await workflow.wait_condition(lambda: True)
        if not payment.done():
            payment.cancel()
        elif not workflow.patched("result-before-cancellation"):
            raise
    await payment


def _is_cancelled() -> bool:
    return workflow.cancellation_reason() is not None


def _cause(error: FailureError) -> BaseException | None:
    """What the activity raised; a local activity's error comes without an `ActivityError`."""
    return error.cause if isinstance(error, ActivityError) else error


def _is_final(error: FailureError) -> bool:
    cause = _cause(error)
    return isinstance(cause, ApplicationError) and cause.non_retryable
