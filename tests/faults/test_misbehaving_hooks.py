"""A hook that hangs, never ends its answer or can't be looked up doesn't delay invoices."""

import asyncio
import gzip
import time
from functools import cache
from pathlib import Path

import psutil
import pytest

from hooks import Answer, a_hook, accept, hang, never_end
from support import PROCESSES, Desk, Namespace, Worker, eventually


@cache
def a_bomb() -> bytes:
    # Not when the file is imported, which every test process does.
    return gzip.compress(bytes(2**27), 1)


async def send_a_bomb(writer: asyncio.StreamWriter) -> None:
    bomb = await asyncio.to_thread(a_bomb)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
    writer.write(head.encode() + bomb)


async def test_payments_and_shutdown_do_not_wait_for_a_hook(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with a_hook(hang) as hook:
        async with Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url) as worker:
            invoice, *_ = await asyncio.gather(*(desk.submit() for _ in range(25)))

            await eventually(lambda: len(hook.posts) >= 10)
            await desk.pay(invoice)
            assert hook.ended == 0, "a post had to be given up first"
            start = time.monotonic()
            assert await worker.end() == 0
            assert time.monotonic() - start < 35
            assert "Traceback" not in worker.log.read_text()
        # The next worker posts the notices that were cut off.
        hook.answer = accept
        hook.posts.clear()
        async with Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url):
            await eventually(lambda: {"waiting", "completed"} <= set(hook.events(invoice)), 40)


@pytest.mark.parametrize("answer", [never_end, send_a_bomb])
async def test_an_endless_answer_uses_no_memory(
    answer: Answer, namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with (
        a_hook(answer) as hook,
        Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=hook.url) as worker,
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


async def test_an_endless_name_lookup_delays_nothing(namespace: Namespace, tmp_path: Path) -> None:
    desk = Desk(await namespace.connect())
    script = PROCESSES / "nameless_worker.py"
    nameless = Worker(
        namespace.address, tmp_path, script, INVOICE_NOTIFY_URL="http://hook.invalid/hook"
    )
    async with nameless as worker:
        invoice = await desk.submit()

        await eventually((tmp_path / "looking-up").exists)
        await desk.pay(invoice)
        assert await worker.end() == 0
