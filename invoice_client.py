"""Submitting invoices, deciding on them and getting their status, without MCP.

Each method of `InvoiceClient` sends as few requests as possible. Only queries have a time limit,
because a query hangs if no worker runs; for the rest, the caller sets one (`asyncio.timeout`).
The methods raise `InvoiceError` and whatever the Temporal client raises.
"""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from temporalio.client import Client
from temporalio.common import (
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from invoice_runs import InvoiceRun, InvoiceRuns, in_background
from invoice_search import InvoiceSearch, SimilarSearch
from invoices.answers import InvoiceStatus
from invoices.content import StatusWithContent
from invoices.invoice import (
    INVOICE_WORKFLOW,
    Invoice,
    rule_of_new_content,
    rule_of_new_id,
    workflow_id,
)
from invoices.outcomes import with_cancellation, with_outcome
from invoices.refusals import (
    CODE_OF_OTHER_CONTENT,
    NamedTotal,
    already_paid,
    arrived_late,
    being_closed,
    content_code,
    content_not_allowed,
    content_to_be_shown,
    content_unreadable,
    expect_before_deadline,
    expect_may_approve,
    expect_not_cancelled,
    expect_one_ledger,
    expect_total,
    failed_at_start,
    id_in_use_by_invoice,
    id_in_use_by_workflow,
    id_not_allowed,
    id_of_paid_invoice,
    looks_like_others,
    not_an_invoice,
    submitted_again,
    submitted_too_often,
    used_with_other_content,
)
from invoices.similar import total_text
from invoices.status import DecisionDetails, RunProgress
from reports import INVOICE_STATE, INVOICE_TOTAL
from temporal_service.clock import CallTimes
from temporal_service.connection import whoami
from temporal_service.executions import Execution
from temporal_service.payloads import json_payload
from workflow import TASK_QUEUE, InvoiceWorkflow


class Started(NamedTuple):
    """A run that a call has started."""

    run_id: str
    call: CallTimes


CANCEL_SECONDS = 2
"""How long `cancel` waits for a busy worker to take the cancellation."""
EARLIER_RUNS = 50
"""How many earlier submissions are compared with the one to be approved, and are searched for the
ledger of a new one."""


class InvoiceClient:
    """The invoices of one Temporal namespace."""

    def __init__(self, temporal_client: Client) -> None:
        self.temporal = temporal_client
        self.runs = InvoiceRuns(temporal_client)
        self.search = InvoiceSearch(self.runs)

    @property
    def name(self) -> str:
        """Who submits and decides, `user@host`."""
        return whoami()

    async def submit(self, invoice: Invoice) -> InvoiceStatus:
        """Starts the workflow for an invoice, unless one is open or the invoice is paid.

        The outcome is `started`, or `already_in_process` if the same invoice is open already.

        Raises:
            InvoiceError: the id is in use by something else, or it is new and could be mistaken
                for another id, or it has too many fields or levels of nesting, or the invoice is
                paid, or one of its lines was paid earlier with different content.
        """
        with SimilarSearch(self.search, invoice.id) as similar:
            similar.begin((invoice.total, invoice.currency))
            return await similar.add_to(await self._submit(invoice))

    async def _submit(self, invoice: Invoice) -> InvoiceStatus:
        if rule := rule_of_new_content(invoice.content):
            raise content_not_allowed(rule)
        if rule := invoice.rule_of_pay_on(self.runs.clock.now):
            raise content_not_allowed(rule, "pay_on")
        rule = rule_of_new_id(invoice.id)
        if rule and not await self.runs.exists(invoice.id):
            raise id_not_allowed(rule)
        # Beside the content: who submits it doesn't make it a different invoice.
        progress = RunProgress.of(invoice, submitted_by=self.name)
        try:
            # Temporal makes this atomic for a new id. After a closed run, two clients can race,
            # and then the ledger prevents a second payment.
            started = await self._start(invoice, progress, WorkflowIDReusePolicy.REJECT_DUPLICATE)
        except WorkflowAlreadyStartedError:
            return await self._submit_again(invoice, progress)
        # Asking takes longer than starting, so don't ask if a worker has answered recently.
        ask = not self.runs.has_recent_answer
        return await self._started(invoice, progress, started, ask=ask)

    async def _submit_again(self, invoice: Invoice, progress: RunProgress) -> InvoiceStatus:
        last = await self.runs.get_run(invoice.id)
        if last.is_open:
            return await self._already_in_process(invoice, last)
        if last.status.state == "completed" and last.description.workflow_type == INVOICE_WORKFLOW:
            is_same = last.progress is not None and last.progress.digest == invoice.digest
            raise already_paid(last.status) if is_same else id_of_paid_invoice(last.status)
        progress.ledger = await self.runs.ledger_of(last, EARLIER_RUNS)  # one invoice, one ledger
        try:
            started = await self._start(invoice, progress, WorkflowIDReusePolicy.ALLOW_DUPLICATE)
        except WorkflowAlreadyStartedError:  # another client started it first
            return await self._already_in_process(invoice, await self.runs.get_run(invoice.id))
        status = await self._started(invoice, progress, started, ask=True)
        if last.progress and last.progress.digest == invoice.digest:
            return status
        return status.model_copy(update={"replaces": last.status.amounts})

    async def _already_in_process(self, invoice: Invoice, run: InvoiceRun) -> InvoiceStatus:
        """The status of an open run, if that run is for exactly this invoice.

        Raises:
            InvoiceError: the run is for something else, or has ended.
        """
        if run.progress is None:
            raise id_in_use_by_workflow(invoice.id)
        status = run.status
        if status.is_open and not run.is_up_to_date:
            answer = await self.runs.ask_worker(invoice.id, run.id)
            status = await self.runs.status_with_answer(run, answer)
        if not status.is_open:
            raise being_closed(status)
        if run.progress.digest != invoice.digest:
            raise id_in_use_by_invoice(status)
        status = await self.runs.with_earlier_ledger(run, status, EARLIER_RUNS)
        return status.model_copy(update={"outcome": "already_in_process"})

    async def _start(
        self, invoice: Invoice, progress: RunProgress, policy: WorkflowIDReusePolicy
    ) -> Started:
        content = invoice.to_json()
        attributes = [
            SearchAttributePair(INVOICE_STATE, "waiting"),
            SearchAttributePair(INVOICE_TOTAL, total_text(invoice.total, invoice.currency)),
        ]
        missing = self.runs.missing_attributes
        attributes = [pair for pair in attributes if pair.key.name not in missing]
        sent = datetime.now(UTC)
        try:
            handle = await self.temporal.start_workflow(
                InvoiceWorkflow.run,
                json_payload(content),
                id=workflow_id(invoice.id),
                task_queue=TASK_QUEUE,
                id_reuse_policy=policy,
                memo=progress.to_first_memo(),
                static_summary=f"{invoice.id}: {invoice.summary}",
                search_attributes=TypedSearchAttributes(attributes),
            )
        except RPCError as error:
            self.runs.expect_missing_attribute(error, *(pair.key.name for pair in attributes))
            return await self._start(invoice, progress, policy)
        run_id = handle.result_run_id or ""
        self.runs.trusted_memos.add_own(handle.id, run_id)
        self.runs.remembered_starts.add(run_id, invoice, len(content))
        if policy == WorkflowIDReusePolicy.REJECT_DUPLICATE:
            self.runs.note_first_submission(run_id)
        return Started(run_id, CallTimes(sent, datetime.now(UTC)))

    async def _started(
        self, invoice: Invoice, progress: RunProgress, started: Started, *, ask: bool
    ) -> InvoiceStatus:
        """The status of a new run; what the ledger has of the invoice is in it if `ask` is true."""
        run_id, call = started
        if not ask and self.runs.clock.is_compared_lately:
            run = self.runs.new_run(workflow_id(invoice.id), run_id, progress, call.sent)
        else:
            processed = await self.runs.processed_run(invoice.id, run_id) if ask else None
            run = processed or await self.runs.get_run(invoice.id, run_id)
            self.runs.clock.compare(call, run.description.start_time)
            if ask and run.is_open and not processed:
                answer = await self.runs.ask_worker(invoice.id, run_id, has_waited=True)
                run = replace(run, status=await self.runs.status_with_answer(run, answer))
        if run.status.state == "failed":
            raise failed_at_start(run.status)
        offset = self.runs.clock.offset_seconds
        return run.status.model_copy(update={"outcome": "started", "clock_offset_seconds": offset})

    async def decide(
        self,
        invoice_id: str,
        *,
        approve: bool,
        reason: str | None = None,
        total: NamedTotal | None = None,
        code: str | None = None,
        run_id: str | None = None,
    ) -> InvoiceStatus:
        """Sends a decision and finds out whether it is the one that stands.

        The outcome is `approved` or `rejected`, or `already_approved` or `already_rejected` if an
        earlier decision was the same, or `approved_first` or `already_approved_first` if a second
        person must approve too, or `decision_kept` if no worker runs and the Temporal Service
        keeps the decision.

        Args:
            total: the total of the invoice to be approved. If it has a different total, the
                decision is refused.
            code: the `content_code` that an earlier refusal gave, because the id had been used
                with different content or has letters that may look like others.
            run_id: the run whose content the person was shown.

        Raises:
            InvoiceError: there is no such invoice, it isn't the one that the arguments describe,
                its deadline has passed, or the opposite decision stands.
        """
        # Without a run id, the person has seen at most the arguments: an id, a total and a code.
        is_unseen = approve and run_id is None
        submissions = (
            # The one to be approved, those to compare, and one more to see whether there are more.
            in_background(self.runs.latest_executions(invoice_id, EARLIER_RUNS + 2))
            if is_unseen
            else None
        )
        run = await self.runs.get_run(invoice_id, with_content=is_unseen)
        _expect_invoice(run)
        if run_id and run.id != run_id:
            raise submitted_again(invoice_id)
        if approve and run.status.state in ("scheduled", "paying"):
            return with_outcome(run.status, approve=True)
        if run.status.state == "waiting":
            expect_not_cancelled(run.status, approve)
            expect_before_deadline(run.status, approve)
        if approve and run.is_open:
            expect_may_approve(run.status, self.name)
            if run.status.is_first_approval_by(self.name):
                return with_outcome(run.status, approve=True)
        if not run.is_open:
            return with_outcome(run.status, approve=approve)
        if settled := await self._settled(run, approve=approve):
            return with_outcome(settled, approve=approve)
        if approve:
            known = await submissions if submissions else None
            if known is not None:
                await self._expect_content_was_seen(run, total, code, known)
            expect_one_ledger(
                await self.runs.with_earlier_ledger(run, run.status, EARLIER_RUNS, known)
            )
        request = uuid4().hex
        details = DecisionDetails(
            by=self.name, reason=reason, request=request, sent_at=run.status.now
        )
        status = await self._send(run, details, request, approve=approve)
        return with_outcome(status, approve=approve, request=request)

    async def _settled(self, run: InvoiceRun, *, approve: bool) -> InvoiceStatus | None:
        """The status of an open run if other decisions are kept after which this one can't matter,
        so that it needn't be sent.
        """
        if run.status.state != "waiting" or run.is_up_to_date:
            return None
        status = await self.runs.status_with_unread(run)
        if status.can_change(self.name, approve=approve):
            return None
        answer = await self.runs.ask_worker(status.invoice_id, run.id)
        return await self.runs.status_with_answer(run, answer)

    async def _send(
        self, run: InvoiceRun, details: DecisionDetails, request: str, *, approve: bool
    ) -> InvoiceStatus:
        """Signals this run, never a later one, and returns its status after that."""
        invoice_id = run.status.invoice_id
        handle = self.temporal.get_workflow_handle_for(
            InvoiceWorkflow.run, run.description.id, run_id=run.id
        )
        signal = InvoiceWorkflow.approve_invoice if approve else InvoiceWorkflow.reject_invoice
        sent = datetime.now(UTC)
        try:
            await handle.signal(signal, json_payload(details.model_dump_json().encode()))
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return (await self.runs.get_run(invoice_id)).status  # closed in the meantime
        call = CallTimes(sent, datetime.now(UTC))
        processed = await self.runs.processed_run(invoice_id, run.id)
        taken = processed.status if processed and _is_taken(processed.status, request) else None
        if taken and self.runs.clock.is_compared_lately:
            return taken
        arrival = in_background(self.runs.signal_arrival(run, request))
        if taken:
            status = taken
        else:
            answer = await self.runs.ask_worker(invoice_id, run.id, has_waited=True)
            status = await self.runs.status_with_answer(run, answer)
        if arrived_at := await arrival:
            self.runs.clock.compare(call, arrived_at)
            offset = self.runs.clock.offset_seconds
            status = status.model_copy(update={"clock_offset_seconds": offset})
            is_late = status.deadline is not None and arrived_at >= status.deadline
            if is_late and not _is_taken(status, request):
                raise arrived_late(status, approve, arrived_at)
        return status

    async def _expect_content_was_seen(
        self,
        run: InvoiceRun,
        total: NamedTotal | None,
        code: str | None,
        submissions: list[Execution],
    ) -> None:
        """Makes sure that the id and the total can't mean content that the person hasn't seen.

        Raises:
            InvoiceError: the invoice has a different total, or the id was used before with
                different content or isn't ASCII, and `code` isn't the code of the present content.
        """
        invoice = await self._readable_invoice(run)
        if total:
            expect_total(invoice, total)
        earlier = [one for one in submissions if one.run_id != run.id]
        expected = content_code(invoice, run.id)
        if total and code and code.lower() == expected:
            return
        problem = ""
        if len(earlier) > EARLIER_RUNS:
            problem = submitted_too_often(invoice.id, EARLIER_RUNS)
        elif any(content != invoice.digest for content in await self.runs.digests(earlier)):
            problem = used_with_other_content(invoice.id)
        elif not invoice.id.isascii():
            problem = looks_like_others(invoice.id)
        elif code:
            problem = CODE_OF_OTHER_CONTENT
        if problem:
            raise content_to_be_shown(invoice, expected, problem)

    async def cancel(self, invoice_id: str, reason: str | None = None) -> InvoiceStatus:
        """Has Temporal cancel an open invoice, and finds out what came of it.

        A payment in progress finishes, and no other is started. The outcome is `cancelled`, or
        `being_cancelled` while a payment is in progress, or `cancellation_kept` if no worker runs
        and the Temporal Service keeps the cancellation, or `already_cancelled`.

        Raises:
            InvoiceError: there is no such invoice, or it has ended in another way.
        """
        run = await self.runs.get_run(invoice_id)
        _expect_invoice(run)
        if not run.status.is_open or not run.is_open:
            return with_cancellation(run.status, was_sent=False)
        if run.status.cancellation:
            answer = await self.runs.ask_worker(invoice_id, run.id)
            status = await self.runs.status_with_answer(run, answer)
            return with_cancellation(status, was_sent=False)
        handle = self.temporal.get_workflow_handle(run.description.id, run_id=run.id)
        try:
            await handle.cancel(reason=reason or "")
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            run = await self.runs.get_run(invoice_id, run.id)  # closed in the meantime
            return with_cancellation(run.status, was_sent=False)
        return with_cancellation(await self._status_once_cancelled(run), was_sent=True)

    async def _status_once_cancelled(self, run: InvoiceRun) -> InvoiceStatus:
        """The status as soon as a worker has taken the cancellation, or if none does."""
        invoice_id = run.status.invoice_id
        if processed := await self.runs.processed_run(invoice_id, run.id):
            return processed.status
        answer = await self.runs.ask_worker(invoice_id, run.id, has_waited=True)
        run = await self.runs.get_run(invoice_id, run.id)
        until = time.monotonic() + CANCEL_SECONDS
        while answer and run.is_open and run.description.has_pending_workflow_task:
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.05)
            run = await self.runs.get_run(invoice_id, run.id)
        if not run.is_open:
            return run.status
        if answer:
            answer = await self.runs.ask_worker(invoice_id, run.id)
        return await self.runs.status_with_answer(run, answer)

    async def get_status(self, invoice_id: str) -> StatusWithContent:
        """The status of an invoice's latest run, from the run's memo if no worker answers, and its
        content.

        Raises:
            InvoiceError: there is no such invoice.
        """
        # Ask the worker at the same time, since most invoices that people look up are open. If it
        # has answered recently, the memo probably says as much.
        asking = (
            None if self.runs.has_recent_answer else in_background(self.runs.ask_worker(invoice_id))
        )
        try:
            with SimilarSearch(self.search, invoice_id) as similar:
                similar.begin()
                run = await self.runs.get_run(
                    invoice_id, with_content=True, described=similar.begin_with_memo
                )
                _expect_invoice(run)
                invoice = await self.runs.content(run)
                status = run.status
                if run.is_open and (asking or not run.is_up_to_date):
                    answer = await (asking or self.runs.ask_worker(invoice_id))
                    status = await self.runs.status_with_answer(run, answer)
                status = await self.runs.with_earlier_ledger(run, status, EARLIER_RUNS)
                return StatusWithContent.of(await similar.add_to(status), invoice)
        finally:
            if asking:
                asking.cancel()

    async def invoice_for_approval(
        self, invoice_id: str, total: NamedTotal | None = None, *, to_be_shown: bool = True
    ) -> tuple[InvoiceRun, Invoice]:
        """The run and the invoice that a person decides on. It can be read without a worker.

        Args:
            total: the total that the invoice must have, if it hasn't been decided on yet.
            to_be_shown: whether to look for similar invoices and, if the memo may not be up to
                date, to ask a worker.

        Raises:
            InvoiceError: there is no such invoice, its content breaks the rules, or it has a
                different total.
        """
        with SimilarSearch(self.search, invoice_id) as similar:
            if to_be_shown:
                similar.begin()
            run = await self.runs.get_run(
                invoice_id,
                with_content=True,
                described=similar.begin_with_memo if to_be_shown else None,
            )
            _expect_invoice(run)
            invoice = await self._readable_invoice(run)
            if total is not None and not run.status.is_decided:
                expect_total(invoice, total)
            if not to_be_shown or not run.is_open:
                return run, invoice
            status = run.status
            # A worker may have yet to read a decision. Without a worker, the history shows it.
            if status.paid_earlier_lines is None or not run.is_up_to_date:
                answer = await self.runs.ask_worker(invoice_id, run.id)
                status = await self.runs.status_with_answer(run, answer)
            status = await self.runs.with_earlier_ledger(run, status, EARLIER_RUNS)
            return replace(run, status=await similar.add_to(status)), invoice

    async def _readable_invoice(self, run: InvoiceRun) -> Invoice:
        invoice = await self.runs.content(run)
        if invoice is None:
            raise content_unreadable(run.status.invoice_id)
        return invoice


def _is_taken(status: InvoiceStatus, request: str) -> bool:
    """Whether somebody has decided, or this decision is the first of two people's approvals."""
    first = status.first_approval
    return status.is_decided or (first is not None and first.request == request)


def _expect_invoice(run: InvoiceRun) -> None:
    """Raises `InvoiceError` if the run isn't one of `InvoiceWorkflow`."""
    if run.description.workflow_type != INVOICE_WORKFLOW:
        raise not_an_invoice(run.status, run.description.workflow_type)
