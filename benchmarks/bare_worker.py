"""A worker that runs only the tutorial's workflow.

It has no validation, ledger, memo or summaries, and doesn't pause between lines.
"""

import asyncio
import os
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

TASK_QUEUE = "bare-task-queue"


@activity.defn
async def process_payment(line_item: dict[str, Any]) -> str:
    return f"Processed payment for {line_item['item']}: ${line_item['amount']}"


@workflow.defn
class BareWorkflow:
    def __init__(self) -> None:
        self.approved: bool | None = None
        self.status = "Processing"

    @workflow.run
    async def run(self, invoice: dict[str, Any]) -> str:
        self.status = "Awaiting approval"
        await workflow.wait_condition(lambda: self.approved is not None, timeout=timedelta(days=5))
        if not self.approved:
            self.status = "Rejected by approver"
            return "REJECTED"
        self.status = "Processing payments"
        for line in invoice["lines"]:
            await workflow.execute_activity(
                process_payment, line, start_to_close_timeout=timedelta(seconds=30)
            )
        self.status = "Completed"
        return "COMPLETED"

    @workflow.signal
    def approve_invoice(self) -> None:
        self.approved = True

    @workflow.signal
    def reject_invoice(self) -> None:
        self.approved = False

    @workflow.query
    def get_status(self) -> str:
        return self.status


async def main() -> None:
    client = await Client.connect(os.environ["TEMPORAL_ADDRESS"])
    worker = Worker(
        client, task_queue=TASK_QUEUE, workflows=[BareWorkflow], activities=[process_payment]
    )
    async with worker:
        print("Worker started. Listening for invoice workflows...", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
