"""Notices: a POST to a web hook when an invoice waits, is about to time out, or has ended.

Off unless the worker has an `INVOICE_NOTIFY_URL`. A notice travels in a workflow of its own, so
that a hook that is slow or gone holds up neither a payment nor the end of an invoice.
"""

import os
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory

with workflow.unsafe.imports_passed_through():
    import httpx2

    from invoices.invoice import Invoice
    from invoices.status import RunProgress, State
    from invoices.wording import format_lines_and_total, format_money, format_utc, sanitized
    from startup import StartupError

Event = State | Literal["reminder"]

DELIVERY = RetryPolicy(
    initial_interval=timedelta(seconds=2),
    backoff_coefficient=3,
    maximum_interval=timedelta(minutes=10),
    maximum_attempts=10,  # within the hour
)


def notify_url() -> str | None:
    """`INVOICE_NOTIFY_URL`. A secret: whoever has it can post, so it is never logged.

    Raises:
        StartupError: it is no http or https address.
    """
    url = os.environ.get("INVOICE_NOTIFY_URL") or None
    if url and not (url.startswith(("http://", "https://")) and urlsplit(url).hostname):
        raise StartupError("INVOICE_NOTIFY_URL must begin with http:// or https:// and a host.")
    return url


def make_notice(
    event: Event, invoice: Invoice, progress: RunProgress, run_id: str
) -> dict[str, Any]:
    """What is posted: `text`, which Slack, Mattermost and Teams show, and typed fields.

    `notice_id` is the same whenever the same notice is posted again.
    """
    notice = {
        "text": _text(event, invoice, progress),
        "event": event,
        "notice_id": f"{run_id}/{event}",
        "invoice_id": invoice.id,
        "total": str(invoice.total),
        "paid": str(progress.paid_amount),
        "currency": invoice.currency,
        "status": progress.status,
    }
    if progress.deadline and event in ("waiting", "reminder"):
        notice["deadline"] = progress.deadline.isoformat()
    return notice


def _text(event: Event, invoice: Invoice, progress: RunProgress) -> str:
    amounts = format_lines_and_total(len(invoice.lines), invoice.total, invoice.currency)
    decision = f", {progress.decision}" if progress.decision else ""
    match event:
        case "waiting" | "reminder" if progress.deadline:
            still = "still waits" if event == "reminder" else "waits"
            until = format_utc(progress.deadline)
            return f"Invoice {invoice.id} {still} for approval until {until}: {amounts}."
        case "completed":
            return f"Invoice {invoice.id} is paid: {amounts}{decision}."
        case _:
            paid = format_money(progress.paid_amount, invoice.currency)
            status = sanitized(progress.status, 300)
            return f"Invoice {invoice.id}: {status}. {amounts}, of that paid: {paid}{decision}."


@activity.defn
async def post_notice(notice: dict[str, Any]) -> None:
    """Posts a notice to `INVOICE_NOTIFY_URL`, within 10 s.

    Raises:
        ApplicationError: the hook can't be reached or answers with an error; the address is not
            told. Not retried where the hook says that the request itself is wrong.
    """
    url = notify_url()
    if url is None:
        raise _undelivered("this worker has no INVOICE_NOTIFY_URL")
    try:
        async with httpx2.AsyncClient(timeout=10) as client:
            response = await client.post(url, json=notice)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _undelivered(f"the hook can't be reached ({type(error).__name__})") from None
    code = response.status_code
    if not response.is_success:
        hopeless = 400 <= code < 500 and code not in (408, 425, 429)
        raise _undelivered(f"the hook answered with status {code}", hopeless)


def _undelivered(reason: str, hopeless: bool = False) -> ApplicationError:
    return ApplicationError(
        reason,
        type="NoticeUndelivered",
        non_retryable=hopeless,
        category=ApplicationErrorCategory.BENIGN,  # foreseen: no traceback in the log
    )


@workflow.defn
class NoticeWorkflow:
    """Delivers one notice, or gives it up after ten attempts within the hour."""

    @workflow.run
    async def run(self, notice: dict[str, Any]) -> str:
        try:
            await workflow.execute_activity(
                post_notice,
                notice,
                start_to_close_timeout=timedelta(seconds=15),
                retry_policy=DELIVERY,
            )
        except ActivityError as error:
            workflow.logger.warning(
                "Notice %s was given up: %s", notice.get("notice_id"), error.cause
            )
            return "UNDELIVERED"
        return "DELIVERED"
