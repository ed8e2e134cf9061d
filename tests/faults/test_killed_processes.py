"""Whatever is killed while invoices are paid: nothing is lost and nothing is paid twice."""

import asyncio
from itertools import product
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from temporalio.client import Client

import activities
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from raw_client import RawClient
from stripe_stand_in import TERMS, Fault, FaultKind, Step, StripeStandIn
from support import (
    PROCESSES,
    Desk,
    Namespace,
    Service,
    Worker,
    an_invoice,
    connect,
    eventually,
    paid,
    payments_only,
    states,
    tools_in_memory,
)


async def test_kill_between_commit_and_completion_pays_once_and_goes_on_soon(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path, PROCESSES / "crashing_worker.py") as crashing:
        invoice = await desk.submit_and_approve()
        await eventually((tmp_path / "crashed").exists)
        assert crashing.process
        await asyncio.to_thread(crashing.process.wait, 20)
        assert paid(tmp_path, invoice) == [f"invoice-{invoice.id}/line-1"]
        async with Worker(namespace.address, tmp_path):
            await desk.until(invoice, "completed", bound=60)
            assert len(paid(tmp_path, invoice)) == 2
    events = (await desk.handle(invoice).fetch_history()).events
    first = next(e for e in events if e.HasField("activity_task_scheduled_event_attributes"))
    [again] = [e for e in events if e.activity_task_started_event_attributes.attempt == 2]
    seconds = (again.event_time.ToDatetime() - first.event_time.ToDatetime()).total_seconds()
    assert seconds < 15  # after 10 s without a heartbeat and the pause of 1 s: not after 30 s


async def test_a_payment_of_a_frozen_worker_is_made_by_another_and_once(
    namespace: Namespace, tmp_path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    payments = (SimulatedGateway(tmp_path), ledger)
    monkeypatch.setattr(activities, "open_payments", lambda: payments)
    desk = Desk(await namespace.connect())
    script = PROCESSES / "slow_worker.py"
    async with Worker(namespace.address, tmp_path, script, HEARTBEAT_TIMEOUT="3") as worker:
        assert worker.process
        process = psutil.Process(worker.process.pid)
        invoice = await desk.submit_and_approve(lines=[{"item": "Hosting", "amount": "19.99"}])
        await eventually((tmp_path / "paying").exists)
        assert states(ledger) == ["begun"]
        process.suspend()
        try:
            async with payments_only(desk.temporal):
                await eventually(lambda: states(ledger) == ["paid"])
        finally:
            (tmp_path / "go-on").touch()
            process.resume()
        await desk.until(invoice, "completed")
        assert states(ledger) == ["paid"]
        assert "Traceback" not in worker.log.read_text()


async def test_a_cancelled_run_reports_the_payment_of_a_killed_worker(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path, PROCESSES / "crashing_worker.py"):
        invoice = await desk.submit_and_approve()
        await eventually((tmp_path / "crashed").exists)
        await desk.handle(invoice).cancel()
        async with Worker(namespace.address, tmp_path):
            text = (await desk.until(invoice, "cancelled", "completed", bound=60)).to_text()
            assert "status: Cancelled. Paid: 1 of 2 lines, $5,000.00 of $7,000.00." in text
            assert paid(tmp_path, invoice) == [f"invoice-{invoice.id}/line-1"]


async def test_kill_of_the_service_between_payments_loses_none(
    service: Service, tmp_path: Path
) -> None:
    desk = Desk(await service.start())
    async with Worker(service.address, tmp_path):
        lines = [{"item": f"Item {n}", "amount": "1.00"} for n in range(3)]
        invoices = [
            await desk.submit_and_approve(lines=lines, payment_interval_seconds=0.5)
            for _ in range(3)
        ]

        await eventually(lambda: any(paid(tmp_path, invoice) for invoice in invoices))
        service.kill()
        await service.start()
        desk = Desk(await connect(service.address))
        for invoice in invoices:
            await desk.until(invoice, "completed", bound=90)
            assert len(paid(tmp_path, invoice)) == 3


async def test_kill_of_the_mcp_server_within_a_call_loses_nothing(
    address: str, worker: Worker, client: Client
) -> None:
    invoice = an_invoice()
    async with RawClient(address) as server:
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


async def test_kill_of_the_worker_within_a_call_charges_once(
    namespace: Namespace, stand_in: StripeStandIn, tmp_path: Path
) -> None:
    """Either Stripe still knows the killed worker's keys, or it has forgotten them after a day."""
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path, **stand_in.settings):
        kinds: list[FaultKind] = ["hold before", "hold after"]
        steps: list[Step] = ["create", "confirm"]
        calls = list(product(steps, kinds, (False, True)))
        faults, invoices, forgotten = [], [], []
        for step, kind, is_forgotten in calls:
            invoice_id = f"INV-{uuid4().hex[:12]}"
            faults.append(stand_in.lay(Fault(step, kind, invoice_id)))
            invoices.append(await desk.submit_and_approve(id=invoice_id, **TERMS))
            if is_forgotten:
                forgotten.append(invoice_id)
        for fault in faults:
            assert await asyncio.to_thread(fault.reached.wait, 20)
    for invoice_id in forgotten:
        stand_in.forget(invoice_id)
    async with Worker(namespace.address, tmp_path, **stand_in.settings):
        async with asyncio.timeout(90):
            for invoice in invoices:
                result = await desk.handle(invoice).result()
                assert result == "COMPLETED"
        for fault in faults:  # what the killed worker had asked for arrives only now
            fault.release.set()
        for invoice in invoices:
            keys = [f"invoice-{invoice.id}/line-{n}" for n in (1, 2)]
            assert stand_in.charged(invoice.id) == keys
