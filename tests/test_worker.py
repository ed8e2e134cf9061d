"""`uv run worker.py`: the embedded service, its clean end, and one sentence for what is wrong."""

import asyncio
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.service import RPCError

from startup import StartupError
from support import (
    ROOT,
    STARTED,
    Tools,
    Worker,
    an_invoice,
    connect,
    environment,
    eventually,
    free_port,
    mcp,
    paid,
)
from temporal_service import dev_server


class Embedded:
    """Workers that share the ports of one embedded service."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port, self.ui_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.workers: list[Worker] = []

    def worker(self) -> Worker:
        script = ROOT / "tests" / "embedded_worker.py"
        worker = Worker("", self.data, script, arguments=[str(self.port), str(self.ui_port)])
        self.workers.append(worker)
        return worker

    async def service_is_up(self) -> bool:
        try:
            await connect(self.address)
        except StartupError:
            return False
        return True

    async def service_is_down(self) -> bool:
        return not await self.service_is_up()


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[Embedded]:
    embedded = Embedded(tmp_path)
    yield embedded
    for worker in embedded.workers:
        worker.kill()
    if await embedded.service_is_up():  # left behind on purpose: its next user ends it
        await (await embedded.worker().start()).end()
        os.kill(await service_pid(embedded), signal.SIGTERM)


async def service_pid(embedded: Embedded) -> int:
    """Of the server that listens on the port."""
    process = await asyncio.create_subprocess_exec(
        "pgrep", "-f", f"start-dev.*--port {embedded.port} ", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return int(output.split()[0])


async def test_it_brings_its_own_service_with_web_ui_and_keeps_invoices(embedded: Embedded) -> None:
    worker = await embedded.worker().start()
    page = await asyncio.to_thread(
        urllib.request.urlopen, f"http://127.0.0.1:{embedded.ui_port}", timeout=10
    )
    assert page.status == 200
    invoice = an_invoice(id="INV-002")
    async with mcp(embedded.address) as host:
        await Tools(host)("process_invoice", invoice_data=invoice)
    assert await worker.end() == 0
    await eventually(embedded.service_is_down)
    assert "Traceback" not in worker.log.read_text()

    started = time.monotonic()
    worker = await embedded.worker().start()
    assert time.monotonic() - started < 20
    async with mcp(embedded.address) as host:
        tools = Tools(host)
        await tools("approve_invoice", invoice_id="INV-002")
        await tools.until(invoice, "completed")
    assert len(paid(embedded.data, invoice)) == 2


async def test_its_service_remembers_closed_invoices_for_90_days_at_least(
    embedded: Embedded,
) -> None:
    await embedded.worker().start()
    client = await connect(embedded.address)
    description = await client.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace="default")
    )
    retention = description.config.workflow_execution_retention_ttl.ToTimedelta()
    assert retention.days >= 90


async def test_it_says_where_everything_is(embedded: Embedded) -> None:
    worker = await embedded.worker().start()
    log = worker.log.read_text()
    assert f"localhost:{embedded.port}, namespace default" in log
    assert f"http://localhost:{embedded.ui_port}" in log
    assert str(embedded.data) in log
    assert "\x1b" not in log  # colour is for terminals


async def test_two_workers_started_at_once_share_one_service(embedded: Embedded) -> None:
    await asyncio.gather(embedded.worker().start(), embedded.worker().start())
    invoice = an_invoice()
    async with mcp(embedded.address) as host:
        tools = Tools(host)
        await tools("process_invoice", invoice_data=invoice)
        await tools("approve_invoice", invoice_id=invoice["id"])
        await tools.until(invoice, "completed")


@pytest.mark.skipif(sys.platform == "win32", reason="finds the process with pgrep")
async def test_a_service_left_behind_by_a_killed_worker_is_used(embedded: Embedded) -> None:
    (await embedded.worker().start()).kill()
    assert await embedded.service_is_up()
    assert await (await embedded.worker().start()).end() == 0
    assert await embedded.service_is_up()


@pytest.mark.skipif(sys.platform == "win32", reason="finds the process with pgrep")
async def test_its_service_is_started_again_when_it_ends(embedded: Embedded) -> None:
    worker = await embedded.worker().start()
    invoice = an_invoice()
    async with mcp(embedded.address) as host:
        await Tools(host)("process_invoice", invoice_data=invoice)
    os.kill(await service_pid(embedded), signal.SIGKILL)

    async def approved() -> bool:
        try:
            client = await connect(embedded.address)
            handle = client.get_workflow_handle(f"invoice-{invoice['id']}")
            await handle.signal("approve_invoice")
            return bool(await handle.result() == "COMPLETED")
        except (StartupError, RPCError):
            return False

    assert await eventually(approved, 40)
    assert "restarting it" in worker.log.read_text()


async def refused(*command: str, **env: str) -> str:
    """The one line a worker says that ends at once with exit code 1."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(command or (str(ROOT / "worker.py"),)),
        env=environment("", PYTHONPATH=str(ROOT)) | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(15):
        output, errors = await process.communicate()
    assert process.returncode == 1
    assert output == b""
    [line] = errors.decode().splitlines()
    return line


async def test_a_port_taken_by_something_else_is_named(embedded: Embedded) -> None:
    script = str(ROOT / "tests" / "embedded_worker.py")
    data = str(embedded.data)
    ports = (str(embedded.port), str(embedded.ui_port))
    with socket.create_server(("127.0.0.1", embedded.ui_port)):
        line = await refused(script, *ports, INVOICE_DATA_DIR=data)
        assert f"Port {embedded.ui_port}, for Temporal's Web UI, is in use" in line
    with socket.create_server(("127.0.0.1", embedded.port)):
        line = await refused(script, *ports, INVOICE_DATA_DIR=data)
        assert f"Port {embedded.port} is in use by something that is no Temporal Service" in line


async def test_a_broken_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = await refused(INVOICE_DATA_DIR=str(tmp_path / "file"))
    assert "The data directory can't be used" in line
    assert str(tmp_path / "file") in line


async def test_a_broken_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "payments.db").write_text("no database, but as long as the header of one is " * 3)
    line = await refused(INVOICE_DATA_DIR=str(tmp_path))
    assert "The payment ledger payments.db can't be used" in line


async def test_a_limit_that_is_no_amount_is_named(tmp_path: Path) -> None:
    line = await refused(INVOICE_DATA_DIR=str(tmp_path), INVOICE_DECLINE_OVER="much")
    assert "INVOICE_DECLINE_OVER must be an amount" in line


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_idle_worker_ends_cleanly_every_time(
    number: int, address: str, tmp_path: Path
) -> None:
    for _ in range(2):
        worker = await Worker(address, tmp_path).start()
        assert await worker.end(number) == 0
        assert "Traceback" not in worker.log.read_text()
        assert "Fatal Python error" not in worker.log.read_text()


class Sources:
    """Where the executable may come from, each made up; says in which order they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, have: str) -> None:
        self.asked: list[str] = []
        self.cache = cache

        def which(name: str) -> str | None:
            self.asked.append(f"PATH {name}")
            found = (have == "PATH" and name == "temporal") or (have == "go" and name == "go")
            return f"/somewhere/{name}" if found else None

        async def download(directory: Path) -> None:
            self.asked.append("download")
            if have == "download":
                (directory / "temporal-sdk-python-1.35.0").touch()

        async def go_install(go: Path, directory: Path) -> None:
            self.asked.append("go install")
            (directory / "temporal").touch()

        monkeypatch.setattr("temporal_service.dev_server.shutil.which", which)
        monkeypatch.setattr(dev_server, "_download", download)
        monkeypatch.setattr(dev_server, "_go_install", go_install)
        monkeypatch.setattr(dev_server, "user_cache_path", lambda _: cache)
        if have == "cache":
            cache.mkdir()
            (cache / "temporal").touch()


@pytest.mark.parametrize(
    ("have", "asked", "name"),
    [
        ("PATH", ["PATH temporal"], "temporal"),
        ("cache", ["PATH temporal"], "temporal"),
        ("download", ["PATH temporal", "download"], "temporal-sdk-python-1.35.0"),
        ("go", ["PATH temporal", "download", "PATH go", "go install"], "temporal"),
    ],
)
async def test_the_executable_comes_from_the_first_source_that_has_it(
    have: str, asked: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Sources(monkeypatch, tmp_path / "cache", have)
    assert (await dev_server.temporal_executable()).name == name
    assert sources.asked == asked


async def test_without_any_source_the_ways_to_install_it_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sources(monkeypatch, tmp_path / "cache", "nothing")
    with pytest.raises(StartupError, match="brew install temporal"):
        await dev_server.temporal_executable()


def test_the_tutorials_line_is_the_one_waited_for() -> None:
    assert STARTED in (ROOT / "worker.py").read_text()
