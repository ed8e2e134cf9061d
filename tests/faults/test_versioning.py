"""Workers with Temporal's versioning."""

import asyncio
import shlex
from pathlib import Path

import pytest

from invoice_client import InvoiceClient
from invoices.invoice import Invoice, workflow_id
from support import (
    Service,
    Worker,
    an_invoice,
    environment,
    eventually,
)
from temporal_service import dev_server


@pytest.mark.slow
async def test_a_worker_that_versioning_gives_no_work_says_so_with_the_command(
    service: Service, tmp_path: Path
) -> None:
    client = await service.start()
    executable = str(await dev_server.temporal_executable())

    async def do_as_told(worker: Worker) -> bool:
        """Runs the command in a worker's log; false as long as Temporal refuses."""
        told = worker.log.read_text().partition("This worker gets no work: ")[2].splitlines()
        if not told:
            return False
        command = shlex.split(told[0].partition("temporal worker")[2])
        process = await asyncio.create_subprocess_exec(
            *(executable, "worker", *command),
            env=environment(service.address),
            stdin=asyncio.subprocess.DEVNULL,
        )
        return await process.wait() == 0

    version = {"TEMPORAL_DEPLOYMENT_NAME": "in voices", "TEMPORAL_WORKER_BUILD_ID": "2.0"}
    async with Worker(service.address, tmp_path, **version) as versioned:
        await eventually(lambda: do_as_told(versioned))
        invoice = Invoice.model_validate(an_invoice())
        invoices = InvoiceClient(client)
        await invoices.submit(invoice)
        handle = client.get_workflow_handle(workflow_id(invoice.id))
        assert await handle.query("get_status") == "Awaiting approval"
        assert await versioned.end() == 0

    async with Worker(service.address, tmp_path) as unversioned:
        await eventually(lambda: do_as_told(unversioned))
        await invoices.decide(invoice.id, approve=True)
        assert await handle.result() == "COMPLETED"
