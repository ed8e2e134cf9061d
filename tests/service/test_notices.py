"""Notices to a web hook: whose they are, and that a hook that misbehaves holds up nothing.

What they say is tested in `test_operations.py`.
"""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import temporalio.worker
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.workflowservice.v1 import (
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.service import RPCError

from hooks import Answer, Hook, a_hook, accept, fail, hang, never_end
from invoices.invoice import Invoice, workflow_id
from notices import NOTICE_TASK_QUEUE
from support import PROCESSES, Desk, Namespace, Service, Worker, eventually
from workflow import TASK_QUEUE

BOMB = gzip.compress(bytes(2**29))


async def send_a_bomb(writer: asyncio.StreamWriter) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n\r\n"
    writer.write(head.encode() + BOMB)


def a_worker(namespace: Namespace, data: Path, hook: Hook) -> Worker:
    return Worker(namespace.address, data, INVOICE_NOTIFY_URL=hook.url)


async def pay(desk: Desk, invoice: Invoice) -> None:
    await desk.approve(invoice)
    assert await desk.handle(invoice).result() == "COMPLETED"


# What is posted, and what of the answer is read.


# A hook that misbehaves.


@pytest.mark.slow
async def test_payments_and_the_workers_end_wait_for_no_hook(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with a_hook(hang) as hook:
        async with Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url) as worker:
            invoice, *_ = await asyncio.gather(*(desk.submit() for _ in range(25)))

            await eventually(lambda: len(hook.posts) >= 10)
            await pay(desk, invoice)
            assert hook.ended == 0, "a post had to be given up first"
            start = time.monotonic()
            assert await worker.end() == 0
            assert time.monotonic() - start < 35
            assert "Traceback" not in worker.log.read_text()
        # What was cut off is posted by the next worker.
        hook.answer = accept
        hook.posts.clear()
        async with a_worker(namespace, tmp_path, hook):
            await eventually(lambda: {"waiting", "completed"} <= set(hook.events(invoice)), 40)


@pytest.mark.parametrize("answer", [never_end, send_a_bomb])
async def test_an_answer_without_end_takes_no_memory(
    answer: Answer, namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with (
        a_hook(answer) as hook,
        a_worker(namespace, tmp_path, hook) as worker,
    ):
        assert worker.process
        memory = psutil.Process(worker.process.pid).memory_info

        async def delivered() -> bool:
            query = "WorkflowType='NoticeWorkflow' AND ExecutionStatus='Completed'"
            return (await desk.temporal.count_workflows(query)).count >= expected

        expected = 1
        await desk.submit()
        await eventually(delivered)
        before = memory().rss
        expected = 11
        await asyncio.gather(*(desk.submit() for _ in range(10)))
        await eventually(delivered)
        assert memory().rss - before < 50_000_000


async def test_a_name_that_is_looked_up_for_ever_holds_up_nothing(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    script = PROCESSES / "nameless_worker.py"
    nameless = Worker(
        namespace.address, tmp_path, script, INVOICE_NOTIFY_URL="http://hook.invalid/hook"
    )
    async with nameless as worker:
        invoice = await desk.submit()

        await eventually((tmp_path / "looking-up").exists)
        await pay(desk, invoice)
        assert await worker.end() == 0


# Where a hook's worker is, or isn't.


async def test_a_notice_waits_for_a_worker_with_the_hook(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with a_hook(fail) as hook:
        async with Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url) as worker:
            invoice = await desk.submit()

            await eventually(lambda: hook.events(invoice) == ["waiting"])
            assert await worker.end() == 0
        async with Worker(namespace.address, tmp_path) as worker:  # which was started without it
            await pay(desk, invoice)
            assert await worker.end() == 0
        hook.answer = accept
        async with a_worker(namespace, tmp_path, hook):
            await eventually(lambda: {"waiting", "completed"} <= set(hook.events(invoice)[1:]), 30)


async def test_a_versioned_worker_posts_and_the_version_before_can_be_made_current(
    service: Service, tmp_path: Path
) -> None:
    desk = Desk(await service.start())  # of its own: the one that is shared keeps no versions

    async def make_current(build_id: str) -> None:
        async def accepted() -> bool:
            request = SetWorkerDeploymentCurrentVersionRequest(
                namespace=desk.temporal.namespace, deployment_name="invoices", build_id=build_id
            )
            try:
                await desk.temporal.workflow_service.set_worker_deployment_current_version(request)
            except RPCError:
                return False
            return True

        await eventually(accepted)  # once the service knows the version

    def a_version(build_id: str, hook_url: str = "") -> Worker:
        return Worker(
            service.address,
            tmp_path,
            INVOICE_NOTIFY_URL=hook_url,
            TEMPORAL_DEPLOYMENT_NAME="invoices",
            TEMPORAL_WORKER_BUILD_ID=build_id,
        )

    async with a_hook(accept) as hook, a_version("2", hook.url):
        await make_current("2")
        invoice = await desk.submit()

        await eventually(lambda: hook.events(invoice) == ["waiting"])
        async with a_version("1"):  # as before notices had a task queue of their own
            await make_current("1")
            await pay(desk, invoice)


# Whose notice it is.


@pytest.fixture(scope="module")
async def hook() -> AsyncIterator[Hook]:
    async with a_hook(accept) as hook:
        yield hook


@pytest.fixture(scope="module")
async def client(
    hook: Hook, new_namespace: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Client]:
    """Of another program than ours, in a namespace with a worker that has the hook."""
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
async def test_odd_arguments_end_a_notice(arguments: list[Any], client: Client) -> None:
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
    """Sends a notice as a workflow may that another program runs, by a child or by the activity."""
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
async def test_only_the_run_of_an_invoice_tells_of_it(
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
        # Fields that a notice doesn't have are left out.
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
