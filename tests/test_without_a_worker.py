"""While no worker runs: quick answers, decisions that are kept, and the deadline that passes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import ERAS
from invoice_client import InvoiceClient
from invoices.invoice import Invoice, workflow_id
from invoices.refusals import InvoiceError
from invoices.status import DecisionDetails
from raw_client import RawClient
from support import Namespace, Refused, Tools, Worker, an_invoice, eventually, mcp, paid
from workflow import TASK_QUEUE


@pytest.fixture(scope="module")
async def idle(new_namespace: Callable[[], str]) -> Namespace:
    """A namespace for which no worker ever runs."""
    return Namespace(new_namespace())


@pytest.fixture(scope="module", params=ERAS)
async def idle_tools(request: pytest.FixtureRequest, idle: Namespace) -> AsyncIterator[Tools]:
    async with mcp(idle.address, request.param) as host:
        yield Tools(host)


@pytest.mark.parametrize("era", ERAS)
async def test_first_call_of_a_process_is_answered_within_4_s(era: str, idle: Namespace) -> None:
    async with RawClient(idle.address, era) as server:
        await server.request("tools/list")
        started = time.monotonic()
        answer = await server.call("process_invoice", invoice_data=an_invoice())
        assert time.monotonic() - started < 4
    assert answer["structuredContent"]["worker_answers"] is False


async def test_approval_after_a_question_in_two_calls_is_answered_within_4_s(
    idle: Namespace,
) -> None:
    invoice = an_invoice()
    capabilities: dict[str, Any] = {"elicitation": {"form": {}}}
    async with RawClient(idle.address, "2026-07-28", capabilities=capabilities) as server:
        await server.call("process_invoice", invoice_data=invoice)
        asked = await server.call("approve_invoice", invoice_id=invoice["id"])
        started = time.monotonic()
        answer = await server.request(
            "tools/call",
            name="approve_invoice",
            arguments={"invoice_id": invoice["id"]},
            inputResponses={"approve": {"action": "accept", "content": {"approve": True}}},
            requestState=asked["requestState"],
        )
        assert time.monotonic() - started < 4
    assert answer["result"]["structuredContent"]["outcome"] == "decision_kept"


@pytest.mark.parametrize("decide", ["approve_invoice", "reject_invoice"])
async def test_structured_content_says_that_the_decision_is_kept(
    decide: str, idle_tools: Tools
) -> None:
    invoice = an_invoice()
    await idle_tools("process_invoice", invoice_data=invoice)
    result = await idle_tools.client.call_tool(decide, {"invoice_id": invoice["id"]})
    content: dict[str, Any] = result.structured_content  # type: ignore[assignment]
    assert (content["state"], content["outcome"]) == ("waiting", "decision_kept")
    assert "takes effect when a worker runs" in content["message"]


@pytest.mark.parametrize("verb", ["approve", "reject"])
async def test_a_decision_after_the_deadline_is_refused(verb: str, idle_tools: Tools) -> None:
    invoice = an_invoice(approval_timeout_days=1 / 86400)
    await idle_tools("process_invoice", invoice_data=invoice)
    text = await idle_tools("get_invoice_status", invoice_id=invoice["id"])
    assert "has passed: it can't be approved any more" in text
    with pytest.raises(Refused, match=r"deadline, 20.* UTC, has passed.*it times out"):
        await idle_tools(f"{verb}_invoice", invoice_id=invoice["id"])


async def test_a_total_is_checked_against_the_content_and_not_the_memo(
    idle: Namespace, idle_tools: Tools
) -> None:
    invoice, cheap = an_invoice(), an_invoice(lines=[{"item": "Pen", "amount": "1.00"}])
    client = await idle.connect()
    other = await InvoiceClient(client).submit(Invoice.model_validate(cheap))
    memo = await (await client.get_workflow_handle(other.workflow_id).describe()).memo()
    await client.start_workflow(
        "InvoiceWorkflow", invoice, id=workflow_id(invoice["id"]), task_queue=TASK_QUEUE, memo=memo
    )
    with pytest.raises(Refused, match=r"is for \$7,000\.00, not \$1\.00\. Nothing was approved"):
        await idle_tools("approve_invoice", invoice_id=invoice["id"], total="1.00")


async def past_deadline(client: InvoiceClient, invoice: Invoice) -> None:
    async def look() -> bool:
        return (await client.get_status(invoice.id)).is_past_deadline

    await eventually(look, 40)


async def test_only_what_was_sent_before_the_deadline_counts_after_it(
    namespace: Namespace, tmp_path: Path
) -> None:
    temporal = await namespace.connect()
    client = InvoiceClient(temporal)
    seconds = timedelta(seconds=10) / timedelta(days=1)
    in_time, bare, late, forged = (
        Invoice.model_validate(an_invoice(approval_timeout_days=seconds)) for _ in range(4)
    )
    submitted = await asyncio.gather(
        *(client.submit(invoice) for invoice in (in_time, bare, late, forged))
    )
    kept = await client.decide(in_time.id, approve=True)
    assert kept.outcome == "decision_kept"
    await asyncio.gather(*(past_deadline(client, one) for one in (in_time, bare, late, forged)))
    with pytest.raises(InvoiceError, match="Unless somebody decided before"):
        await client.decide(in_time.id, approve=True)
    await temporal.get_workflow_handle(workflow_id(bare.id)).signal("approve_invoice")
    for invoice, sent_at in (
        (late, datetime.now(UTC)),
        (forged, submitted[3].submitted_at - timedelta(days=1)),
    ):
        details = DecisionDetails(sent_at=sent_at).model_dump(mode="json")
        handle = temporal.get_workflow_handle(workflow_id(invoice.id))
        await handle.signal("approve_invoice", details)

    worker = await Worker(namespace.address, tmp_path).start()
    results = [
        await temporal.get_workflow_handle(workflow_id(invoice.id)).result()
        for invoice in (in_time, bare, late, forged)
    ]
    assert results == ["COMPLETED", "REJECTED", "REJECTED", "REJECTED"]
    assert (await client.get_status(bare.id)).state == "timed_out"
    assert [len(paid(tmp_path, one.model_dump())) for one in (in_time, bare, late, forged)] == [
        *(2, 0, 0, 0)
    ]
    worker.kill()


async def test_a_decision_on_an_invoice_being_paid_is_told_what_was_noted(
    namespace: Namespace, tmp_path: Path
) -> None:
    worker = await Worker(namespace.address, tmp_path).start()
    invoice = an_invoice(payment_interval_seconds=60)
    async with mcp(namespace.address) as host:
        tools = Tools(host)
        await tools("process_invoice", invoice_data=invoice)
        await tools("approve_invoice", invoice_id=invoice["id"])
        await tools.until(invoice, "paying")
        worker.kill()
        text = await tools("approve_invoice", invoice_id=invoice["id"])
        assert "It was approved already, and that decision stands" in text
        with pytest.raises(Refused, match="can't be rejected now, status: Processing payments"):
            await tools("reject_invoice", invoice_id=invoice["id"])
