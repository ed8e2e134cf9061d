"""The embedded Temporal Service: it ends with its worker, and is started again when it is gone."""

import asyncio
import json
import shutil
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest
from fastmcp import Client as McpClient
from temporalio.api.namespace.v1 import UpdateNamespaceInfo
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, UpdateNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError

import activities
import audit
from invoices.invoice import Invoice
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from reports import SEARCH_ATTRIBUTES
from startup import StartupError
from support import (
    PROCESSES,
    Desk,
    Namespace,
    Service,
    Tools,
    Worker,
    connect,
    eventually,
    free_port,
    paid,
    refused_start,
    workflows_only,
)
from temporal_service import dev_server

unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Embedded:
    """Workers that share the ports of one embedded service."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port, self.ui_port = free_port(), free_port()
        self.ports = {
            "INVOICE_TEMPORAL_PORT": str(self.port),
            "INVOICE_WEB_UI_PORT": str(self.ui_port),
        }
        self.address = f"127.0.0.1:{self.port}"
        self.workers: list[Worker] = []

    def worker(self, data: Path | None = None, **env: str) -> Worker:
        worker = Worker("", data or self.data, **self.ports, **env)
        self.workers.append(worker)
        return worker

    async def client(self) -> Client | None:
        """Connects as soon as the service answers."""
        try:
            return await connect(self.address)
        except StartupError:
            return None

    def servers(self) -> list[psutil.Process]:
        """The processes of dev servers for these ports."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            arguments = process.info["cmdline"] or []
            if "start-dev" in arguments and str(self.port) in arguments:
                found.append(process)
        return found

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()
        for server in self.servers():  # left behind on purpose
            server.kill()

    async def has_server(self) -> bool:
        return bool(self.servers())

    async def has_no_server(self) -> bool:
        return not self.servers()


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Embedded]:
    embedded = Embedded(tmp_path)
    yield embedded
    embedded.kill()


async def approved(embedded: Embedded, invoice: Invoice) -> bool:
    """Approves a waiting invoice. Returns whether it has completed."""
    if not (client := await embedded.client()):
        return False
    handle = Desk(client).handle(invoice)
    try:
        await handle.signal("approve_invoice")
        return bool(await handle.result() == "COMPLETED")
    except RPCError:
        return False


async def submit(embedded: Embedded, **fields: object) -> Invoice:
    return await Desk(await connect(embedded.address)).submit(**fields)


async def test_waiting_invoices_survive_the_service_with_its_worker_and_move_to_another_port(
    embedded: Embedded,
) -> None:
    worker = await embedded.worker().start()
    invoice = await submit(embedded, id="INV-002")
    assert await worker.end() == 0
    assert await embedded.has_no_server()
    assert "Traceback" not in worker.log.read_text()

    other = Embedded(embedded.data)
    try:
        worker = await with_hangup(other.worker())
        assert await approved(other, invoice)
        assert len(paid(embedded.data, invoice)) == 2
        # A closed terminal ends both.
        assert await worker.end(HANGUP) == 0
        assert await other.has_no_server()
    finally:
        other.kill()


HANGUP = signal.SIGTERM if sys.platform == "win32" else signal.SIGHUP  # Windows has none


async def with_hangup(worker: Worker) -> Worker:
    """Starts a worker as from a terminal: under nohup, the tests and what they start ignore it."""
    ours = signal.signal(HANGUP, signal.SIG_DFL)
    try:
        return await worker.start()
    finally:
        signal.signal(HANGUP, ours)


FOLDER = "what? #1 100%41 Счета 請求書 ü"
if sys.platform == "win32":
    FOLDER = FOLDER.replace("?", "")


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Embedded]:
    """An embedded service in a difficult environment. The tests that share it only read."""
    data = tmp_path_factory.mktemp("embedded") / FOLDER
    data.mkdir()
    (data / "temporal.log").write_text("x" * (dev_server.LOG_LIMIT + 1))
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o500)
    embedded = Embedded(data)
    worker = embedded.worker(HOME=str(home))
    try:
        await worker.start()
        yield embedded
        await worker.end()
    finally:
        embedded.kill()


async def test_it_says_where_everything_is(running: Embedded) -> None:
    log = running.workers[0].log.read_text()
    assert f"localhost:{running.port}, namespace default" in log
    assert f"http://localhost:{running.ui_port}" in log
    assert str(running.data) in log
    page = await asyncio.to_thread(
        urllib.request.urlopen, f"http://127.0.0.1:{running.ui_port}", timeout=10
    )
    assert page.status == 200


async def test_both_databases_can_be_in_a_folder_of_any_name(running: Embedded) -> None:
    assert {"temporal.db", "payments.db"} < {file.name for file in running.data.iterdir()}
    assert list(running.data.parent.iterdir()) == [running.data]


async def test_it_runs_without_a_home_to_write_to(running: Embedded) -> None:
    home = Path(running.workers[0].environment["HOME"])
    assert await running.client()
    assert not list(home.iterdir())


async def test_a_large_log_is_replaced_by_a_new_one(running: Embedded) -> None:
    log = running.data / "temporal.log"
    assert log.stat().st_size < 10_000
    assert log.with_name("temporal.log.1").stat().st_size > dev_server.LOG_LIMIT


async def retention_days(client: Client) -> int:
    description = await client.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace="default")
    )
    return description.config.workflow_execution_retention_ttl.ToTimedelta().days


async def test_its_service_remembers_closed_invoices_for_a_year(running: Embedded) -> None:
    assert await retention_days(await connect(running.address)) == 365


@pytest.fixture
def here(unconfigured: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[Embedded], None]:
    """Sets the ports of an embedded service in this process, without an address."""

    def use(embedded: Embedded) -> None:
        for name, value in embedded.ports.items():
            monkeypatch.setenv(name, value)

    return use


async def test_a_service_found_running_remembers_them_too_and_gets_the_search_attributes_it_lacks(
    embedded: Embedded, service: Service, here: Callable[[Embedded], None]
) -> None:
    service.port, service.address = embedded.port, embedded.address
    client = await service.start()
    assert await retention_days(client) == 1
    await dev_server._register(client, SEARCH_ATTRIBUTES[:1])  # as an earlier version did
    here(embedded)
    async with dev_server.connect_or_start(embedded.data, SEARCH_ATTRIBUTES):
        assert await retention_days(client) == 365
        listed = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace=client.namespace)
        )
        assert set(SEARCH_ATTRIBUTES) <= set(listed.custom_attributes)


@pytest.mark.parametrize("mark", [None, ""])
async def test_a_service_without_a_recorded_directory_belongs_to_none(
    mark: str | None, namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    if mark is not None:
        await set_data(client, {dev_server.DIRECTORY: mark})
    assert await dev_server.belongs_to(client, tmp_path) is False


@pytest.mark.parametrize("mark", ["/gone", "/gone\nERROR forged", "nul\0", "x" * 5000])
async def test_a_service_of_another_directory_is_refused_in_one_line_whatever_its_name(
    mark: str, namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    await set_data(client, {dev_server.DIRECTORY: mark})
    with pytest.raises(StartupError) as refusal:
        await dev_server.belongs_to(client, tmp_path)
    assert str(refusal.value).isprintable()
    assert str(tmp_path) in str(refusal.value)


async def set_data(client: Client, data: dict[str, str]) -> None:
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=client.namespace, update_info=UpdateNamespaceInfo(data=data)
        )
    )


async def test_a_worker_of_another_directory_is_told_both_and_the_way_out(
    running: Embedded, here: Callable[[Embedded], None], tmp_path: Path
) -> None:
    here(running)
    with pytest.raises(StartupError) as refusal:
        async with dev_server.connect_or_start(tmp_path, SEARCH_ATTRIBUTES):
            pytest.fail("it joined")
    said = str(refusal.value)
    assert f"was started for the data directory {running.data}," in said
    assert f"the data directory here is {tmp_path}." in said
    assert "INVOICE_DATA_DIR" in said
    assert f"TEMPORAL_ADDRESS=localhost:{running.port}" in said
    assert "INVOICE_TEMPORAL_PORT" in said


async def test_a_worker_of_another_directory_runs_its_own_service_on_other_ports(
    running: Embedded, tmp_path: Path
) -> None:
    beside = Embedded(tmp_path)
    try:
        worker = await beside.worker().start()
        log = worker.log.read_text()
        assert f"localhost:{beside.port}, namespace default" in log
        assert f"http://localhost:{beside.ui_port}" in log
        assert await beside.client()
    finally:
        beside.kill()


async def test_a_directory_has_no_second_service_on_another_port(running: Embedded) -> None:
    other = Embedded(running.data)
    line = await refused_start(
        INVOICE_DATA_DIR=str(running.data), INVOICE_TEMPORAL_PORT=str(other.port)
    )
    assert f"already runs on port {running.port}: set INVOICE_TEMPORAL_PORT={running.port}" in line
    assert not other.servers()


async def test_the_tools_find_the_service_on_its_port(
    running: Embedded, configure: Callable[[dict[str, str]], None]
) -> None:
    import invoice_server

    configure(running.ports)
    async with McpClient(invoice_server.mcp) as host:
        assert "can't be reached" not in await Tools(host)("list_invoices")


async def test_a_worker_of_another_directory_joins_the_service_that_is_configured(
    running: Embedded, unconfigured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", running.address)
    async with dev_server.connect_or_start(tmp_path, SEARCH_ATTRIBUTES) as client:
        assert await retention_days(client) == 365


async def test_the_audit_compares_no_ledger_with_the_service_of_another_directory(
    running: Embedded,
    here: Callable[[Embedded], None],
    ledger: SQLiteLedger,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    here(running)
    monkeypatch.setenv("INVOICE_DATA_DIR", str(running.data))
    assert await audit.run(audit._csv_writer) == 0
    monkeypatch.setenv("INVOICE_DATA_DIR", str(tmp_path))
    with pytest.raises(StartupError, match=f"was started for the data directory .* {tmp_path}"):
        await audit.run(audit._csv_writer)


@unix
async def test_a_directory_is_known_by_any_of_its_names(
    running: Embedded, here: Callable[[Embedded], None], tmp_path: Path
) -> None:
    here(running)
    other_name = tmp_path / "link"
    other_name.symlink_to(running.data)
    async with dev_server.connect_or_start(other_name, SEARCH_ATTRIBUTES) as client:
        assert await dev_server.belongs_to(client, other_name)


async def test_a_copied_directory_is_a_directory_of_its_own(
    here: Callable[[Embedded], None], tmp_path: Path
) -> None:
    first, copy = Embedded(tmp_path / "first"), Embedded(tmp_path / "copy")
    first.data.mkdir()
    here(first)
    async with dev_server.connect_or_start(first.data, SEARCH_ATTRIBUTES) as client:
        await set_data(client, {"another": "key"})
    shutil.copytree(first.data, copy.data)
    async with dev_server.connect_or_start(copy.data, SEARCH_ATTRIBUTES) as client:
        assert await dev_server.belongs_to(client, copy.data)
        description = await dev_server._describe_namespace(client)
        assert description.namespace_info.data["another"] == "key"
        with pytest.raises(StartupError, match="was started for"):
            await dev_server.belongs_to(client, first.data)


async def test_when_two_directories_start_at_once_one_gets_the_port(
    embedded: Embedded, tmp_path: Path
) -> None:
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        directory.mkdir()
    workers = [embedded.worker(directory) for directory in directories]
    started = await asyncio.gather(*(one.start() for one in workers), return_exceptions=True)
    [winner] = [one for one, result in zip(workers, started, strict=True) if one is result]
    [loser] = [one for one in workers if one is not winner]
    assert loser.process
    assert loser.process.returncode == 1
    [problem] = [line for line in loser.log.read_text().splitlines() if " ERROR " in line]
    assert f"started for the data directory {winner.data}," in problem
    assert f"the data directory here is {loser.data}." in problem
    assert len(embedded.servers()) == 1


async def test_a_service_started_by_hand_is_waited_for_and_not_replaced(
    embedded: Embedded, service: Service
) -> None:
    service.port, service.address = embedded.port, embedded.address
    await service.start()
    data, other = embedded.data / "data", embedded.data / "other"
    data.mkdir()
    other.mkdir()
    worker = await embedded.worker(data).start()
    assert "Web UI" not in worker.log.read_text()  # the service's is on another port
    invoice = await submit(embedded)
    service.kill()

    await eventually(
        lambda: f"not started for {data}, so this worker waits for it" in worker.log.read_text()
    )
    assert await embedded.has_no_server()
    await service.start()
    assert await approved(embedded, invoice)

    service.kill()  # and a service of another directory takes its place
    await embedded.worker(other).start()
    assert worker.process
    assert await asyncio.to_thread(worker.process.wait, 40) == 1
    assert f"was started for the data directory {other}," in worker.log.read_text()
    assert not (data / "temporal.db").exists()


HOSTS = ["{address}", "localhost", "127.0.0.1", "attacker.example", "none.invalid"]


def post(port: int, path: str, host: str) -> int:
    """Posts as a web page can without a preflight. Returns the status, or 0 if it isn't HTTP."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps({"workflowType": {"name": "InvoiceWorkflow"}}).encode(),
        headers={
            "Host": host.format(address=f"127.0.0.1:{port}"),
            "Origin": "http://attacker.example",
            "Content-Type": "text/plain",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException):  # as from a gRPC port
        return 0


async def test_no_web_page_can_decide_on_or_start_an_invoice(running: Embedded) -> None:
    invoice = await submit(running)
    [server] = running.servers()
    ports = {
        listener.laddr.port
        for listener in server.net_connections("tcp")
        if listener.status == psutil.CONN_LISTEN
    }
    assert {running.port, running.ui_port} < ports
    workflows = "/api/v1/namespaces/default/workflows"
    statuses = [
        await asyncio.to_thread(post, port, f"{workflows}/{path}", host)
        for port in ports
        for host in HOSTS
        for path in (f"invoice-{invoice.id}/signal/approve_invoice", "invoice-FORGED")
    ]
    assert 403 in statuses  # the HTTP API was among them
    assert not [status for status in statuses if 200 <= status < 300]

    client = await connect(running.address)
    runs = [run async for run in client.list_workflows("WorkflowType='InvoiceWorkflow'")]
    assert [run.id for run in runs] == [f"invoice-{invoice.id}"]
    handle = client.get_workflow_handle(runs[0].id)
    assert (await handle.describe()).status == WorkflowExecutionStatus.RUNNING
    assert await handle.query("get_status") == "Awaiting approval"


@unix
@pytest.mark.slow
async def test_a_service_that_hangs_ends_with_its_worker(embedded: Embedded) -> None:
    script = PROCESSES / "hung_worker.py"
    worker = Worker("", embedded.data, script, ["1", "3"], **embedded.ports)
    embedded.workers.append(worker)
    await worker.start()
    [server] = embedded.servers()
    server.suspend()
    assert await worker.end() == 0
    await eventually(lambda: not embedded.servers())
    assert "cut off. The next worker tries it again." in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()


async def test_its_service_is_started_again_when_it_ends_and_used_when_its_worker_is_killed(
    embedded: Embedded, here: Callable[[Embedded], None]
) -> None:
    worker = await embedded.worker().start()
    invoice = await submit(embedded)
    [server] = embedded.servers()
    log = embedded.data / "temporal.log"

    async def logged() -> str:
        return log.read_text()

    log_before = await eventually(logged)
    server.kill()
    await eventually(lambda: approved(embedded, invoice), 40)
    assert "ended; starting it" in worker.log.read_text()
    assert log.read_text().startswith(log_before)

    worker.kill()
    [left_behind] = embedded.servers()
    here(embedded)
    async with dev_server.connect_or_start(embedded.data, SEARCH_ATTRIBUTES):
        assert embedded.servers() == [left_behind]
    assert embedded.servers() == [left_behind]


async def test_workers_started_at_once_share_a_service_even_after_its_owner_ends(
    embedded: Embedded,
) -> None:
    workers = await asyncio.gather(*(embedded.worker().start() for _ in range(3)))
    [server] = embedded.servers()
    [first] = [one for one in workers if one.process and one.process.pid == server.ppid()]
    workers.remove(first)
    invoice = await submit(embedded)
    assert await first.end() == 0
    await eventually(lambda: approved(embedded, invoice), 40)
    assert await approved(embedded, await submit(embedded))
    [successor] = embedded.servers()
    assert successor != server
    for worker in workers:
        assert await worker.end() == 0
    assert await embedded.has_no_server()


@pytest.fixture
def taken(embedded: Embedded, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another program uses the UDP port of the service's number."""
    monkeypatch.setattr(dev_server, "LOCK_SECONDS", 0.5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", embedded.port))
        yield


async def test_a_worker_does_not_wait_for_ever_to_start_a_service(
    embedded: Embedded, here: Callable[[Embedded], None], taken: None
) -> None:
    here(embedded)
    async with asyncio.timeout(20):
        with pytest.raises(StartupError, match=f"^UDP port {embedded.port} has been in use for"):
            async with dev_server.connect_or_start(embedded.data, SEARCH_ATTRIBUTES):
                pytest.fail("it started")
    assert not embedded.servers()


async def test_a_worker_that_has_to_start_no_service_joins_the_one_that_runs(
    embedded: Embedded, service: Service, here: Callable[[Embedded], None], taken: None
) -> None:
    service.port, service.address = embedded.port, embedded.address
    await service.start()
    here(embedded)
    async with (
        asyncio.timeout(20),
        dev_server.connect_or_start(embedded.data, SEARCH_ATTRIBUTES) as client,
    ):
        assert await retention_days(client) == 365


@unix
@pytest.mark.parametrize("seconds", [0, 0.15, 0.4])
async def test_ctrl_c_during_the_start_leaves_no_server(seconds: float, embedded: Embedded) -> None:
    worker = embedded.worker()
    start = asyncio.create_task(worker.start())
    await eventually(embedded.has_server)
    await asyncio.sleep(seconds)
    assert await worker.end(signal.SIGINT) == 0
    assert await embedded.has_no_server()
    await asyncio.wait([start])
    start.exception()  # it may have started already


@unix
async def test_nohup_keeps_them_when_the_terminal_closes(embedded: Embedded) -> None:
    worker = embedded.worker()
    worker.command.insert(0, "nohup")
    await worker.start()
    assert worker.process
    worker.process.send_signal(signal.SIGHUP)
    assert await approved(embedded, await submit(embedded))


async def test_the_start_reports_the_open_invoices(
    namespace: Namespace, tmp_path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    payments = (SimulatedGateway(tmp_path), ledger)
    monkeypatch.setattr(activities, "open_payments", lambda: payments)
    (tmp_path / "gateway-down").touch()
    desk = Desk(await namespace.connect())
    async with workflows_only(desk.temporal):
        paying, *_ = await asyncio.gather(*(desk.submit() for _ in range(3)))
        await desk.approve(paying)
        await desk.until(paying, "paying")
    async with Worker(namespace.address, tmp_path) as worker:
        await eventually(lambda: "2 waiting, 1 being paid" in worker.log.read_text())
