"""The tutorial's worker without its mistakes, written from its contract, without any of our code.

It has no memo, signal arguments, `get_progress` or ledger.
"""

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.worker import Worker


@activity.defn
async def process_payment(line_item: dict[str, Any]) -> str:
    item, amount = line_item.get("item", "Unknown"), line_item.get("amount", 0.0)
    activity.logger.info(f"Processing payment: {item} - ${amount}")
    return f"Processed payment for {item}: ${amount}"


@workflow.defn
class InvoiceWorkflow:
    def __init__(self) -> None:
        self.approved: bool | None = None
        self.status = "Processing"

    @workflow.run
    async def run(self, invoice: dict[str, Any]) -> str:
        self.status = "Awaiting approval"
        try:
            await workflow.wait_condition(
                lambda: self.approved is not None, timeout=timedelta(days=5)
            )
        except TimeoutError:
            self.status = "Approval timeout - invoice rejected"
            return "REJECTED"
        if not self.approved:
            self.status = "Rejected by approver"
            return "REJECTED"
        self.status = "Processing payments"
        for line in invoice["lines"]:
            await workflow.sleep(0.1)
            await workflow.execute_activity(
                process_payment, line, start_to_close_timeout=timedelta(seconds=30)
            )
        self.status = "Completed"
        return "COMPLETED"

    @workflow.signal
    async def approve_invoice(self) -> None:
        self.approved = True

    @workflow.signal
    async def reject_invoice(self) -> None:
        self.approved = False

    @workflow.query
    def get_status(self) -> str:
        return self.status


async def main() -> None:
    client = await Client.connect(**ClientConfig.load_client_connect_config())
    worker = Worker(
        client,
        task_queue="invoice-task-queue",
        workflows=[InvoiceWorkflow],
        activities=[process_payment],
    )
    print("Worker started. Listening for invoice workflows...", flush=True)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
