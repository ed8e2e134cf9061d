"""Making a change of an invoice's run known, to people and programs that look at Temporal."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy, SearchAttributeKey
from temporalio.exceptions import FailureError, WorkflowAlreadyStartedError

with workflow.unsafe.imports_passed_through():
    from pydantic import ValidationError

    from activities import cancellation_request
    from invoices.invoice import Invoice
    from invoices.status import (
        INVALID_INVOICE,
        Cancellation,
        RunProgress,
        State,
    )
    from invoices.web_ui import WebUiDetails
    from invoices.wording import format_utc
    from notices import Event, NoticeWorkflow, make_notice
    from temporal_service.traces import record_outcome

INVOICE_STATE = SearchAttributeKey.for_keyword("InvoiceState")
"""Holds the `State`, so that the Web UI's list can show and filter it. Optional everywhere."""
INVOICE_TOTAL = SearchAttributeKey.for_keyword("InvoiceTotal")
"""Holds the total, such as `USD 7000.00`, which the client sets. Optional everywhere."""
SEARCH_ATTRIBUTES = (INVOICE_STATE.name, INVOICE_TOTAL.name)


class RunReport:
    """What others see of one run: the log, its memo, `InvoiceState`, the details in the Web UI, the
    metric `invoices_ended`, and notices.
    """

    def __init__(self, invoice: Invoice, deadline: datetime) -> None:
        self._invoice = invoice
        self._deadline = deadline
        self._web_ui = WebUiDetails(invoice, deadline)
        self._last_status = ""
        self._last_event = ""
        self._memo: dict[str, Any] = {}
        self.sends_notices = False
        """Whether the worker that answered the run's first question has a web hook."""
        self._notices: list[asyncio.Task[Any]] = []

    def make_known(self, progress: RunProgress) -> None:
        """Publishes the current state of the run."""
        if progress.status != self._last_status:
            self._log(progress)
            self._last_status = progress.status
        self._upsert_memo(progress.to_memo())
        upsert_state(progress.state)
        workflow.set_current_details(self._web_ui.render(progress))
        event: Event = "second_approval" if progress.needs_second_person else progress.state
        if event not in ("paying", self._last_event):
            self.notify(event, progress)
        self._last_event = event
        if not progress.is_open:
            ended = workflow.metric_meter().create_counter("invoices_ended", "By outcome.")
            ended.add(1, {"outcome": progress.state})
            record_outcome(progress.state)

    def make_rule_known(self, progress: RunProgress) -> None:
        """Notes whose approvals the run needs, in a memo update of its own.

        An older worker, which would pay after one approval, doesn't make this update, so it can't
        continue the run. `workflow.patched` isn't used for that: what follows a local activity can
        be in a later workflow task than its result, namely if a query was waiting, and `patched` is
        then false in a replay.
        """
        self._upsert_memo(progress.to_memo())

    def notify(self, event: Event, progress: RunProgress) -> None:
        """Starts a notice as a child workflow that continues on its own."""
        if self.sends_notices:
            info = workflow.info()
            start = workflow.start_child_workflow(
                NoticeWorkflow.run,
                make_notice(event, self._invoice, progress, info.run_id),
                # A reset gives the run another id, under which it replays what it has started.
                id=f"notice-{info.original_execution_run_id}-{event}",
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )
            self._notices.append(asyncio.create_task(start))

    async def hand_over_notices(self) -> None:
        """Until the service has them: a notice that isn't started would end with this run.

        A cancellation that arrives meanwhile is too late: how the run ends is already told.
        """
        if not self._notices:
            return
        handing_over = asyncio.gather(*self._notices, return_exceptions=True)
        try:
            results = await asyncio.shield(handing_over)
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is None:  # the run only leaves the worker's memory
                raise
            if not workflow.patched("end-before-cancellation"):
                handing_over.cancel()
                with suppress(asyncio.CancelledError):
                    await handing_over
                raise
            results = await handing_over
        for result in results:
            if isinstance(result, WorkflowAlreadyStartedError):
                workflow.logger.warning(
                    "%s: a notice isn't sent, because another workflow has its id, %s",
                    self._invoice.id,
                    result.workflow_id,
                )

    def _log(self, progress: RunProgress) -> None:
        match progress.state:
            case "waiting":
                detail = f", until {format_utc(self._deadline)}"
            case "rejected" | "scheduled" | "paying":
                detail = f", {progress.decision}"
            case "cancelled":
                detail = f", {progress.cancellation}"
            case _:
                detail = ""
        workflow.logger.info("%s %s%s", self._invoice.id, progress.status, detail)

    def _upsert_memo(self, memo: dict[str, Any]) -> None:
        known = self._memo or workflow.memo()  # at first what the client has put there
        changed = [key for key in RunProgress.model_fields if known.get(key) != memo.get(key)]
        # Clients before 1.1 put no state into the memo, and their runs must replay without an
        # update for it alone. It changes with the status anyway.
        if changed and changed != ["state"]:
            # Upserting None deletes a memo key.
            workflow.upsert_memo({key: memo.get(key) for key in changed})
        self._memo = memo


async def find_cancellation() -> Cancellation:
    """Who cancelled this run, when and why, as the Temporal Service has it.

    The worker asks the service, which alone knows the sender and the time. If it doesn't answer
    within some seconds, or too many signals hide the request, only the reason is known.

    Raises:
        asyncio.CancelledError: nobody did; the run only leaves the worker's memory.
    """
    reason = workflow.cancellation_reason()
    if reason is None:
        raise asyncio.CancelledError
    if workflow.patched("cancellation-by-the-service"):
        with suppress(FailureError, ValidationError):
            found = await workflow.execute_local_activity(
                cancellation_request,
                schedule_to_close_timeout=timedelta(seconds=5),
                retry_policy=RetryPolicy(initial_interval=timedelta(seconds=0.5)),
            )
            return Cancellation.model_validate(found)
    return Cancellation.from_request("", reason, None)


def report_invalid(problem: str) -> str:
    """Makes known that a run isn't an invoice's, and returns its status.

    Whatever its client wrote into the memo is replaced.
    """
    status = f"{INVALID_INVOICE}: {problem}"
    nothing = dict.fromkeys(RunProgress.model_fields)
    workflow.upsert_memo({**nothing, "status": status})
    upsert_state("failed")
    record_outcome("failed")
    workflow.logger.warning("%s: %s", workflow.info().workflow_id, status)
    return status


def upsert_state(state: State) -> None:
    """Sets `InvoiceState`, only where the client could: a workflow task that sets an attribute
    which the namespace doesn't have fails for ever.
    """
    known = workflow.info().typed_search_attributes.get(INVOICE_STATE)
    if known is not None and known != state:
        workflow.upsert_search_attributes([INVOICE_STATE.value_set(state)])
