"""Workers with Temporal's Worker Versioning."""

import asyncio
import shlex
from pathlib import Path

from temporalio.api.workflowservice.v1 import (
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.service import RPCError

from hooks import a_hook, accept
from invoice_client import InvoiceClient
from invoices.invoice import Invoice, workflow_id
from support import (
    Desk,
    Service,
    Worker,
    an_invoice,
    environment,
    eventually,
)
from temporal_service import dev_server


async def test_a_worker_without_work_because_of_versioning_names_the_command(
    service: Service, tmp_path: Path
) -> None:
    client = await service.start()
    executable = str(await dev_server.temporal_executable())

    async def do_as_told(worker: Worker) -> bool:
        """Runs the command from a worker's log. Returns False if Temporal refuses it."""
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


async def test_a_versioned_worker_posts_and_the_version_before_can_be_made_current(
    service: Service, tmp_path: Path
) -> None:
    desk = Desk(await service.start())  # the shared one can't do versioning

    async def make_current(build_id: str) -> None:
        async def accepted() -> bool:
            request = SetWorkerDeploymentCurrentVersionRequest(
                namespace=desk.temporal.namespace, deployment_name="invoices", build_id=build_id
            )
            try:
                await desk.temporal.workflow_service.set_worker_deployment_current_version(request)
            except RPCError:
                return False
            return True

        await eventually(accepted)  # once the service knows the version

    def a_version(build_id: str, hook_url: str = "") -> Worker:
        return Worker(
            service.address,
            tmp_path,
            INVOICE_NOTIFY_URL=hook_url,
            TEMPORAL_DEPLOYMENT_NAME="invoices",
            TEMPORAL_WORKER_BUILD_ID=build_id,
        )

    async with a_hook(accept) as hook, a_version("2", hook.url):
        await make_current("2")
        invoice = await desk.submit()

        await eventually(lambda: hook.events(invoice) == ["waiting"])
        async with a_version("1"):  # as before notices had a task queue of their own
            await make_current("1")
            await desk.pay(invoice)
