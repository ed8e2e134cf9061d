"""Which worker posts a notice, and whose notices it posts.

Their content is tested in `test_operations.py`, and misbehaving hooks in `tests/faults`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import temporalio.worker
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

from hooks import Hook, a_hook, accept, fail
from invoices.invoice import workflow_id
from notices import NOTICE_TASK_QUEUE
from support import Desk, Namespace, Worker, eventually
from worker_here import worker_here
from workflow import TASK_QUEUE

# Workers with and without the hook.


async def test_a_notice_waits_for_a_worker_with_the_hook(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with a_hook(fail) as hook:
        async with Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url) as worker:
            invoice = await desk.submit()

            await eventually(lambda: hook.events(invoice) == ["waiting"])
            assert await worker.end() == 0
        async with worker_here(namespace.address, tmp_path):  # which was started without it
            await desk.pay(invoice)
        hook.answer = accept
        async with worker_here(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url):
            await eventually(lambda: {"waiting", "completed"} <= set(hook.events(invoice)[1:]), 30)


async def test_a_notice_whose_id_is_taken_is_logged(namespace: Namespace, tmp_path: Path) -> None:
    desk = Desk(await namespace.connect())
    async with (
        a_hook(accept) as hook,
        Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url) as worker,
    ):
        invoice = await desk.submit()
        run_id = (await desk.handle(invoice).describe()).run_id
        taken = f"notice-{run_id}-completed"
        await desk.temporal.start_workflow("Nothing", id=taken, task_queue="of-nobody")
        await desk.pay(invoice)

        await eventually(lambda: "a notice isn't sent" in worker.log.read_text())
        # Under load, a task may be tried again.
        [line, *_] = [one for one in worker.log.read_text().splitlines() if taken in one]
        assert "WARNING" in line
        assert f"{invoice.id}: a notice isn't sent, because another workflow has its id" in line


# The senders of notices.


@pytest.fixture(scope="module")
async def client(
    hook: Hook, new_namespace: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Client]:
    """A client that isn't ours, in a namespace with a worker that has the hook."""
    address = new_namespace()
    async with Worker(address, tmp_path_factory.mktemp("data"), INVOICE_NOTIFY_URL=hook.url):
        yield await Namespace(address).connect()


def a_notice(invoice_id: str, run_id: str) -> dict[str, Any]:
    return {
        "text": f"Invoice {invoice_id} is paid.",
        "event": "completed",
        "notice_id": f"{run_id}/completed",
        "invoice_id": invoice_id,
        "total": "1.00",
        "paid": "1.00",
        "currency": "USD",
        "status": "Completed",
    }


async def start_notice(client: Client, *arguments: Any) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(
        "NoticeWorkflow", args=arguments, id=f"notice-{uuid4().hex}", task_queue=TASK_QUEUE
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["text"],
        [[a_notice("a", "b")]],
        [{**a_notice("a", "b"), "text": 5}],
        [5, a_notice("a", "b")],
        [RawValue(Payload(metadata={"encoding": b"\xff\xfe"}, data=b"\xff"))],
        [RawValue(Payload(metadata={"encoding": b"binary/encrypted"}, data=b"{}"))],
        [RawValue(Payload())],
    ],
    ids=str,
)
async def test_invalid_arguments_end_a_notice(arguments: list[Any], client: Client) -> None:
    handle = await start_notice(client, *arguments)
    with pytest.raises(WorkflowFailureError) as failure:
        async with asyncio.timeout(10):
            await handle.result()
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.type == "InvalidNotice"
    assert failure.value.cause.message.startswith("not a notice: ")


async def test_a_notice_without_an_invoice_is_not_posted(client: Client, hook: Hook) -> None:
    invoice = await Desk(client).submit()
    run_id = (await client.get_workflow_handle(workflow_id(invoice.id)).describe()).run_id
    handle = await start_notice(client, a_notice(invoice.id, run_id))
    assert await handle.result() == "UNDELIVERED"
    assert "completed" not in hook.events(invoice)


async def forge(notice: dict[str, Any], directly: bool) -> str:
    """Another program's workflow, which sends a notice through a child or the activity."""
    notice = {"notice_id": f"{workflow.info().run_id}/completed", **notice}
    if not directly:
        result: str = await workflow.execute_child_workflow(
            "NoticeWorkflow", notice, task_queue=TASK_QUEUE
        )
        return result
    try:
        await workflow.execute_activity(
            "post_notice",
            notice,
            task_queue=NOTICE_TASK_QUEUE,
            start_to_close_timeout=timedelta(seconds=5),
        )
    except ActivityError as error:
        return "UNDELIVERED" if "InvalidNotice" in repr(error.cause) else repr(error.cause)
    return "DELIVERED"


@workflow.defn(name="InvoiceWorkflow", sandboxed=False)
class OfAnInvoice:
    @workflow.run
    async def run(self, notice: dict[str, Any], directly: bool) -> str:
        return await forge(notice, directly)


@workflow.defn(sandboxed=False)
class Another:
    @workflow.run
    async def run(self, notice: dict[str, Any], directly: bool) -> str:
        return await forge(notice, directly)


@pytest.mark.parametrize(
    ("sender", "directly", "changed"),
    [
        (OfAnInvoice, False, {}),
        (OfAnInvoice, False, {"invoice_id": "another"}),
        (OfAnInvoice, False, {"notice_id": f"{uuid4()}/completed"}),
        (OfAnInvoice, True, {}),
        (Another, False, {}),
        (Another, True, {}),
    ],
)
async def test_only_an_invoices_own_run_can_send_its_notice(
    sender: type, directly: bool, changed: dict[str, str], client: Client, hook: Hook
) -> None:
    invoice_id, queue = uuid4().hex, uuid4().hex
    true_notice = a_notice(invoice_id, "run")
    del true_notice["notice_id"]
    name = "InvoiceWorkflow" if sender is OfAnInvoice else "Another"
    async with temporalio.worker.Worker(client, task_queue=queue, workflows=[sender]):
        handle = await client.start_workflow(
            name,
            args=[{**true_notice, "more": "x", **changed}, directly],
            id=workflow_id(invoice_id),
            task_queue=queue,
        )
        result = await handle.result()
    posts = [post for post in hook.posts if invoice_id in post["text"]]
    if sender is OfAnInvoice and not directly and not changed:
        assert result == "DELIVERED"
        # Unknown fields are left out.
        assert posts == [a_notice(invoice_id, (await handle.describe()).run_id)]
    else:
        assert (result, posts) == ("UNDELIVERED", [])


async def test_a_standalone_activity_posts_nothing(client: Client, hook: Hook) -> None:
    invoice_id = uuid4().hex
    for arguments in ([a_notice(invoice_id, "run")], [], [5, 5]):
        with pytest.raises(Exception) as failure:  # noqa: PT011
            async with asyncio.timeout(10):
                await client.execute_activity(
                    "post_notice",
                    args=arguments,
                    id=uuid4().hex,
                    task_queue=NOTICE_TASK_QUEUE,
                    start_to_close_timeout=timedelta(seconds=5),
                    retry_policy=RetryPolicy(),
                )
        assert isinstance(failure.value.__cause__, ApplicationError)
        assert failure.value.__cause__.type == "InvalidNotice"
    assert invoice_id not in str(hook.posts)
