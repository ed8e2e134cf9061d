"""What the benchmarks share: a service with workers, calls, and the output as a table.

Import it before any other module of the project, because it adds their folders to the path.
"""

import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from temporalio.client import Client, WorkflowHandle

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import support  # noqa: E402
from raw_client import RawClient  # noqa: E402

OUR_WORKER = ROOT / "worker.py"
BARE_WORKER = HERE / "bare_worker.py"
OUR_SERVER = ROOT / "invoice_server.py"
EMPTY_SERVER = HERE / "empty_server.py"
TUTORIAL_WORKER = support.PROCESSES / "tutorial_worker.py"
TUTORIAL_SERVER = support.PROCESSES / "tutorial_server.py"


@asynccontextmanager
async def running(*scripts: Path) -> AsyncIterator[tuple[Client, list[support.Worker]]]:
    """Starts a new Temporal Service and a worker process for each script. Yields a client."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        service = support.Service(Path(folder))
        workers = [support.Worker(service.address, Path(folder), script) for script in scripts]
        try:
            client = await service.start()
            for worker in workers:
                await worker.start()
            yield client, workers
        finally:
            for worker in workers:
                worker.kill()
            service.kill()


def address(client: Client) -> str:
    return client.service_client.config.target_host


async def start(
    client: Client,
    invoice: dict[str, Any],
    workflow: str = "InvoiceWorkflow",
    task_queue: str = "invoice-task-queue",
) -> WorkflowHandle[Any, Any]:
    """Starts a workflow with a single call, as in the tutorial."""
    return await client.start_workflow(
        workflow, invoice, id=f"invoice-{invoice['id']}", task_queue=task_queue
    )


async def call_tool(server: RawClient, tool: str, **arguments: Any) -> None:
    result = await server.call(tool, **arguments)
    assert not result.get("isError"), result


def ms(seconds: Iterable[float]) -> float:
    """The median, in milliseconds."""
    return median(seconds) * 1000


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a Markdown table."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.2f}" if value < 10 else f"{value:,.1f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    print(f"\n| {' | '.join(header)} |")
    print(f"|:--|{'--:|' * (len(header) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(cell, row))} |", flush=True)
