"""Whatever is killed while invoices are paid: nothing is lost and nothing is paid twice."""

import asyncio
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import Client

from invoice_client import InvoiceClient
from invoices.invoice import Invoice, workflow_id
from raw_client import RawClient
from stripe_stand_in import Fault, FaultKind, Step, StripeStandIn
from support import (
    PROCESSES,
    ROOT,
    Namespace,
    Service,
    Worker,
    an_invoice,
    connect,
    eventually,
    paid,
    tools_in_memory,
)


async def approved(client: Client, **fields: Any) -> Invoice:
    invoice = Invoice.model_validate(an_invoice(**fields))
    await InvoiceClient(client).submit(invoice)
    await InvoiceClient(client).decide(invoice.id, approve=True)
    return invoice


async def ended(client: Client, invoice: Invoice, *states: str, bound: float = 20) -> str:
    """The status text, once the invoice is in one of `states`."""

    async def look_for() -> str | None:
        status = await InvoiceClient(client).get_status(invoice.id)
        return status.to_text() if status.state in states else None

    return await eventually(look_for, bound)


async def exists(path: Path) -> None:
    async def look_for() -> bool:
        return path.exists()

    await eventually(look_for)


@pytest.mark.slow  # the payment is repeated after its 30 s
async def test_kill_between_commit_and_completion_pays_once(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    crashing = await Worker(namespace.address, tmp_path, PROCESSES / "crashing_worker.py").start()
    invoice = await approved(client)
    await exists(tmp_path / "crashed")
    assert crashing.process
    await asyncio.to_thread(crashing.process.wait, 20)
    assert paid(tmp_path, invoice.model_dump()) == [f"invoice-{invoice.id}/line-1"]
    worker = await Worker(namespace.address, tmp_path).start()
    await ended(client, invoice, "completed", bound=60)
    assert len(paid(tmp_path, invoice.model_dump())) == 2
    worker.kill()


@pytest.mark.slow  # the killed payment has ended only after its 30 s
async def test_a_payment_of_a_killed_worker_is_told_by_the_run_that_was_cancelled(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    crashing = await Worker(namespace.address, tmp_path, PROCESSES / "crashing_worker.py").start()
    invoice = await approved(client)
    await exists(tmp_path / "crashed")
    await client.get_workflow_handle(workflow_id(invoice.id)).cancel()
    worker = await Worker(namespace.address, tmp_path).start()
    text = await ended(client, invoice, "cancelled", "completed", bound=60)
    assert "status: Cancelled. Paid: 1 of 2 lines, $5,000.00 of $7,000.00." in text
    assert paid(tmp_path, invoice.model_dump()) == [f"invoice-{invoice.id}/line-1"]
    worker.kill()
    crashing.kill()


@pytest.mark.slow
async def test_kill_of_the_service_between_payments_loses_none(
    service: Service, tmp_path: Path
) -> None:
    client = await service.start()
    worker = await Worker(service.address, tmp_path).start()
    lines = [{"item": f"Item {n}", "amount": "1.00"} for n in range(5)]
    invoices = [await approved(client, lines=lines, payment_interval_seconds=0.5) for _ in range(5)]

    async def some_paid() -> bool:
        return any(paid(tmp_path, invoice.model_dump()) for invoice in invoices)

    await eventually(some_paid)
    service.kill()
    await service.start()
    client = await connect(service.address)
    for invoice in invoices:
        await ended(client, invoice, "completed", bound=90)
        assert len(paid(tmp_path, invoice.model_dump())) == 5
    worker.kill()


async def test_kill_of_the_mcp_server_within_a_call_loses_nothing(
    address: str, worker: Worker, client: Client
) -> None:
    invoice = an_invoice()
    server = RawClient(address)
    await server.start()
    call = asyncio.create_task(server.call("process_invoice", invoice_data=invoice))

    async def started() -> bool:
        count = await client.count_workflows(f"WorkflowId='invoice-{invoice['id']}'")
        return count.count == 1

    await eventually(started)
    await server.kill()
    await asyncio.gather(call, return_exceptions=True)
    async with tools_in_memory(address) as tools:
        assert "nothing was started" in await tools("process_invoice", invoice_data=invoice)
        await tools("approve_invoice", invoice_id=invoice["id"])
        await tools.until(invoice, "completed")
    assert len(paid(worker.data, invoice)) == 2


@pytest.fixture
def stand_in() -> Iterator[StripeStandIn]:
    with StripeStandIn() as stand_in:
        yield stand_in


def stripe_worker(namespace: Namespace, data: Path, stand_in: StripeStandIn, **env: str) -> Worker:
    settings = {
        "PAYMENT_GATEWAY": "stripe",
        "STRIPE_API_KEY": "sk_test_ok",
        "STRIPE_API_BASE": stand_in.url,
    }
    return Worker(namespace.address, data, ROOT / "worker.py", (), **{**settings, **env})


async def charged_by_stripe(client: Client, **fields: Any) -> dict[str, Any]:
    """An invoice that is being paid."""
    terms = {"customer": "cus_A", "payment_method": "pm_visa"}
    invoice = Invoice.model_validate(an_invoice(**terms, **fields))
    handle = await client.start_workflow(
        "InvoiceWorkflow",
        invoice.model_dump(mode="json"),
        id=workflow_id(invoice.id),
        task_queue="invoice-task-queue",
    )
    await handle.signal("approve_invoice")
    return invoice.model_dump(mode="json")


@pytest.mark.slow  # a killed payment is repeated after its 30 s
async def test_kill_of_the_worker_within_a_call_charges_once(
    namespace: Namespace, stand_in: StripeStandIn, tmp_path: Path
) -> None:
    """Whether Stripe still knows the keys of the killed worker, or has forgotten them in a day."""
    client = await namespace.connect()
    worker = await stripe_worker(namespace, tmp_path, stand_in).start()
    kinds: list[FaultKind] = ["hold before", "hold after"]
    steps: list[Step] = ["create", "confirm"]
    calls = list(product(steps, kinds, (False, True)))
    faults, invoices, forgotten = [], [], []
    for step, kind, is_forgotten in calls:
        invoice_id = f"INV-{uuid4().hex[:12]}"
        faults.append(stand_in.lay(Fault(step, kind, invoice_id)))
        invoices.append(await charged_by_stripe(client, id=invoice_id))
        if is_forgotten:
            forgotten.append(invoice_id)
    for fault in faults:
        assert await asyncio.to_thread(fault.reached.wait, 20)
    worker.kill()
    for invoice_id in forgotten:
        stand_in.forget(invoice_id)
    worker = await stripe_worker(namespace, tmp_path, stand_in).start()
    async with asyncio.timeout(90):
        for invoice in invoices:
            result = await client.get_workflow_handle(workflow_id(invoice["id"])).result()
            assert result == "COMPLETED"
    for fault in faults:  # what the killed worker had asked for arrives only now
        fault.release.set()
    for invoice in invoices:
        keys = [f"invoice-{invoice['id']}/line-{n}" for n in (1, 2)]
        assert stand_in.charged(invoice["id"]) == keys
    worker.kill()
