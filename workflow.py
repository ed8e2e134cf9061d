"""The course of one invoice: wait for a person's decision, then pay line by line.

Changing this file: invoices wait for days, so runs that began under the old code go on under the
new. Any change that adds, removes or reorders what a run asks of Temporal (timers, activities,
memo updates) goes behind `workflow.patched("name-of-the-change")`; the recorded histories in
`tests/histories` show whether old runs still replay.
"""

import asyncio
import json
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from math import ceil
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy, SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from pydantic import ValidationError

    from activities import decision_in_time, payments_made, process_payment
    from invoices.invoice import BEFORE_1_1, Invoice, LineItem, workflow_id
    from invoices.status import (
        APPROVAL_TIMEOUT,
        AWAITING_APPROVAL,
        CANCELLED,
        COMPLETED,
        INVALID_INVOICE,
        PAYMENT_FAILED,
        PROCESSING,
        PROCESSING_PAYMENTS,
        REJECTED,
        Decision,
        RunProgress,
        State,
    )
    from invoices.web_ui import WebUiDetails
    from invoices.wording import (
        describe_changed_line,
        describe_validation_errors,
        format_money,
        format_utc,
        sanitized,
        sanitized_quote,
    )
    from notices import Event, NoticeWorkflow, make_notice
    from temporal_service.payloads import NO_PAYLOAD

TASK_QUEUE = "invoice-task-queue"
INVOICE_STATE = SearchAttributeKey.for_keyword("InvoiceState")
"""Has the `State`, so that the Web UI's list can show and filter it. Optional everywhere."""

# Retry until the gateway is back: an approved invoice must be paid.
PAYMENT_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(minutes=1),
)


MAX_TERM_BYTES = 4096
"""More than 255 characters take in JSON, the most that `customer` and `payment_method` have."""


@workflow.defn
class InvoiceWorkflow:
    """Returns `COMPLETED` or `REJECTED`; fails with `InvalidInvoice` or what stopped a payment."""

    invoice: Invoice
    progress: RunProgress
    deadline: datetime
    web_ui: WebUiDetails

    # Payloads are taken raw, here and in the signals; `temporal_service/payloads.py` says why.
    @workflow.init
    def __init__(self, invoice: RawValue = NO_PAYLOAD) -> None:
        self.approved: bool | None = None
        self.status = PROCESSING
        self.decision: Decision | None = None
        self.memo: dict[str, Any] = {}
        self.read_late = False
        """Whether a decision was first read after the deadline: it may have been in time."""
        self.paid_earlier: set[int] = set()
        """The numbers of the lines that earlier runs for this invoice have paid."""
        self.notifies = False
        self.notices: list[asyncio.Task[Any]] = []
        self.asks_ledger = workflow.patched("paid-earlier")
        self.problem = self._read(invoice)

    @workflow.run
    async def run(self, invoice: RawValue = NO_PAYLOAD) -> str:
        if self.problem:
            raise self._invalid(self.problem)
        workflow.logger.info("%s submitted: %s", self.invoice.id, self.invoice.summary)
        try:
            if self.asks_ledger:
                await self._ask_ledger()

            # Step 1: wait for a person's decision, until the deadline.
            self._report("waiting", AWAITING_APPROVAL, f"until {format_utc(self.deadline)}")
            await self._decision_or_deadline()

            # Step 2: nobody decided in time.
            if self.approved is None:
                self.approved = False
                self._report("timed_out", APPROVAL_TIMEOUT)
                return "REJECTED"

            # Step 3: a person rejected it.
            self.progress.decision = self.decision
            if not self.approved:
                self._report("rejected", REJECTED, str(self.decision))
                return "REJECTED"

            # Step 4: pay, one line after another.
            if self.progress.paid_earlier_lines is None and workflow.patched(
                "ledger-before-paying"
            ):
                self._report("paying", PROCESSING_PAYMENTS, str(self.decision))
                await self._ask_ledger_again()
            for number, line in enumerate(self.invoice.lines, start=1):
                if number in self.paid_earlier:
                    continue
                self.progress.current_line = self._label(number, line)
                # A payment under way swallows a cancellation; no other is begun after it.
                cancelled = workflow.cancellation_reason() is not None
                if cancelled and workflow.patched("result-before-cancellation"):
                    raise asyncio.CancelledError
                self._report("paying", PROCESSING_PAYMENTS, str(self.decision))
                await self._pace(number)
                await self._pay(number, line)
            self.progress.current_line = None
            self._report("completed", COMPLETED)
            return "COMPLETED"
        except asyncio.CancelledError:
            self._report("cancelled", CANCELLED)
            raise
        finally:
            await self._hand_over_notices()

    @workflow.signal
    def approve_invoice(self, details: RawValue = NO_PAYLOAD) -> None:
        """Takes an optional `DecisionDetails` as JSON: who decides, and why."""
        self._decide(True, details)

    @workflow.signal
    def reject_invoice(self, details: RawValue = NO_PAYLOAD) -> None:
        """Takes an optional `DecisionDetails` as JSON: who decides, and why."""
        self._decide(False, details)

    @workflow.query
    def get_status(self) -> str:
        return self.status

    @workflow.query
    def get_progress(self) -> dict[str, Any]:
        """A `RunProgress`, empty for an invalid invoice."""
        if not hasattr(self, "progress"):
            return {}
        # A decision is told as soon as it is taken, also while the ledger is still being asked.
        decided = self.progress.model_copy(update={"decision": self.decision})
        return decided.model_dump(mode="json")

    def _read(self, payload: RawValue) -> str | None:
        """Takes the invoice over; returns what is wrong with it."""
        context = None if self.asks_ledger else BEFORE_1_1
        try:
            invoice = Invoice.model_validate_json(payload.payload.data, context=context)
        except ValidationError as error:
            return describe_validation_errors(error)
        # Payments are known by the workflow id: one invoice, one id.
        if workflow.info().workflow_id != workflow_id(invoice.id):
            return f"id: the workflow id must be {workflow_id(invoice.id)}"
        self.invoice = invoice
        self.progress = RunProgress.of(invoice)
        if self.asks_ledger:
            self.progress.status = PROCESSING  # until the ledger has answered
        # The deadline counts from the submission, also if the first worker came later.
        submitted_at = workflow.info().workflow_start_time
        if self.asks_ledger:
            self.progress.submitted_at = submitted_at
        self.deadline = submitted_at + timedelta(days=invoice.approval_timeout_days)
        self.progress.deadline = self.deadline
        self.web_ui = WebUiDetails(invoice, self.deadline)
        return None

    def _invalid(self, problem: str) -> ApplicationError:
        self.status = f"{INVALID_INVOICE}: {problem}"
        # Whatever else the client has noted there isn't so.
        nothing = dict.fromkeys(RunProgress.model_fields)
        workflow.upsert_memo({**nothing, "status": self.status})
        self._upsert_state("failed")
        workflow.logger.warning("%s: %s", workflow.info().workflow_id, self.status)
        return ApplicationError(problem, type="InvalidInvoice", non_retryable=True)

    def _decide(self, approved: bool, payload: RawValue) -> None:
        """The first decision stands.

        No `await` between check and assignment, so a second signal can't slip in.
        """
        if self.approved is not None or self.problem:
            return
        decision = Decision.sent(approved, payload.payload.data, workflow.now())
        # The deadline is a decision too: of what is read after it only what the Temporal Service
        # received before it counts, and that is asked once the deadline's timer has fired.
        if decision.at >= self.deadline:
            if workflow.patched("deadline-by-the-service"):
                workflow.logger.info("%s: a decision is read after the deadline", self.invoice.id)
                self.read_late = True
                return
            if workflow.patched("deadline-is-a-decision"):
                # What the sender's clock said counted for runs that have recorded so.
                submitted_at = workflow.info().workflow_start_time
                sent_at = decision.sent_at
                if sent_at is None or not submitted_at <= sent_at < self.deadline:
                    return
                decision.at = sent_at
        self.approved = approved
        self.decision = decision

    async def _ask_ledger(self) -> None:
        """Which ledger it is, and what earlier runs for this invoice have paid.

        Without an answer within seconds that stays unknown, and is asked again before paying.
        """
        # From the run before this one, by way of the client: the same invoice, the same ledger.
        if isinstance(ledger := workflow.memo_value("ledger", None), str):
            self.progress.ledger = ledger
        try:
            found = await workflow.execute_local_activity(
                payments_made,
                self._ledger_question(),
                schedule_to_close_timeout=timedelta(seconds=3),
                retry_policy=RetryPolicy(maximum_attempts=2),
            )
        except FailureError as error:
            cause = _cause(error)
            is_final = isinstance(cause, ApplicationError) and cause.non_retryable
            if is_final or workflow.cancellation_reason() is not None:
                raise self._stopped(error) from error
        else:
            self._take_over(found)

    async def _ask_ledger_again(self) -> None:
        """Like `_ask_ledger`, but waits for an answer as long as it takes."""
        try:
            found = await workflow.execute_activity(
                payments_made,
                self._ledger_question(),
                activity_id="ledger",
                start_to_close_timeout=timedelta(seconds=30),
                retry_policy=PAYMENT_RETRY,
                summary="What was paid earlier",
            )
        except ActivityError as error:
            raise self._stopped(error) from error
        self._take_over(found)

    def _ledger_question(self) -> dict[str, Any]:
        lines = [self._to_pay(line) for line in self.invoice.lines]
        return {"id": self.invoice.id, "lines": lines, **self._terms()}

    def _to_pay(self, line: LineItem) -> dict[str, Any]:
        """What the activities need of a line. No other fields, which may be of any size: what is
        sent to an activity is escaped to ASCII, and more than 2 MiB of that is never sent.
        """
        return {"item": line.item, "amount": str(line.amount)}

    def _terms(self) -> dict[str, Any]:
        """What concerns the whole invoice; a line can't say it for itself."""
        terms: dict[str, Any] = {
            "currency": self.invoice.currency,
            "customer": self.invoice.customer,
            "payment_method": self.invoice.payment_method,
        }
        if not self.asks_ledger:  # then those may be of any size, and no provider takes such a one
            terms = {k: v for k, v in terms.items() if len(json.dumps(v)) <= MAX_TERM_BYTES}
        return {**terms, "ledger": self.progress.ledger, "gateway": self.progress.gateway}

    def _take_over(self, found: dict[str, Any]) -> None:
        """Notes which ledger and gateway these are and what the ledger holds as paid; fails where
        that was changed.
        """
        self.progress.ledger = found["ledger"]
        self.progress.gateway = found.get("gateway")  # a worker of before doesn't tell it
        self.notifies = bool(found.get("notify"))
        paid = found["lines"]
        self.paid_earlier = {payment["line"] for payment in paid}
        # In another currency each line is told as what it was paid.
        if all(payment["currency"] == self.invoice.currency for payment in paid):
            amount = sum((Decimal(payment["amount"]) for payment in paid), Decimal("0.00"))
            self.progress.paid_lines = self.progress.paid_earlier_lines = len(paid)
            self.progress.paid_amount = self.progress.paid_earlier_amount = amount
        lines = dict(enumerate(self.invoice.lines, start=1))
        changed = []
        for payment in paid:
            line = lines.get(payment["line"])
            was = (payment["item"], Decimal(payment["amount"]), payment["currency"])
            if line is None or was != (line.item, line.amount, self.invoice.currency):
                changed.append(describe_changed_line(payment["line"], *was))
        if changed:
            raise self._failed("PaymentConflict", "; ".join(changed))

    async def _decision_or_deadline(self) -> None:
        if self.notifies:
            wait = timedelta(days=self.invoice.approval_timeout_days)
            await self._decision_until(self.deadline - wait / 5, "Reminder")
            if self.approved is None and workflow.now() < self.deadline:
                self._notify("reminder")
        if self.approved is None:
            await self._decision_until(self.deadline, "Approval deadline")
        if self.approved is None and self.read_late:
            await self._ask_service()

    async def _ask_service(self) -> None:
        """Takes the decision that was received in time and read late, if there is one."""
        try:
            found = await workflow.execute_activity(
                decision_in_time,
                self.deadline.isoformat(),
                activity_id="decision",
                start_to_close_timeout=timedelta(seconds=30),
                retry_policy=PAYMENT_RETRY,
                summary="Which decision was in time",
            )
        except ActivityError as error:
            raise self._stopped(error) from error
        if found and self.approved is None:
            self.decision = Decision.model_validate(found)
            self.approved = self.decision.approved

    async def _decision_until(self, moment: datetime, summary: str) -> None:
        time_left = moment - workflow.now()
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self.approved is not None,
                # In whole seconds, which the Web UI shows as five days and no millisecond less.
                timeout=timedelta(seconds=max(ceil(time_left.total_seconds()), 0.001)),
                timeout_summary=summary,
            )

    async def _pace(self, number: int) -> None:
        if interval := self.invoice.payment_interval_seconds:
            await workflow.sleep(interval, summary=f"Pacing before line {number}")

    async def _pay(self, number: int, line: LineItem) -> None:
        # For runs that have swallowed a cancellation before they looked ahead of each line.
        if workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError
        amount = format_money(line.amount, self.invoice.currency)
        payment = workflow.start_activity(
            process_payment,
            {**self._to_pay(line), **self._terms()},
            activity_id=f"line-{number}",
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=PAYMENT_RETRY,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=f"{sanitized(line.item)}: {amount}",
        )
        try:
            await self._outcome(payment)
        except ActivityError as error:
            raise self._stopped(error) from error
        self.progress.paid_lines += 1
        self.progress.paid_amount += line.amount
        workflow.logger.info("%s paid %s", self.invoice.id, self.progress.current_line)

    async def _outcome(self, payment: workflow.ActivityHandle[Any]) -> None:
        """Returns once the payment is made, also if a cancellation arrived together with that.

        The SDK would drop a result that comes in one workflow task with a cancellation. So the
        payment is cancelled only when it has none, after all of that task has been taken in.
        """
        try:
            await workflow.wait([payment])
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is None:  # it only leaves the worker's memory
                raise
            # Conditions are looked at when nothing else is left to do.
            await workflow.wait_condition(lambda: True)
            if not payment.done():
                payment.cancel()
            elif not workflow.patched("result-before-cancellation"):
                raise
        await payment

    def _stopped(self, error: FailureError) -> BaseException:
        """What an activity that failed for good means for this run."""
        cause = _cause(error)
        is_final = isinstance(cause, ApplicationError) and cause.non_retryable
        if workflow.cancellation_reason() is not None and not (
            is_final and workflow.patched("result-before-cancellation")
        ):
            return asyncio.CancelledError()
        if isinstance(cause, ApplicationError):
            return self._failed(cause.type or "PaymentFailed", cause.message)
        return self._failed("PaymentFailed", str(cause))

    def _failed(self, kind: str, reason: str) -> ApplicationError:
        text = INVALID_INVOICE if kind == "InvalidInvoice" else PAYMENT_FAILED
        where = f"{self.progress.current_line}: " if self.progress.current_line else ""
        self.progress.failure = kind
        self._report("failed", f"{text}: {where}{sanitized(reason, 500)}")
        return ApplicationError(self.status, type=kind, non_retryable=True)

    def _label(self, number: int, line: LineItem) -> str:
        amount = format_money(line.amount, self.invoice.currency)
        return f"line {number} of {len(self.invoice.lines)}, {sanitized_quote(line.item)}, {amount}"

    def _report(self, state: State, status: str, detail: str = "") -> None:
        """Makes a change known: status, memo, the Web UI's details, and the log if it is new."""
        if status != self.status:
            logged = f"{status}, {detail}" if detail else status
            workflow.logger.info("%s %s", self.invoice.id, logged)
        self.status = self.progress.status = status
        self.progress.state = state
        self._upsert_changes(self.progress.to_memo())
        self._upsert_state(state)
        workflow.set_current_details(self.web_ui.render(self.progress, self.paid_earlier))

        if state != "paying":
            self._notify(state)
            if state != "waiting":
                ended = workflow.metric_meter().create_counter("invoices_ended", "By outcome.")
                ended.add(1, {"outcome": state})

    def _upsert_state(self, state: State) -> None:
        # Only where the client could set it: a workflow task that sets an attribute which the
        # namespace doesn't have fails for ever.
        known = workflow.info().typed_search_attributes.get(INVOICE_STATE)
        if known is not None and known != state:
            workflow.upsert_search_attributes([INVOICE_STATE.value_set(state)])

    def _notify(self, event: Event) -> None:
        """Starts a notice, which then goes its own way."""
        if self.notifies:
            info = workflow.info()
            start = workflow.start_child_workflow(
                NoticeWorkflow.run,
                make_notice(event, self.invoice, self.progress, info.run_id),
                id=f"notice-{info.run_id}-{event}",
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )
            self.notices.append(asyncio.create_task(start))

    async def _hand_over_notices(self) -> None:
        """Until the service has them: a notice that isn't started would end with this run."""
        if self.notices:
            await asyncio.gather(*self.notices, return_exceptions=True)

    def _upsert_changes(self, memo: dict[str, Any]) -> None:
        known = self.memo or workflow.memo()  # at first what the client has put there
        changed = [key for key in RunProgress.model_fields if known.get(key) != memo.get(key)]
        # Clients before 1.1 put no state into the memo, and their runs must replay without an
        # update for it alone. It changes with the status anyway.
        if changed and changed != ["state"]:
            # Upserting None deletes a memo key.
            workflow.upsert_memo({key: memo.get(key) for key in changed})
        self.memo = memo


def _cause(error: FailureError) -> BaseException | None:
    """What the activity raised; a local activity's error comes without an `ActivityError`."""
    return error.cause if isinstance(error, ActivityError) else error
