"""What an operator adds to a worker: the search attribute, notices to a web hook, metrics."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from temporalio.client import Client

from hooks import Hook, respond
from support import (
    Desk,
    Namespace,
    Tools,
    Worker,
    an_invoice,
    eventually,
    free_port,
    tools_in_memory,
)


@pytest.fixture(scope="module")
async def client(equipped: Namespace) -> Client:
    return await equipped.connect()


@pytest.fixture(scope="module")
async def metrics_address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
async def worker(
    equipped: Namespace,
    hook: Hook,
    metrics_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Worker]:
    async with Worker(
        equipped.address,
        tmp_path_factory.mktemp("data"),
        INVOICE_NOTIFY_URL=hook.url,
        INVOICE_METRICS_ADDRESS=metrics_address,
    ) as worker:
        yield worker


@pytest.fixture(scope="module")
async def tools(equipped: Namespace, worker: Worker) -> AsyncIterator[Tools]:
    async with tools_in_memory(equipped.address) as tools:
        yield tools


async def test_notices_are_sent_for_waiting_and_for_the_end(tools: Tools, hook: Hook) -> None:
    invoice = await tools.submit()
    [waiting] = await hook.until(invoice, "waiting")
    assert waiting["text"].startswith(f"Invoice {invoice['id']} waits for approval until 20")
    assert waiting["text"].endswith(": 2 lines, $7,000.00.")
    assert waiting["deadline"] == (await tools.status(invoice))["deadline"].replace("Z", "+00:00")
    await tools("approve_invoice", invoice_id=invoice["id"])
    _, completed = await hook.until(invoice, "waiting", "completed")
    assert completed["text"].startswith(f"Invoice {invoice['id']} is paid: 2 lines, $7,000.00")
    assert (completed["paid"], completed["currency"]) == ("7000.00", "USD")


async def test_a_reminder_comes_at_four_fifths_of_the_time(tools: Tools, hook: Hook) -> None:
    invoice = await tools.submit(approval_timeout_days=5 / 86400)
    posts = await hook.until(invoice, "waiting", "reminder", "timed_out")
    assert "still waits for approval until" in posts[1]["text"]


async def test_a_notice_that_fails_is_posted_again_with_its_id(tools: Tools, hook: Hook) -> None:
    hook.answer = respond(503)
    invoice = await tools.submit()
    first, second = await hook.until(invoice, "waiting", "waiting")
    assert first == second
    await tools("reject_invoice", invoice_id=invoice["id"])
    *_, rejected = await hook.until(invoice, "waiting", "waiting", "rejected")
    assert rejected["notice_id"] != first["notice_id"]


async def test_a_missing_hook_changes_nothing_and_its_address_is_not_shown(
    namespace: Namespace, tmp_path: Path
) -> None:
    gone = f"http://127.0.0.1:{free_port()}/secret-token"
    async with Worker(namespace.address, tmp_path, INVOICE_NOTIFY_URL=gone) as worker:
        client = await namespace.connect()
        desk = Desk(client)
        invoice = await desk.submit_and_approve()
        assert await desk.handle(invoice).result() == "COMPLETED"
        assert await worker.end() == 0
        assert "secret-token" not in worker.log.read_text()
        async for run in client.list_workflows("WorkflowType='NoticeWorkflow'"):
            history = (await client.get_workflow_handle(run.id).fetch_history()).to_json()
            assert "secret-token" not in history


async def test_states_are_search_attributes(tools: Tools, client: Client) -> None:
    waiting, rejected, paid = [await tools.submit() for _ in range(3)]
    await tools("reject_invoice", invoice_id=rejected["id"])
    await tools("approve_invoice", invoice_id=paid["id"])
    for invoice, state in ((waiting, "waiting"), (rejected, "rejected"), (paid, "completed")):
        query = f"InvoiceState = '{state}' AND WorkflowId = 'invoice-{invoice['id']}'"

        async def found(query: str = query) -> bool:
            return (await client.count_workflows(query)).count == 1

        await eventually(found)


async def test_a_run_without_the_attribute_is_listed_too(tools: Tools, client: Client) -> None:
    invoice = an_invoice()
    await Desk(client).start(invoice)

    async def listed() -> bool:
        return invoice["id"] in await tools("list_invoices", status="waiting")

    await eventually(listed)
    await tools("reject_invoice", invoice_id=invoice["id"])
    await tools.until(invoice, "rejected")


async def test_metrics_count_how_invoices_ended(
    tools: Tools, worker: Worker, metrics_address: str
) -> None:
    invoice = await tools.submit()
    await tools("reject_invoice", invoice_id=invoice["id"])
    await tools.until(invoice, "rejected")

    async def scraped() -> str | None:
        response = await asyncio.to_thread(urlopen, f"http://{metrics_address}/metrics", timeout=5)
        text: str = response.read().decode()
        ended = [line for line in text.splitlines() if line.startswith("invoices_ended")]
        return text if any('outcome="rejected"' in line for line in ended) else None

    assert "temporal_workflow_task_execution_latency" in await eventually(scraped)


async def test_prompts_are_offered(tools: Tools) -> None:
    prompts = {prompt.name: prompt.title for prompt in await tools.client.list_prompts()}
    assert prompts == {
        "what_waits": "What is waiting for me?",
        "submit_an_invoice": "Submit an invoice",
    }
    result = await tools.client.get_prompt("what_waits")
    assert "list_invoices" in result.messages[0].content.text  # type: ignore[union-attr]
