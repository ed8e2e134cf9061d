"""Notices to a web hook: whose they are, and that a hook that misbehaves holds up nothing.

What they say is tested in `test_operations.py`.
"""

import asyncio
import gzip
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import temporalio.worker
from temporalio import workflow
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import (
    ResetWorkflowExecutionRequest,
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.service import RPCError
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

import activities
import notices
import reports
from hooks import Answer, Hook, a_hook, accept, fail, hang, never_end
from invoice_client import InvoiceClient
from invoices.invoice import Invoice, workflow_id
from notices import NOTICE_TASK_QUEUE, NoticeWorkflow
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from reports import RunReport
from support import PROCESSES, Namespace, Service, Worker, an_invoice, eventually
from workflow import TASK_QUEUE, InvoiceWorkflow

BOMB = gzip.compress(bytes(2**29))


async def send_a_bomb(writer: asyncio.StreamWriter) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n\r\n"
    writer.write(head.encode() + BOMB)


def a_worker(namespace: Namespace, data: Path, hook: Hook) -> Worker:
    return Worker(namespace.address, data, INVOICE_NOTIFY_URL=hook.url)


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[Worker]:
    try:
        yield await worker.start()
    finally:
        worker.kill()


async def submit(client: Client) -> Invoice:
    invoice = Invoice.model_validate(an_invoice())
    await InvoiceClient(client).submit(invoice)
    return invoice


async def pay(client: Client, invoice: Invoice) -> None:
    await InvoiceClient(client).decide(invoice.id, approve=True)
    handle = client.get_workflow_handle(workflow_id(invoice.id))
    assert await handle.result() == "COMPLETED"


# What is posted, and what of the answer is read.


# A hook that misbehaves.


@pytest.mark.slow
async def test_payments_and_the_workers_end_wait_for_no_hook(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    async with a_hook(hang) as hook:
        async with running(
            Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url)
        ) as worker:
            invoice, *_ = await asyncio.gather(*(submit(client) for _ in range(25)))

            async def all_slots_are_taken() -> bool:
                return len(hook.posts) >= 10

            await eventually(all_slots_are_taken)
            await pay(client, invoice)
            assert hook.ended == 0, "a post had to be given up first"
            start = time.monotonic()
            assert await worker.end() == 0
            assert time.monotonic() - start < 35
            assert "Traceback" not in worker.log.read_text()
        # What was cut off is posted by the next worker.
        hook.answer = accept
        hook.posts.clear()
        async with running(a_worker(namespace, tmp_path, hook)):

            async def delivered() -> bool:
                return {"waiting", "completed"} <= set(hook.events(invoice))

            await eventually(delivered, 40)


@pytest.mark.parametrize("answer", [never_end, send_a_bomb])
async def test_an_answer_without_end_takes_no_memory(
    answer: Answer, namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    async with (
        a_hook(answer) as hook,
        running(a_worker(namespace, tmp_path, hook)) as worker,
    ):
        assert worker.process
        memory = psutil.Process(worker.process.pid).memory_info

        async def delivered() -> bool:
            query = "WorkflowType='NoticeWorkflow' AND ExecutionStatus='Completed'"
            return (await client.count_workflows(query)).count >= expected

        expected = 1
        await submit(client)
        await eventually(delivered)
        before = memory().rss
        expected = 11
        await asyncio.gather(*(submit(client) for _ in range(10)))
        await eventually(delivered)
        assert memory().rss - before < 50_000_000


async def test_a_name_that_is_looked_up_for_ever_holds_up_nothing(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    script = PROCESSES / "nameless_worker.py"
    nameless = Worker(
        namespace.address, tmp_path, script, INVOICE_NOTIFY_URL="http://hook.invalid/hook"
    )
    async with running(nameless) as worker:
        invoice = await submit(client)

        async def looking_up() -> bool:
            return (tmp_path / "looking-up").exists()

        await eventually(looking_up)
        await pay(client, invoice)
        assert await worker.end() == 0


# Where a hook's worker is, or isn't.


async def test_a_notice_waits_for_a_worker_with_the_hook(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    async with a_hook(fail) as hook:
        async with running(
            Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url)
        ) as worker:
            invoice = await submit(client)

            async def posted() -> bool:
                return hook.events(invoice) == ["waiting"]

            await eventually(posted)
            assert await worker.end() == 0
        async with running(
            Worker(namespace.address, tmp_path)
        ) as worker:  # which was started without it
            await pay(client, invoice)
            assert await worker.end() == 0
        hook.answer = accept
        async with running(a_worker(namespace, tmp_path, hook)):

            async def delivered() -> bool:
                return {"waiting", "completed"} <= set(hook.events(invoice)[1:])

            await eventually(delivered, 30)


async def test_a_versioned_worker_posts_and_the_version_before_can_be_made_current(
    service: Service, tmp_path: Path
) -> None:
    client = await service.start()  # of its own: the one that is shared keeps no versions

    async def make_current(build_id: str) -> None:
        async def accepted() -> bool:
            request = SetWorkerDeploymentCurrentVersionRequest(
                namespace=client.namespace, deployment_name="invoices", build_id=build_id
            )
            try:
                await client.workflow_service.set_worker_deployment_current_version(request)
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

    async with a_hook(accept) as hook, running(a_version("2", hook.url)):
        await make_current("2")
        invoice = await submit(client)

        async def posted() -> bool:
            return hook.events(invoice) == ["waiting"]

        await eventually(posted)
        async with running(a_version("1")):  # as before notices had a task queue of their own
            await make_current("1")
            await pay(client, invoice)


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
    async with running(
        Worker(address, tmp_path_factory.mktemp("data"), INVOICE_NOTIFY_URL=hook.url)
    ):
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
    invoice = await submit(client)
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


# A run that is reset.


async def reset(client: Client, invoice: Invoice, task: int) -> str:
    """To the end of its workflow task of that number, counted from 0; returns the new run's id."""
    handle = client.get_workflow_handle(workflow_id(invoice.id))
    run_id = (await handle.describe()).run_id
    completed = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    ends = [
        event.event_id
        async for event in handle.fetch_history_events()
        if event.event_type == completed
    ]
    answer = await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=run_id),
            workflow_task_finish_event_id=ends[task],
            request_id=uuid4().hex,
            reason="a test",
        )
    )
    return answer.run_id


async def test_a_run_that_is_reset_goes_on_and_sends_its_notices_again(
    client: Client, hook: Hook
) -> None:
    invoice = await submit(client)
    run_id = (await client.get_workflow_handle(workflow_id(invoice.id)).describe()).run_id
    await pay(client, invoice)
    notice = client.get_workflow_handle(f"notice-{run_id}-completed")
    for task in (-1, 0, -1, 0):  # each is a reset of the one before
        assert await notice.result() == "DELIVERED"
        run_id = await reset(client, invoice, task)
        run = client.get_workflow_handle(workflow_id(invoice.id), run_id=run_id)
        async with asyncio.timeout(20):
            assert await run.result() == "COMPLETED"
    assert await notice.result() == "DELIVERED"
    assert f"{run_id}/completed" in [post["notice_id"] for post in hook.posts]


async def test_a_reset_while_a_notice_is_being_delivered_leaves_it_alone(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    async with a_hook(fail) as hook, running(a_worker(namespace, tmp_path, hook)):
        invoice = await submit(client)
        await pay(client, invoice)
        run_id = await reset(client, invoice, 0)
        run = client.get_workflow_handle(workflow_id(invoice.id), run_id=run_id)
        async with asyncio.timeout(20):
            assert await run.result() == "COMPLETED"


# A cancellation that arrives while the end's notice is handed over.


class Held:
    """Holds the workflow task in which an invoice ends, until the end was to be cancelled."""

    def __init__(self, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        make_notice = notices.make_notice

        def held(event: Any, *arguments: Any) -> RawValue:
            if event == end:
                self.reached.set()
                assert self.release.wait(1.5), "within the 2 s of a workflow task"
            return make_notice(event, *arguments)

        monkeypatch.setattr(reports, "make_notice", held)


async def cancelled_at_its_end(
    client: Client, end: str, monkeypatch: pytest.MonkeyPatch, cached: int
) -> WorkflowHandle[Any, Any]:
    """A run that is cancelled while its last notice is handed over, after it has closed."""
    held = Held(end, monkeypatch)
    timeout = {"approval_timeout_days": 1 / 86400} if end == "timed_out" else {}
    invoice = Invoice.model_validate(an_invoice(**timeout))
    handle = client.get_workflow_handle(workflow_id(invoice.id))
    async with temporalio.worker.Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[InvoiceWorkflow, NoticeWorkflow],
        activities=[activities.payments_made, activities.process_payment],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=cached,
    ):
        await InvoiceClient(client).submit(invoice)
        if end != "timed_out":
            await handle.signal("reject_invoice" if end == "rejected" else "approve_invoice")
        assert await asyncio.to_thread(held.reached.wait, 20)
        await handle.cancel()
        held.release.set()
        with suppress(WorkflowFailureError):
            async with asyncio.timeout(20):
                await handle.result()
    return handle


@pytest.fixture
def noticed(tmp_path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activities in this process, which answer that notices are sent."""
    gateway = SimulatedGateway(tmp_path)
    monkeypatch.setattr(activities, "open_payments", lambda: (gateway, ledger))
    monkeypatch.setenv("INVOICE_NOTIFY_URL", "http://127.0.0.1:9/")


ENDS = {
    "completed": WorkflowExecutionStatus.COMPLETED,
    "rejected": WorkflowExecutionStatus.COMPLETED,
    "timed_out": WorkflowExecutionStatus.COMPLETED,
    "failed": WorkflowExecutionStatus.FAILED,
}


@pytest.mark.usefixtures("noticed")
@pytest.mark.parametrize("cached", [0, 100])
@pytest.mark.parametrize("end", ENDS)
async def test_a_cancellation_that_comes_after_the_end_does_not_change_it(
    end: str,
    cached: int,
    namespace: Namespace,
    tmp_path: Path,
    ledger: SQLiteLedger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if end == "failed":
        gateway = SimulatedGateway(tmp_path, Decimal(1))
        monkeypatch.setattr(activities, "open_payments", lambda: (gateway, ledger))
    client = await namespace.connect()
    handle = await cancelled_at_its_end(client, end, monkeypatch, cached)
    described = await handle.describe()
    assert described.status == ENDS[end]
    assert (await described.memo())["state"] == end
    await client.get_workflow_handle(f"notice-{described.run_id}-{end}").describe()  # was started
    assert "evict" not in caplog.text
    history = await handle.fetch_history()
    await Replayer(
        workflows=[InvoiceWorkflow], workflow_runner=UnsandboxedWorkflowRunner()
    ).replay_workflow(history)


@pytest.mark.usefixtures("noticed")
async def test_a_cancelled_run_that_leaves_the_memory_hands_over_its_notice(
    namespace: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    client = await namespace.connect()
    async with temporalio.worker.Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[InvoiceWorkflow, NoticeWorkflow],
        activities=[activities.payments_made],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=0,
    ):
        invoice = await submit(client)
        handle = client.get_workflow_handle(workflow_id(invoice.id))

        async def waits() -> bool:
            return (await InvoiceClient(client).get_status(invoice.id)).state == "waiting"

        await eventually(waits)
        await handle.cancel()
        with suppress(WorkflowFailureError):
            async with asyncio.timeout(20):
                await handle.result()
    described = await handle.describe()
    assert described.status == WorkflowExecutionStatus.CANCELED
    await client.get_workflow_handle(f"notice-{described.run_id}-cancelled").describe()
    assert "evict" not in caplog.text


async def hand_over_notices_as_before(report: RunReport) -> None:
    if report._notices:
        await asyncio.gather(*report._notices, return_exceptions=True)


@pytest.mark.usefixtures("noticed")
@pytest.mark.parametrize("end", ["completed", "rejected", "timed_out"])
async def test_a_run_whose_end_was_cancelled_before_this_was_seen_to_replays(
    end: str, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await namespace.connect()
    with monkeypatch.context() as before:
        before.setattr(RunReport, "hand_over_notices", hand_over_notices_as_before)
        handle = await cancelled_at_its_end(client, end, before, cached=100)
    assert (await handle.describe()).status == WorkflowExecutionStatus.CANCELED
    await Replayer(
        workflows=[InvoiceWorkflow], workflow_runner=UnsandboxedWorkflowRunner()
    ).replay_workflow(await handle.fetch_history())
