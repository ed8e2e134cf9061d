"""The tutorial's steps, with our programs, and with ours and the tutorial's mixed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastmcp import Client as McpClient

import invoice_server
from invoice_client import InvoiceClient
from support import (
    PROCESSES,
    Namespace,
    Refused,
    Service,
    Tools,
    Worker,
    an_invoice,
    eventually,
    mcp,
    paid,
)


async def test_an_approved_invoice_is_paid_and_completes(tools: Tools, worker: Worker) -> None:
    invoice = an_invoice(payment_interval_seconds=1)
    name = invoice["id"]
    text = await tools("process_invoice", invoice_data=invoice)
    assert text.startswith(f"Started processing invoice {name}. Workflow ID: invoice-{name}")
    text = await tools("get_invoice_status", invoice_id=name)
    assert text.startswith(f"Invoice {name} status: Awaiting approval")
    text = await tools("approve_invoice", invoice_id=name)
    assert text.startswith(f"Sent approval signal for invoice {name}")
    await tools.until(invoice, "completed")
    text = await tools("get_invoice_status", invoice_id=name)
    assert text.startswith(f"Invoice {name} status: Completed")
    assert paid(worker.data, invoice) == [f"invoice-{name}/line-1", f"invoice-{name}/line-2"]


async def test_a_rejected_invoice_is_not_paid(tools: Tools, worker: Worker) -> None:
    invoice = an_invoice()
    await tools("process_invoice", invoice_data=invoice)
    text = await tools("reject_invoice", invoice_id=invoice["id"])
    assert text.startswith(f"Sent rejection signal for invoice {invoice['id']}")
    await tools.until(invoice, "rejected")
    text = await tools("get_invoice_status", invoice_id=invoice["id"])
    assert text.startswith(f"Invoice {invoice['id']} status: Rejected by approver")
    assert not paid(worker.data, invoice)


async def test_an_invoice_past_its_deadline_is_not_paid(tools: Tools, worker: Worker) -> None:
    invoice = an_invoice(approval_timeout_days=1 / 86400)
    await tools("process_invoice", invoice_data=invoice)
    await tools.until(invoice, "timed_out")
    text = await tools("get_invoice_status", invoice_id=invoice["id"])
    assert text.startswith(f"Invoice {invoice['id']} status: Approval timeout - invoice rejected")
    with pytest.raises(Refused, match="Approval timeout - invoice rejected"):
        await tools("approve_invoice", invoice_id=invoice["id"])
    assert not paid(worker.data, invoice)


async def test_a_waiting_invoice_survives_the_end_of_every_process(
    service: Service, tmp_path: Path
) -> None:
    await service.start()
    invoice = an_invoice(id="INV-002")
    async with Worker(service.address, tmp_path), mcp(service.address) as client:
        await Tools(client)("process_invoice", invoice_data=invoice)
        await Tools(client).until(invoice, "waiting")
    service.kill()
    await service.start()
    async with Worker(service.address, tmp_path), mcp(service.address) as client:
        await Tools(client)("approve_invoice", invoice_id=invoice["id"])
        await Tools(client).until(invoice, "completed")
    assert len(paid(tmp_path, invoice)) == 2


@pytest.fixture(scope="module")
async def tutorial_server(address: str, worker: Worker) -> AsyncIterator[Tools]:
    """The tutorial's MCP server, with our worker."""
    async with mcp(address, script=PROCESSES / "tutorial_server.py") as client:
        yield Tools(client)


async def test_the_tutorials_server_works_with_our_worker(
    tutorial_server: Tools, worker: Worker
) -> None:
    invoice = an_invoice(lines=[{"item": "Hosting", "amount": 19.99}])
    await tutorial_server("process_invoice", invoice_data=invoice)
    await tutorial_server("approve_invoice", invoice_id=invoice["id"])
    completed = f"Invoice {invoice['id']} status: Completed"

    async def status() -> bool:
        return await tutorial_server("get_invoice_status", invoice_id=invoice["id"]) == completed

    assert await eventually(status)
    assert paid(worker.data, invoice) == [f"invoice-{invoice['id']}/line-1"]


async def test_our_tools_understand_what_the_tutorials_server_did(
    tutorial_server: Tools, tools_here: Tools
) -> None:
    invoice = an_invoice()
    await tutorial_server("process_invoice", invoice_data=invoice)
    assert "Already in process" in await tools_here("process_invoice", invoice_data=invoice)
    await tutorial_server("reject_invoice", invoice_id=invoice["id"])
    await tools_here.until(invoice, "rejected")
    text = await tools_here("get_invoice_status", invoice_id=invoice["id"])
    assert "Rejected by another client" in text


async def test_our_server_works_with_the_tutorials_worker(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_server, "shared_client", InvoiceClient(await namespace.connect()))
    worker = Worker(namespace.address, tmp_path, PROCESSES / "tutorial_worker.py")
    async with worker, McpClient(invoice_server.mcp) as client:
        tools = Tools(client)
        paid, rejected = an_invoice(), an_invoice()
        for invoice in (paid, rejected):
            text = await tools("process_invoice", invoice_data=invoice)
            assert text.startswith(f"Started processing invoice {invoice['id']}")
            assert (await tools.status(invoice))["status"] == "Awaiting approval"
        text = await tools("approve_invoice", invoice_id=paid["id"])
        assert text.startswith(f"Sent approval signal for invoice {paid['id']}")
        assert await tools("reject_invoice", invoice_id=rejected["id"])
        assert (await tools.until(paid, "completed"))["status"] == "Completed"
        assert (await tools.until(rejected, "rejected"))["status"] == "Rejected by approver"
        with pytest.raises(Refused, match="already paid"):
            await tools("process_invoice", invoice_data=paid)
