"""The course of one invoice: wait for a decision, then pay line by line.

Changing this file: invoices wait for days, so runs that began under the old code go on under the
new. Any change that adds, removes or reorders what a run asks of Temporal (timers, activities,
memo updates) goes behind `workflow.patched("name-of-the-change")`; the recorded histories in
`tests/histories` show whether old runs still replay.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from pydantic import ValidationError

    from activities import process_payment
    from invoice import (
        APPROVAL_TIMEOUT,
        AWAITING_APPROVAL,
        CANCELLED,
        COMPLETED,
        INVALID_INVOICE,
        PAYMENT_FAILED,
        PROCESSING,
        PROCESSING_PAYMENTS,
        REJECTED,
        Decider,
        Decision,
        Invoice,
        LineItem,
        Progress,
        broken_rules,
        money,
        quoted,
        shown,
        utc,
        workflow_id,
    )

TASK_QUEUE = "invoice-task-queue"

NOTHING = RawValue(Payload())

# Backoff of a gateway that is unavailable: without end, since an approved invoice is to be paid.
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
    progress: Progress
    rows: list[str]
    """The table of lines in the Web UI."""

    def __init__(self) -> None:
        self.approved: bool | None = None
        self.status = PROCESSING
        self.decision: Decision | None = None
        self.memo: dict[str, Any] = {}

    # Payloads come raw, here and in the signals: one that another client has encoded strangely
    # would otherwise fail this run's workflow task for ever, or drop the decision.
    @workflow.run
    async def run(self, invoice: RawValue = NOTHING) -> str:
        self.invoice = self._validated(invoice)
        self.progress = Progress.of(self.invoice)
        self.progress.submitted_at = workflow.info().workflow_start_time
        self.rows = [
            self._row(number, "unpaid") for number in range(1, len(self.invoice.lines) + 1)
        ]
        workflow.logger.info("%s submitted: %s", self.invoice.id, self.invoice.summary)
        try:
            await self._wait_for_decision()
            if not self.approved:
                return "REJECTED"
            await self._pay()
        except asyncio.CancelledError:
            self.rows = [row.replace("| next |", "| stopped |") for row in self.rows]
            self._tell(CANCELLED)
            raise
        return "COMPLETED"

    @workflow.signal
    def approve_invoice(self, decider: RawValue = NOTHING) -> None:
        """Takes an optional `invoice.Decider` as JSON: who decides, and why."""
        self._decide(True, decider)

    @workflow.signal
    def reject_invoice(self, decider: RawValue = NOTHING) -> None:
        """Takes an optional `invoice.Decider` as JSON: who decides, and why."""
        self._decide(False, decider)

    @workflow.query
    def get_status(self) -> str:
        return self.status

    @workflow.query
    def get_progress(self) -> dict[str, Any]:
        """An `invoice.Progress`, empty for an invalid invoice."""
        return self.progress.model_dump(mode="json") if hasattr(self, "progress") else {}

    def _validated(self, payload: RawValue) -> Invoice:
        try:
            invoice = Invoice.model_validate_json(payload.payload.data)
        except ValidationError as error:
            problem = broken_rules(error)
        else:
            # Payments are known by the workflow id: one invoice, one id.
            if workflow.info().workflow_id == workflow_id(invoice.id):
                return invoice
            problem = f"id: the workflow id must be {workflow_id(invoice.id)}"
        self.status = f"{INVALID_INVOICE}: {problem}"
        workflow.upsert_memo({"status": self.status})
        workflow.logger.warning("%s: %s", workflow.info().workflow_id, self.status)
        raise ApplicationError(problem, type="InvalidInvoice", non_retryable=True)

    def _decide(self, approved: bool, payload: RawValue) -> None:
        """The first decision stands; no `await`, so nothing comes between the look and the note."""
        if self.approved is not None:
            return
        try:
            decider = Decider.model_validate_json(payload.payload.data)
        except ValidationError:
            decider = Decider()
        self.approved = approved
        self.decision = Decision(**decider.model_dump(), approved=approved, at=workflow.now())

    async def _wait_for_decision(self) -> None:
        # Counted from the submission, also if the first worker came later.
        deadline = workflow.info().workflow_start_time + timedelta(
            days=self.invoice.approval_timeout_days
        )
        self._tell(AWAITING_APPROVAL, f"until {utc(deadline)}")
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self.approved is not None,
                timeout=max(deadline - workflow.now(), timedelta(milliseconds=1)),
                timeout_summary="Approval deadline",
            )
        if self.approved is None:
            self.approved = False
            self._tell(APPROVAL_TIMEOUT)
            return
        self.progress.decision = self.decision
        if not self.approved:
            self._tell(REJECTED, self._decided())

    async def _pay(self) -> None:
        for number, line in enumerate(self.invoice.lines, start=1):
            self.progress.current_line = self._label(number, line)
            self.rows[number - 1] = self._row(number, "next")
            self._tell(PROCESSING_PAYMENTS, self._decided() if number == 1 else "")
            if interval := self.invoice.payment_interval_seconds:
                await workflow.sleep(interval, summary=f"Pacing before line {number}")
            # A payment under way swallows a cancellation; no other is begun after it.
            if workflow.cancellation_reason() is not None:
                raise asyncio.CancelledError
            try:
                await workflow.execute_activity(
                    process_payment,
                    {**line.model_dump(mode="json"), "currency": self.invoice.currency},
                    activity_id=f"line-{number}",
                    start_to_close_timeout=timedelta(seconds=30),
                    retry_policy=PAYMENT_RETRY,
                    cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                    summary=f"{shown(line.item)}: {money(line.amount, self.invoice.currency)}",
                )
            except ActivityError as error:
                if workflow.cancellation_reason() is not None:
                    raise asyncio.CancelledError from error
                raise self._failed(number, error) from error
            self.rows[number - 1] = self._row(number, "paid")
            self.progress.paid_lines += 1
            self.progress.paid_amount += line.amount
            workflow.logger.info("%s paid %s", self.invoice.id, self.progress.current_line)
        self.progress.current_line = None
        self._tell(COMPLETED)

    def _failed(self, number: int, error: ActivityError) -> ApplicationError:
        cause = error.cause
        reason = shown(cause.message if isinstance(cause, ApplicationError) else str(cause), 500)
        self.rows[number - 1] = self._row(number, "failed")
        self._tell(f"{PAYMENT_FAILED}: {self.progress.current_line}: {reason}")
        kind = cause.type if isinstance(cause, ApplicationError) else None
        return ApplicationError(self.status, type=kind or "PaymentFailed", non_retryable=True)

    def _label(self, number: int, line: LineItem) -> str:
        amount = money(line.amount, self.invoice.currency)
        return f"line {number} of {len(self.invoice.lines)}, {quoted(line.item)}, {amount}"

    def _decided(self) -> str:
        assert self.decision
        verb = "approved" if self.decision.approved else "rejected"
        reason = f" ({quoted(self.decision.reason, 200)})" if self.decision.reason else ""
        return f"{verb} by {shown(self.decision.by or 'another client', 200)}{reason}"

    def _tell(self, status: str, more: str = "") -> None:
        """Makes a change known: status, memo, the Web UI's details, and the log if it is new."""
        if status != self.status:
            workflow.logger.info("%s %s%s", self.invoice.id, status, f", {more}" if more else "")
        self.status = self.progress.status = status
        memo = self.progress.to_memo()
        known = self.memo or workflow.memo()  # at first what the client has put there
        # None takes a key out.
        keys = [key for key in Progress.model_fields if known.get(key) != memo.get(key)]
        if keys:
            workflow.upsert_memo({key: memo.get(key) for key in keys})
        self.memo = memo
        workflow.set_current_details(self._details(more))

    def _details(self, more: str) -> str:
        paid = money(self.progress.paid_amount, self.invoice.currency)
        total = money(self.progress.total, self.invoice.currency)
        until = f" {more}" if self.status == AWAITING_APPROVAL else ""
        header = (
            f"### {self.status}{until}\n\n"
            f"Paid: {self.progress.paid_lines} of {len(self.rows)} lines, {paid} of {total}"
            f"{f'; {self._decided()}' if self.progress.decision else ''}\n\n"
            "| # | Amount | State | Item |\n|--:|--:|:--|:--|\n"
        )
        # The Web UI takes $...$ for mathematics, and cuts off the last lines of what it shows.
        table = (header + "\n".join(self.rows)).replace("$", "\\$")
        return table + "\n\n\N{NO-BREAK SPACE}" * 2

    def _row(self, number: int, state: str) -> str:
        line = self.invoice.lines[number - 1]
        amount = money(line.amount, self.invoice.currency)
        return f"| {number} | {amount} | {state} | {shown(line.item, 40)} |"
