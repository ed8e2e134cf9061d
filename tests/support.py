"""Starts what the tests run for real: Temporal Services, workers and MCP servers, as processes."""

import asyncio
import json
import os
import pkgutil
import random
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import cache
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload
from unittest.mock import patch
from uuid import uuid4

import pytest
import temporalio.worker
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle

from invoice_client import InvoiceClient
from invoices.answers import InvoiceStatus
from invoices.invoice import Invoice, workflow_id
from payments.ledger import SQLiteLedger
from startup import StartupError
from temporal_service import connection, dev_server
from temporal_service.connection import whoami
from temporal_service.payloads import json_payload
from workflow import TASK_QUEUE, InvoiceWorkflow

if TYPE_CHECKING:  # the import takes a second, and the unit tests don't need it
    from fastmcp import Client as McpClient

ROOT = Path(__file__).parent.parent
PROCESSES = ROOT / "tests" / "processes"
T = TypeVar("T")
ERAS = ["legacy", "2026-07-28"]
STARTED = "Worker started. Listening for invoice workflows..."


# Below the range from which systems assign ports themselves (Linux from 32768, others 49152). Each
# process of pytest-xdist has its own share of the ports, and uses them in random order.
_share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_shares = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_ports = list(range(20_000 + _share, 32_000, _shares))
random.shuffle(_ports)


def free_port() -> int:
    """A port on which nothing listens; no other call gets the same one."""
    while True:
        port = _ports.pop()
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


ANN, BOB, SUE = "ann@desk1", "bob@desk2", "sue@desk3"


@contextmanager
def acting(name: str) -> Iterator[None]:
    """What is done here is done by this person."""
    with patch("invoice_client.whoami", return_value=name):
        yield


AnInvoice = Invoice | dict[str, Any]


def id_of(invoice: AnInvoice) -> str:
    return invoice.id if isinstance(invoice, Invoice) else str(invoice["id"])


def an_invoice(**fields: Any) -> dict[str, Any]:
    """The tutorial's invoice with a new id, and without pauses between its payments."""
    return {
        "id": f"INV-{uuid4().hex[:12]}",
        "lines": [
            {"item": "Web Development", "amount": "5000.00", "description": "Frontend work"},
            {"item": "Design Services", "amount": "2000.00", "description": "UI/UX design"},
        ],
        "payment_interval_seconds": 0,
        **fields,
    }


CALLS: dict[str, dict[str, Any]] = {
    "process_invoice": {"invoice_data": an_invoice()},
    "approve_invoice": {"invoice_id": "INV-1"},
    "reject_invoice": {"invoice_id": "INV-1"},
    "cancel_invoice": {"invoice_id": "INV-1"},
    "get_invoice_status": {"invoice_id": "INV-1"},
    "list_invoices": {},
}
"""Each tool with arguments that its schema allows."""


@overload
async def eventually(check: Callable[[], Awaitable[T | None]], bound: float = 20) -> T: ...
@overload
async def eventually(check: Callable[[], bool], bound: float = 20) -> bool: ...
async def eventually(check: Callable[[], Any], bound: float = 20) -> Any:
    """Returns the result of `check`, awaited if it is awaitable, once it is true.

    Fails after `bound` seconds.
    """
    pause = 0.05
    async with asyncio.timeout(bound):
        while True:
            found = check()
            if isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(pause)
            # A check may be a call to a service, and frequent calls would slow the service down.
            pause = min(pause * 1.5, 0.5)


def environment(address: str, **more: str) -> dict[str, str]:
    """The environment for our processes: as little as a host passes on, and the address.

    An address is `host:port`, or `host:port/namespace`.
    """
    kept = {k: os.environ[k] for k in ("HOME", "PATH", "LOGNAME", "SystemRoot") if k in os.environ}
    host, _, namespace = address.partition("/")
    named = {"TEMPORAL_NAMESPACE": namespace} if namespace else {}
    return {**kept, "TEMPORAL_ADDRESS": host, **named, **more}


class Service:
    """A Temporal dev server on free ports, with its database in `directory`.

    It has the namespace `default` and those in `namespaces`.
    """

    def __init__(self, directory: Path, namespaces: Sequence[str] = ()) -> None:
        self.directory = directory
        self.namespaces = namespaces
        self.port = free_port()
        self.ui_port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Client:
        """Starts it, or starts it again on the same database; returns a client."""
        command = dev_server.dev_server_command(
            await dev_server.temporal_executable(), self.port, self.ui_port, "default"
        )
        for namespace in self.namespaces:
            command += ["--namespace", namespace]
        if self.namespaces:
            # Otherwise the service runs its own workers for each, for schedules and batches.
            command += ["--dynamic-config-value", "worker.perNamespaceWorkerCount=0"]
            command += ["--dynamic-config-value", "frontend.WorkflowPauseEnabled=true"]
            # It is never started again, so its database may be in memory, which is faster.
            at = command.index("--db-filename")
            del command[at : at + 2]
        with (self.directory / "temporal.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log)

        async def connected() -> Client | None:
            try:
                return await connect(self.address)
            except StartupError:
                return None

        return await eventually(connected, 30)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait(10)


class Namespace:
    """A namespace of a service that other tests use too, for tests that never kill the service."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def connect(self) -> Client:
        return await connect(self.address)


async def connect(address: str, identity: str | None = None) -> Client:
    host, _, namespace = address.partition("/")
    return await connection.connect(
        {"target_host": host, "namespace": namespace or "default"}, identity=identity
    )


class Worker:
    """A worker process: `worker.py`, or a script of the tests in its place.

    `async with Worker(address, data) as worker` starts it, and ends it whatever happens.
    """

    def __init__(
        self,
        address: str,
        data: Path,
        script: str | Path = ROOT / "worker.py",
        arguments: Sequence[str] = (),
        **env: str,
    ) -> None:
        data.mkdir(exist_ok=True)
        self.address = address
        self.data = data
        self.log = data / f"worker-{uuid4().hex[:6]}.log"
        self.command = [sys.executable, str(script), *arguments]
        self.environment = environment(
            address, INVOICE_DATA_DIR=str(data), PYTHONPATH=str(ROOT), **env
        )
        self.process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    async def start(self) -> Self:
        """Starts it, also for a second time. A start that fails leaves no process behind."""
        output = self.log.with_suffix(".out")
        with self.log.open("a") as log, output.open("w") as out:
            process = subprocess.Popen(self.command, env=self.environment, stdout=out, stderr=log)
        self.process = process

        async def started_or_ended() -> bool:
            return output.read_text().endswith("\n") or process.poll() is not None

        try:
            await eventually(started_or_ended, 60)
            assert output.read_text().strip() == STARTED, self.log.read_text()
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """kill -9."""
        if self.process:
            self.process.kill()
            self.process.wait(10)

    async def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 45)


async def refused_start(*command: str, stdout: int = asyncio.subprocess.PIPE, **env: str) -> str:
    """The one line that a worker prints when it ends at once with exit code 1."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(command or (str(ROOT / "worker.py"),)),
        env=environment("", PYTHONPATH=str(ROOT)) | env,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert process.returncode == 1
    assert not output
    [line] = [line for line in errors.decode().splitlines() if " INFO " not in line]
    return line


@asynccontextmanager
async def workflows_only(
    client: Client, *more_activities: Callable[..., Any]
) -> AsyncIterator[None]:
    """A worker in this process that processes invoices up to their next payment.

    It uses the ledger from `activities.open_payments`, and so does `payments_only`.
    """
    import activities

    async with temporalio.worker.Worker(
        client,
        task_queue=TASK_QUEUE,
        workflows=[InvoiceWorkflow],
        activities=[
            activities.payments_made,
            activities.cancellation_request,
            *more_activities,
        ],
        no_remote_activities=True,
        workflow_runner=temporalio.worker.UnsandboxedWorkflowRunner(),
    ):
        yield


@asynccontextmanager
async def payments_only(client: Client) -> AsyncIterator[None]:
    """A worker in this process that makes payments, but doesn't run workflows."""
    import activities

    async with temporalio.worker.Worker(
        client,
        task_queue=TASK_QUEUE,
        activities=[activities.process_payment, activities.payment_outcome],
    ):
        yield


async def cancelled_with_the_outcome(
    desk: "Desk", *, cancel_first: bool = False, **fields: Any
) -> Invoice:
    """Gives an approved invoice whose next workflow task has both the outcome of line 1 and a
    cancellation. No other worker may run. The ledger is that of `workflows_only`.
    """

    async def payment_pending() -> bool:
        return len((await handle.describe()).raw_description.pending_activities) == 1

    async def payment_ended() -> bool:
        return not await payment_pending()

    async with workflows_only(desk.temporal):
        invoice = await desk.submit_and_approve(**fields)
        handle = desk.handle(invoice)
        await eventually(payment_pending)
    if cancel_first:
        await handle.cancel()
    async with payments_only(desk.temporal):
        await eventually(payment_ended)
    if not cancel_first:
        await handle.cancel()
    return invoice


def payments(data: Path) -> dict[str, tuple[str, str, str]]:
    """The item, amount and currency of every paid line in the ledger, by key."""
    with closing(sqlite3.connect(data / "payments.db", timeout=10)) as ledger:
        rows = ledger.execute(
            "SELECT idempotency_key, item, amount, currency FROM payments WHERE state = 'paid'"
        )
        return {key: (item, amount, currency) for key, item, amount, currency in rows}


def states(ledger: SQLiteLedger) -> list[str]:
    """The states of all attempts, in the order of the lines."""
    rows, _ = ledger._execute("SELECT state FROM payments ORDER BY idempotency_key, attempt")
    return [state for [state] in rows]


def paid(data: Path, invoice: AnInvoice) -> list[str]:
    """The keys of an invoice's payments."""
    return sorted(key for key in payments(data) if key.startswith(f"invoice-{id_of(invoice)}/"))


def mcp(
    address: str,
    mode: str = "legacy",
    log: Path | None = None,
    script: Path = ROOT / "invoice_server.py",
    env: dict[str, str] | None = None,
    **client: Any,
) -> "McpClient[Any]":
    """A real MCP client that spawns the real server. `mode`: `legacy` or `2026-07-28`."""
    from fastmcp import Client as McpClient
    from fastmcp.client.transports import StdioTransport

    transport = StdioTransport(
        sys.executable,
        [str(script)],
        env=environment(address, **(env or {})),
        keep_alive=False,
        log_file=log,
    )
    return McpClient(transport, mode=mode, **client)


async def advertised(client: "McpClient[Any]") -> dict[str, Any]:
    """The server's capabilities, from the handshake, or from a request in the later era."""
    if client.initialize_result:
        return client.initialize_result.capabilities.model_dump(exclude_none=True)
    discovered = await client.session.send_discover("2026-07-28")
    capabilities: dict[str, Any] = discovered["capabilities"]
    return capabilities


class Tools:
    """Calls tools and returns their text. Raises `Refused` if the answer is an error."""

    def __init__(self, client: "McpClient[Any]") -> None:
        self.client = client

    async def __call__(self, tool: str, **arguments: Any) -> str:
        result = await self.client.call_tool(tool, arguments, raise_on_error=False)
        text: str = result.content[0].text  # type: ignore[union-attr]
        if result.is_error:
            raise Refused(text)
        return text

    async def submit(self, **fields: Any) -> dict[str, Any]:
        """Submits an invoice from `an_invoice`, and returns it."""
        invoice = an_invoice(**fields)
        await self("process_invoice", invoice_data=invoice)
        return invoice

    async def status(self, invoice: dict[str, Any]) -> dict[str, Any]:
        """The structured content of `get_invoice_status`."""
        result = await self.client.call_tool("get_invoice_status", {"invoice_id": invoice["id"]})
        content: dict[str, Any] = result.structured_content  # type: ignore[assignment]
        return content

    async def until(self, invoice: dict[str, Any], *states: str) -> dict[str, Any]:
        """Waits for one of these states, and returns the status."""

        async def status_in_states() -> dict[str, Any] | None:
            status = await self.status(invoice)
            return status if status["state"] in states else None

        return await eventually(status_in_states)


class Refused(Exception):
    """A tool answered with an error."""


async def answers_of_all_tools(tools: Tools) -> dict[str, str]:
    """Calls all tools at once. Each must refuse; returns their words."""

    async def answer(tool: str) -> str:
        with pytest.raises(Refused) as refusal:
            await tools(tool, **CALLS[tool])
        return str(refusal.value)

    async with asyncio.timeout(30):
        return dict(zip(CALLS, await asyncio.gather(*map(answer, CALLS)), strict=True))


@cache
def treat_each_schema_once() -> None:
    """Spares the clients and the server in this process to treat the tools' schemas, which are
    always the same, again and again. For each client, it would take longer than its calls.
    """
    results: dict[tuple[Any, str], Any] = {}

    def once(treat: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        def treat_if_new(schema: dict[str, Any]) -> Any:
            key = (treat, json.dumps(schema))
            if key not in results:
                results[key] = treat(schema)
            return results[key]

        return treat_if_new

    for place in (
        "fastmcp.server.middleware.dereference.dereference_refs",
        "jsonschema.Draft202012Validator.check_schema",
    ):
        pytest.MonkeyPatch().setattr(place, once(pkgutil.resolve_name(place)))


@asynccontextmanager
async def tools_in_memory(
    address: str, mode: str = "legacy", **client: Any
) -> AsyncIterator[Tools]:
    """The tools in this process, for tests of what they do and say."""
    async with host_here(mode, **client) as host, tools_of(host, address) as tools:
        yield tools


def host_here(mode: str = "legacy", **client: Any) -> "McpClient[Any]":
    """An MCP client of the server in this process, which `tools_of` gives a Temporal Service."""
    from fastmcp import Client as McpClient

    import invoice_server

    treat_each_schema_once()
    return McpClient(invoice_server.mcp, mode=mode, **client)


@asynccontextmanager
async def tools_of(host: "McpClient[Any]", address: str) -> AsyncIterator[Tools]:
    import invoice_server

    invoices = InvoiceClient(await connect(address, identity=whoami()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(invoice_server, "shared_client", invoices)
        yield Tools(host)


class Desk:
    """Submits, decides and waits with `InvoiceClient`, as the MCP server does.

    `Tools` does the same by calling tools.
    """

    def __init__(self, temporal: Client) -> None:
        self.temporal = temporal
        self.client = InvoiceClient(temporal)

    async def submit(self, **fields: Any) -> Invoice:
        """Submits an invoice from `an_invoice`, and returns it."""
        invoice = Invoice.model_validate(an_invoice(**fields))
        await self.client.submit(invoice)
        return invoice

    async def start(self, invoice: AnInvoice, **options: Any) -> WorkflowHandle[Any, Any]:
        """Starts the workflow as another client does, such as the tutorial's."""
        content = json_payload(invoice.to_json()) if isinstance(invoice, Invoice) else invoice
        return await self.temporal.start_workflow(
            "InvoiceWorkflow",
            content,
            id=workflow_id(id_of(invoice)),
            **{"task_queue": TASK_QUEUE, **options},
        )

    async def approve(self, invoice: AnInvoice, **how: Any) -> InvoiceStatus:
        return await self.client.decide(id_of(invoice), approve=True, **how)

    async def reject(self, invoice: AnInvoice, **how: Any) -> InvoiceStatus:
        return await self.client.decide(id_of(invoice), approve=False, **how)

    async def submit_and_approve(self, **fields: Any) -> Invoice:
        invoice = await self.submit(**fields)
        await self.approve(invoice)
        return invoice

    async def pay(self, invoice: AnInvoice) -> None:
        """Approves an invoice, and waits until it is paid."""
        await self.approve(invoice)
        assert await self.handle(invoice).result() == "COMPLETED"

    async def reset(self, invoice: AnInvoice, task: int = 0) -> str:
        """Resets to the end of a workflow task, counted from 0. Returns the new run's id."""
        handle = self.handle(invoice)

        async def ends_of_tasks() -> list[int]:
            completed = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
            events = handle.fetch_history_events()
            return [event.event_id async for event in events if event.event_type == completed]

        run_id = (await handle.describe()).run_id
        answer = await self.temporal.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=self.temporal.namespace,
                workflow_execution=WorkflowExecution(workflow_id=handle.id, run_id=run_id),
                workflow_task_finish_event_id=(await eventually(ends_of_tasks))[task],
                request_id=uuid4().hex,
                reason="a test",
            )
        )
        return answer.run_id

    async def status(self, invoice: AnInvoice) -> InvoiceStatus:
        return await self.client.get_status(id_of(invoice))

    async def until(self, invoice: AnInvoice, *states: str, bound: float = 20) -> InvoiceStatus:
        """Waits for one of these states, and returns the status."""
        return await self.once(invoice, lambda status: status.state in states, bound)

    async def once(
        self, invoice: AnInvoice, is_so: Callable[[InvoiceStatus], object], bound: float = 20
    ) -> InvoiceStatus:
        """Waits until `is_so` is true of the status, and returns it."""

        async def matching_status() -> InvoiceStatus | None:
            status = await self.status(invoice)
            return status if is_so(status) else None

        return await eventually(matching_status, bound)

    def handle(self, invoice: AnInvoice) -> WorkflowHandle[Any, Any]:
        return self.temporal.get_workflow_handle(workflow_id(id_of(invoice)))
