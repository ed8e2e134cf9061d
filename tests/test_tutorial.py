"""The walk that a reader of the tutorial makes."""

from support import Tools, Worker, an_invoice, paid


async def test_walk_of_an_approved_invoice(tools: Tools, worker: Worker) -> None:
    invoice = an_invoice(payment_interval_seconds=2)
    name = invoice["id"]
    started = await tools("process_invoice", invoice_data=invoice)
    assert started.startswith(f"Started processing invoice {name}. Workflow ID: invoice-{name}")
    status = await tools("get_invoice_status", invoice_id=name)
    assert status.startswith(f"Invoice {name} status: Awaiting approval")
    approved = await tools("approve_invoice", invoice_id=name)
    assert approved.startswith(f"Sent approval signal for invoice {name}")
    await tools.until(invoice, "completed")
    status = await tools("get_invoice_status", invoice_id=name)
    assert status.startswith(f"Invoice {name} status: Completed")
    assert paid(worker.data, invoice) == [f"invoice-{name}/line-1", f"invoice-{name}/line-2"]
