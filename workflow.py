"""The course of one invoice: wait for a person's decision, then pay line by line.

Changing this file: invoices wait for days, so runs that began under the old code go on under the
new. Any change that adds, removes or reorders what a run asks of Temporal (timers, activities,
memo updates) goes behind `workflow.patched("name-of-the-change")`; the recorded histories in
`tests/histories` show whether old runs still replay.
"""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from pydantic import ValidationError

    from activities import process_payment
    from invoices.invoice import Invoice, LineItem, workflow_id
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
        DecisionDetails,
        RunProgress,
        State,
    )
    from invoices.web_ui import WebUiDetails
    from invoices.wording import (
        describe_validation_errors,
        format_money,
        format_utc,
        sanitized,
        sanitized_quote,
    )
    from temporal_service.payloads import NO_PAYLOAD

TASK_QUEUE = "invoice-task-queue"

# Retry until the gateway is back: an approved invoice must be paid.
PAYMENT_RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(minutes=1),
)

# The worker's log has one line for each event of an invoice; the workflow's ids are in the line.
workflow.logger.workflow_info_on_message = False


@workflow.defn
class InvoiceWorkflow:
    """Returns `COMPLETED` or `REJECTED`; fails with `InvalidInvoice` or what stopped a payment."""

    invoice: Invoice
    progress: RunProgress
    deadline: datetime
    web_ui: WebUiDetails

    def __init__(self) -> None:
        self.approved: bool | None = None
        self.status = PROCESSING
        self.decision: Decision | None = None
        self.memo: dict[str, Any] = {}

    # Payloads are taken raw, here and in the signals; `temporal_service/payloads.py` says why.
    @workflow.run
    async def run(self, invoice: RawValue = NO_PAYLOAD) -> str:
        self._begin(self._validated(invoice))
        try:
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
            for number, line in enumerate(self.invoice.lines, start=1):
                self.progress.current_line = self._label(number, line)
                self._report("paying", PROCESSING_PAYMENTS, str(self.decision))
                await self._pace(number)
                await self._pay(number, line)
            self.progress.current_line = None
            self._report("completed", COMPLETED)
            return "COMPLETED"
        except asyncio.CancelledError:
            self._report("cancelled", CANCELLED)
            raise

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
        return self.progress.model_dump(mode="json") if hasattr(self, "progress") else {}

    def _validated(self, payload: RawValue) -> Invoice:
        try:
            invoice = Invoice.model_validate_json(payload.payload.data)
        except ValidationError as error:
            problem = describe_validation_errors(error)
        else:
            # Payments are known by the workflow id: one invoice, one id.
            if workflow.info().workflow_id == workflow_id(invoice.id):
                return invoice
            problem = f"id: the workflow id must be {workflow_id(invoice.id)}"
        self.status = f"{INVALID_INVOICE}: {problem}"
        workflow.upsert_memo({"status": self.status})
        workflow.logger.warning("%s: %s", workflow.info().workflow_id, self.status)
        raise ApplicationError(problem, type="InvalidInvoice", non_retryable=True)

    def _begin(self, invoice: Invoice) -> None:
        self.invoice = invoice
        self.progress = RunProgress.of(invoice)
        # The deadline counts from the submission, also if the first worker came later.
        self.progress.submitted_at = workflow.info().workflow_start_time
        self.deadline = self.progress.submitted_at + timedelta(days=invoice.approval_timeout_days)
        self.web_ui = WebUiDetails(invoice, self.deadline)
        workflow.logger.info("%s submitted: %s", invoice.id, invoice.summary)

    def _decide(self, approved: bool, payload: RawValue) -> None:
        """The first decision stands.

        No `await` between check and assignment, so a second signal can't slip in.
        """
        if self.approved is not None:
            return
        try:
            details = DecisionDetails.model_validate_json(payload.payload.data)
        except ValidationError:
            details = DecisionDetails()
        self.approved = approved
        self.decision = Decision(**details.model_dump(), approved=approved, at=workflow.now())

    async def _decision_or_deadline(self) -> None:
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self.approved is not None,
                timeout=max(self.deadline - workflow.now(), timedelta(milliseconds=1)),
                timeout_summary="Approval deadline",
            )

    async def _pace(self, number: int) -> None:
        if interval := self.invoice.payment_interval_seconds:
            await workflow.sleep(interval, summary=f"Pacing before line {number}")

    async def _pay(self, number: int, line: LineItem) -> None:
        # A payment under way swallows a cancellation; no other is begun after it.
        if workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError
        amount = format_money(line.amount, self.invoice.currency)
        try:
            await workflow.execute_activity(
                process_payment,
                {**line.model_dump(mode="json"), "currency": self.invoice.currency},
                activity_id=f"line-{number}",
                start_to_close_timeout=timedelta(seconds=30),
                retry_policy=PAYMENT_RETRY,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=f"{sanitized(line.item)}: {amount}",
            )
        except ActivityError as error:
            if workflow.cancellation_reason() is not None:
                raise asyncio.CancelledError from error
            raise self._payment_failed(error) from error
        self.progress.paid_lines += 1
        self.progress.paid_amount += line.amount
        workflow.logger.info("%s paid %s", self.invoice.id, self.progress.current_line)

    def _payment_failed(self, error: ActivityError) -> ApplicationError:
        cause = error.cause
        known = cause if isinstance(cause, ApplicationError) else None
        reason = sanitized(known.message if known else str(cause), 500)
        self._report("failed", f"{PAYMENT_FAILED}: {self.progress.current_line}: {reason}")
        kind = known.type if known else None
        return ApplicationError(self.status, type=kind or "PaymentFailed", non_retryable=True)

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
        workflow.set_current_details(self.web_ui.render(self.progress))

    def _upsert_changes(self, memo: dict[str, Any]) -> None:
        known = self.memo or workflow.memo()  # at first what the client has put there
        changed = [key for key in RunProgress.model_fields if known.get(key) != memo.get(key)]
        # Clients before 1.1 put no state into the memo, and their runs must replay without an
        # update for it alone. It changes with the status anyway.
        if changed and changed != ["state"]:
            # Upserting None deletes a memo key.
            workflow.upsert_memo({key: memo.get(key) for key in changed})
        self.memo = memo
