"""`uv run worker.py`: its clean end, and one sentence for what is wrong."""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import worker
from invoice_client import InvoiceClient
from invoices.invoice import Invoice, workflow_id
from startup import StartupError
from support import (
    ROOT,
    STARTED,
    Service,
    Worker,
    an_invoice,
    environment,
    eventually,
    free_port,
)
from temporal_service import connection, dev_server


async def refused(*command: str, stdout: int = asyncio.subprocess.PIPE, **env: str) -> str:
    """The one line a worker says that ends at once with exit code 1."""
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


async def test_a_port_taken_by_something_else_is_named(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, ui_port = free_port(), free_port()
    monkeypatch.setattr(connection, "PORT", port)
    monkeypatch.setattr(connection, "UI_PORT", ui_port)
    monkeypatch.setattr(dev_server, "START_ATTEMPTS", 1)

    async def refused_here() -> str:
        with pytest.raises(StartupError) as refusal:
            async with dev_server.connect_or_start(tmp_path, "InvoiceState"):
                pytest.fail("it started")
        return str(refusal.value)

    with socket.create_server(("127.0.0.1", ui_port)):
        line = await refused_here()
        assert f"Port {ui_port}, for Temporal's Web UI, is in use" in line
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        line = await refused_here()
        assert f"Port {port} is in use by something that isn't a Temporal Service" in line


async def test_metrics_that_cannot_be_served_are_not_blamed_on_the_service(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection, "PORT", free_port())
    monkeypatch.setattr(connection, "UI_PORT", free_port())

    async def refused_here(metrics_address: str) -> str:
        with pytest.raises(StartupError) as refusal:
            async with dev_server.connect_or_start(tmp_path, "InvoiceState", metrics_address):
                pytest.fail("it started")
        return str(refusal.value)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        said = await refused_here(address)
    assert said.startswith(f"Metrics can't be served at {address}: ")
    for address in ["9464", ":9464", "localhost", "localhost:http", "::1:9464", "a b:1", "x" * 99]:
        said = await refused_here(address)
        assert said.startswith(f"Metrics can't be served at {address}: ")


@pytest.mark.parametrize(
    ("host", "ip"), [("localhost", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]")]
)
async def test_metrics_are_served_at_names_and_at_addresses_of_both_kinds(
    host: str, ip: str
) -> None:
    port = free_port()
    try:
        connection.quiet_runtime(f"{host}:{port}")
    except StartupError:
        if ip != "[::1]" or has_ipv6():
            raise
        pytest.skip("no IPv6 here")
    answer = await asyncio.to_thread(urllib.request.urlopen, f"http://{ip}:{port}/metrics")
    assert answer.status == 200
    answer.close()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


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

    versioned = Worker(
        service.address,
        tmp_path,
        TEMPORAL_DEPLOYMENT_NAME="in voices",
        TEMPORAL_WORKER_BUILD_ID="2.0",
    )
    unversioned = Worker(service.address, tmp_path)
    try:
        await versioned.start()
        await eventually(lambda: do_as_told(versioned))
        invoice = Invoice.model_validate(an_invoice())
        invoices = InvoiceClient(client)
        await invoices.submit(invoice)
        handle = client.get_workflow_handle(workflow_id(invoice.id))
        assert await handle.query("get_status") == "Awaiting approval"
        assert await versioned.end() == 0

        await unversioned.start()
        await eventually(lambda: do_as_told(unversioned))
        await invoices.decide(invoice.id, approve=True)
        assert await handle.result() == "COMPLETED"
    finally:
        versioned.kill()
        unversioned.kill()


async def test_a_service_that_is_not_there_is_named(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    line = await refused(INVOICE_DATA_DIR=str(tmp_path), TEMPORAL_ADDRESS=address)
    assert f"The Temporal Service at {address} can't be reached" in line


async def test_a_broken_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = await refused(INVOICE_DATA_DIR=str(tmp_path / "file"))
    assert "The data directory can't be used" in line
    assert str(tmp_path / "file") in line


async def test_a_broken_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "payments.db").write_text("no database, but as long as the header of one is " * 3)
    line = await refused(INVOICE_DATA_DIR=str(tmp_path))
    assert f"The payment ledger {tmp_path / 'payments.db'} can't be used" in line


async def test_a_database_of_temporals_that_cannot_be_opened_is_named(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection, "PORT", free_port())
    monkeypatch.setattr(connection, "UI_PORT", free_port())
    monkeypatch.setattr(dev_server, "START_ATTEMPTS", 1)
    (tmp_path / "temporal.db").mkdir()
    with pytest.raises(StartupError) as refusal:
        async with dev_server.connect_or_start(tmp_path, "InvoiceState"):
            pytest.fail("it started")
    assert "unable to open database file" in str(refusal.value)
    assert str(tmp_path / "temporal.db") in str(refusal.value)


async def test_a_closed_standard_output_is_named(address: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        line = await refused(stdout=writer, **environment(address, INVOICE_DATA_DIR=str(tmp_path)))
    finally:
        os.close(writer)
    assert "Standard output can't be written to" in line


async def test_a_limit_that_is_no_amount_is_named(tmp_path: Path) -> None:
    line = await refused(INVOICE_DATA_DIR=str(tmp_path), INVOICE_DECLINE_OVER="much")
    assert "INVOICE_DECLINE_OVER must be an amount" in line


@pytest.mark.parametrize(
    ("argument", "code", "text"),
    [("--help", 0, "TEMPORAL_ADDRESS"), ("--port=7233", 2, "unrecognized arguments: --port=7233")],
)
def test_an_argument_is_answered_without_a_start(
    argument: str,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["worker.py", argument])
    monkeypatch.setattr(worker, "run", lambda: pytest.fail("it started"))
    with pytest.raises(SystemExit) as end:
        worker.main()
    assert end.value.code == code
    assert text in "".join(capsys.readouterr())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_idle_worker_ends_cleanly(number: int, address: str, tmp_path: Path) -> None:
    worker = await Worker(address, tmp_path).start()
    assert await worker.end(number) == 0
    assert "Traceback" not in worker.log.read_text()
    assert "Fatal Python error" not in worker.log.read_text()
    assert "gets no work" not in worker.log.read_text()


INTERRUPTING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))

sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["argparse", "temporalio.worker", "workflow"])
def test_a_signal_during_the_imports_ends_it_without_a_traceback(
    module: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTING)
    ended = subprocess.run(
        [sys.executable, ROOT / "worker.py"],
        env=environment("", PYTHONPATH=str(tmp_path), INTERRUPTED_IMPORT=module, SIGNAL=name),
        capture_output=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_the_tutorials_line_is_the_one_waited_for() -> None:
    assert STARTED in (ROOT / "worker.py").read_text()
