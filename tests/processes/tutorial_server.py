"""The tutorial's MCP server, written from its contract, without any of our code."""

from typing import Any

from fastmcp import FastMCP
from temporalio.client import Client
from temporalio.envconfig import ClientConfig

mcp = FastMCP("invoice-processor")


async def connected() -> Client:
    return await Client.connect(**ClientConfig.load_client_connect_config())


@mcp.tool
async def process_invoice(invoice_data: dict[str, Any]) -> str:
    """Start the workflow of an invoice."""
    name = invoice_data.get("id", "unknown")
    await (await connected()).start_workflow(
        "InvoiceWorkflow", invoice_data, id=f"invoice-{name}", task_queue="invoice-task-queue"
    )
    return f"Started processing invoice {name}. Workflow ID: invoice-{name}"


@mcp.tool
async def approve_invoice(invoice_id: str) -> str:
    """Approve an invoice."""
    handle = (await connected()).get_workflow_handle(f"invoice-{invoice_id}")
    await handle.signal("approve_invoice")
    return f"Sent approval signal for invoice {invoice_id}"


@mcp.tool
async def reject_invoice(invoice_id: str) -> str:
    """Reject an invoice."""
    handle = (await connected()).get_workflow_handle(f"invoice-{invoice_id}")
    await handle.signal("reject_invoice")
    return f"Sent rejection signal for invoice {invoice_id}"


@mcp.tool
async def get_invoice_status(invoice_id: str) -> str:
    """Get the status of an invoice."""
    handle = (await connected()).get_workflow_handle(f"invoice-{invoice_id}")
    return f"Invoice {invoice_id} status: {await handle.query('get_status')}"


if __name__ == "__main__":
    mcp.run(transport="stdio", show_banner=False)
