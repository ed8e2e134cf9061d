"""Notices: a POST to a web hook when an invoice waits, is about to time out, or has ended.

They are off unless the worker has an `INVOICE_NOTIFY_URL`. Each notice has its own workflow, and a
separate worker posts it, so that a slow or unreachable hook delays neither payments nor the end of
an invoice.
"""

import asyncio
import logging
import threading
from datetime import timedelta
from functools import cache
from typing import Literal

from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode

with workflow.unsafe.imports_passed_through():
    from pydantic import BaseModel, ValidationError

    from invoices.invoice import Invoice, workflow_id
    from invoices.status import RunProgress, State
    from invoices.wording import (
        describe_validation_errors,
        format_lines_and_total,
        format_money,
        format_utc,
        sanitized,
    )
    from settings import read_setting
    from startup import StartupError, is_web_address
    from temporal_service.payloads import NO_PAYLOAD, json_payload

NOTICE_TASK_QUEUE = "invoice-notice-task-queue"
"""Only for `post_notice`, so that a hook that hangs doesn't occupy a slot for payments."""
POST_SECONDS = 10

# The HTTP client logs the address of every request, which is a secret here.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

Event = State | Literal["reminder", "second_approval"]
WAITING_EVENTS: tuple[Event, ...] = ("waiting", "second_approval", "reminder")

DELIVERY = RetryPolicy(
    initial_interval=timedelta(seconds=2),
    backoff_coefficient=3,
    maximum_interval=timedelta(minutes=10),
    maximum_attempts=10,  # within the hour
)


def notify_url() -> str | None:
    """`INVOICE_NOTIFY_URL`. It's never logged, because anyone who has it can post.

    Raises:
        StartupError: it isn't an http or https address.
    """
    url = read_setting("INVOICE_NOTIFY_URL") or None
    if url and not is_web_address(url):
        raise StartupError("INVOICE_NOTIFY_URL must begin with http:// or https:// and a host.")
    return url


class Notice(BaseModel):
    """What is posted: `text`, which Slack, Mattermost and Teams show, and typed fields."""

    text: str
    event: str
    notice_id: str
    """The run's id and the event: the same whenever the same notice is posted again."""
    invoice_id: str
    total: str
    paid: str
    currency: str
    status: str
    deadline: str | None = None
    pay_on: str | None = None

    def to_json(self) -> str:
        return self.model_dump_json(exclude_none=True)


def make_notice(event: Event, invoice: Invoice, progress: RunProgress, run_id: str) -> RawValue:
    """A `Notice` as `NoticeWorkflow` takes it."""
    deadline = progress.deadline if event in WAITING_EVENTS else None
    notice = Notice(
        text=_text(event, invoice, progress),
        event=event,
        notice_id=f"{run_id}/{event}",
        invoice_id=invoice.id,
        total=str(invoice.total),
        paid=str(progress.paid_amount),
        currency=invoice.currency,
        status=progress.status,
        deadline=deadline.isoformat() if deadline else None,
        pay_on=progress.pay_on.isoformat() if progress.pay_on else None,
    )
    return json_payload(notice.to_json().encode())


def _text(event: Event, invoice: Invoice, progress: RunProgress) -> str:
    amounts = format_lines_and_total(len(invoice.lines), invoice.total, invoice.currency)
    decision = f", {progress.decision}" if progress.decision else ""
    match event:
        case "waiting" | "second_approval" | "reminder" if progress.deadline:
            still = "still waits" if event == "reminder" else "waits"
            until = format_utc(progress.deadline)
            text = f"Invoice {invoice.id} {still} for approval until {until}: {amounts}."
            return f"{text} {progress.approvals}".rstrip()
        case "completed":
            return f"Invoice {invoice.id} is paid: {amounts}{decision}."
        case _:
            paid = format_money(progress.paid_amount, invoice.currency)
            status = sanitized(progress.status, 300)
            text = f"Invoice {invoice.id}: {status}. {amounts}, of that paid: {paid}{decision}."
            return f"{text} {progress.cancelled}".rstrip()


@activity.defn
async def post_notice(notice: RawValue = NO_PAYLOAD) -> None:
    """Posts a `Notice` to `INVOICE_NOTIFY_URL`, within 10 s.

    It posts a notice only if a run of `InvoiceWorkflow` sends it about its own invoice. Anyone who
    can reach the Temporal Service can start this activity, and the hook's readers believe notices.

    Raises:
        ApplicationError: of type `NoticeUndelivered`: the hook can't be reached or answers with an
            error. The message doesn't contain the address. Not retried if the hook says that the
            request itself is wrong. Of type `InvalidNotice`, not retried: it isn't such a notice.
    """
    import httpx2  # not for the workers without a hook, which start without it

    content = _read(notice)
    await _expect_sender(content)
    url = notify_url()
    if url is None:
        raise _undelivered("this worker has no INVOICE_NOTIFY_URL")
    posting = asyncio.run_coroutine_threadsafe(_post(url, content.to_json()), _loop())
    try:
        code = await asyncio.wrap_future(posting)
    except TimeoutError:
        raise _undelivered(f"the hook gave no answer within {POST_SECONDS} s") from None
    # OSError and ValueError: the environment has wrong settings for certificates or a proxy.
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        # Without the error's text and its cause, which may quote the address.
        raise _undelivered(f"the hook can't be reached ({type(error).__name__})") from None
    if not 200 <= code < 300:
        hopeless = 400 <= code < 500 and code not in (408, 425, 429)
        raise _undelivered(f"the hook answered with status {code}", hopeless)


def _read(payload: RawValue) -> Notice:
    try:
        return Notice.model_validate_json(payload.payload.data)
    except ValidationError as error:
        raise _invalid(f"not a notice: {describe_validation_errors(error)}") from None


async def _expect_sender(notice: Notice) -> None:
    """Checks with the Temporal Service that the run of the notice's invoice has sent it."""
    info = activity.info()
    if info.workflow_type != "NoticeWorkflow" or not (info.workflow_id and info.workflow_run_id):
        raise _invalid("a notice is posted by a NoticeWorkflow only")
    try:
        parent = (await _describe(info.workflow_id, info.workflow_run_id)).parent_execution
        is_child = bool(parent.run_id)
        sender = await _describe(parent.workflow_id, parent.run_id) if is_child else None
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            raise _invalid("the invoice's run that sent it is gone") from None
        raise _undelivered(f"the Temporal Service doesn't answer ({error.status.name})") from None
    if (
        sender is None
        or sender.type.name != "InvoiceWorkflow"
        or parent.workflow_id != workflow_id(notice.invoice_id)
        or not notice.notice_id.startswith(f"{parent.run_id}/")
    ):
        raise _invalid("it doesn't come from the run of its invoice")


async def _describe(name: str, run_id: str) -> WorkflowExecutionInfo:
    client = activity.client()
    request = DescribeWorkflowExecutionRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=name, run_id=run_id),
    )
    answer = await client.workflow_service.describe_workflow_execution(
        request, timeout=timedelta(seconds=2)
    )
    return answer.workflow_execution_info


async def _post(url: str, body: str) -> int:
    """Posts, and returns the answer's status code. Doesn't read its body, which may never end.

    Raises:
        TimeoutError: it took longer than `POST_SECONDS` in all.
    """
    import httpx2

    async with (
        asyncio.timeout(POST_SECONDS),
        httpx2.AsyncClient(timeout=None) as client,
        client.stream(
            "POST", url, content=body, headers={"Content-Type": "application/json"}
        ) as response,
    ):
        return response.status_code


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """An event loop in a thread of its own, for posts only.

    A DNS lookup occupies one of its loop's threads, for half a minute if no name server answers,
    and can't be cancelled. In the worker's own loop, the worker would have to wait for it at its
    end.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="notices", daemon=True).start()
    return loop


def _undelivered(reason: str, hopeless: bool = False) -> ApplicationError:
    return ApplicationError(
        reason,
        type="NoticeUndelivered",
        non_retryable=hopeless,
        category=ApplicationErrorCategory.BENIGN,  # expected: no traceback in the log
    )


def _invalid(reason: str) -> ApplicationError:
    return ApplicationError(
        reason,
        type="InvalidNotice",
        non_retryable=True,
        category=ApplicationErrorCategory.BENIGN,
    )


@workflow.defn
class NoticeWorkflow:
    """Delivers one notice, or gives up after ten attempts within an hour.

    It fails with `InvalidNotice` if it was started with anything else. See
    `temporal_service/payloads.py` for why it takes the payload raw.
    """

    @workflow.run
    async def run(self, notice: RawValue = NO_PAYLOAD) -> str:
        notice_id = _read(notice).notice_id
        try:
            await workflow.execute_activity(
                post_notice,
                notice,
                task_queue=NOTICE_TASK_QUEUE,
                start_to_close_timeout=timedelta(seconds=15),
                # No worker takes it if none has an INVOICE_NOTIFY_URL any more.
                schedule_to_start_timeout=timedelta(days=1),
                retry_policy=DELIVERY,
            )
        except ActivityError as error:
            workflow.logger.warning(
                "Notice %s was given up: %s", sanitized(notice_id, 100), error.cause
            )
            return "UNDELIVERED"
        return "DELIVERED"
