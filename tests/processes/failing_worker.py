"""A worker with a bug in its workflow, so that each workflow task fails."""

import asyncio

from temporalio import workflow
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.envconfig import ClientConfig
from temporalio.worker import Worker


@workflow.defn(name="InvoiceWorkflow", sandboxed=False)
class InvoiceWorkflow:
    @workflow.run
    async def run(self, invoice: RawValue) -> str:
        raise KeyError("a mistake")


async def main() -> None:
    client = await Client.connect(**ClientConfig.load_client_connect_config())
    worker = Worker(client, task_queue="invoice-task-queue", workflows=[InvoiceWorkflow])
    print("Worker started. Listening for invoice workflows...", flush=True)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
