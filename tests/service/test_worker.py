"""`uv run worker.py` ends cleanly, and explains in one sentence what is wrong."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from postgres import PASSWORD
from reports import SEARCH_ATTRIBUTES
from startup import StartupError
from support import (
    PROCESSES,
    ROOT,
    Desk,
    Namespace,
    Worker,
    environment,
    eventually,
    free_port,
    refused_start,
)
from temporal_service import connection, dev_server

RefusedHere = Callable[..., Awaitable[str]]


@pytest.fixture
def refused_here(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RefusedHere:
    """Gives the error of an embedded service that can't be started in this process."""
    monkeypatch.setenv("INVOICE_TEMPORAL_PORT", str(free_port()))
    monkeypatch.setenv("INVOICE_WEB_UI_PORT", str(free_port()))
    monkeypatch.setattr(dev_server, "START_ATTEMPTS", 1)

    async def refused_here(metrics_address: str | None = None) -> str:
        with pytest.raises(StartupError) as refusal:
            async with dev_server.connect_or_start(tmp_path, SEARCH_ATTRIBUTES, metrics_address):
                pytest.fail("it started")
        return str(refusal.value)

    return refused_here


async def test_a_port_taken_by_something_else_is_named(refused_here: RefusedHere) -> None:
    port, ui_port = connection.service_port(), connection.web_ui_port()
    with socket.create_server(("127.0.0.1", ui_port)):
        line = await refused_here()
        assert f"Port {ui_port}, for Temporal's Web UI, is in use" in line
        assert "INVOICE_WEB_UI_PORT" in line
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        line = await refused_here()
        assert f"Port {port} is in use by something that isn't a Temporal Service" in line
        assert "INVOICE_TEMPORAL_PORT" in line


async def test_one_port_for_the_service_and_its_web_ui_is_refused(tmp_path: Path) -> None:
    line = await refused_start(INVOICE_DATA_DIR=str(tmp_path), INVOICE_TEMPORAL_PORT="8233")
    assert "INVOICE_TEMPORAL_PORT and INVOICE_WEB_UI_PORT are both 8233: they must differ." in line


async def test_metrics_that_cannot_be_served_are_not_blamed_on_the_service(
    refused_here: RefusedHere,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        said = await refused_here(address)
    assert said.startswith(f"Metrics can't be served at {address}: ")
    for address in ["9464", ":9464", "localhost", "localhost:http", "::1:9464", "a b:1", "x" * 99]:
        said = await refused_here(address)
        assert said.startswith(f"Metrics can't be served at {address}: ")


async def test_a_service_that_is_not_there_is_named(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    line = await refused_start(INVOICE_DATA_DIR=str(tmp_path), TEMPORAL_ADDRESS=address)
    assert f"The Temporal Service at {address} can't be reached" in line


async def test_an_address_that_is_not_one_is_named(tmp_path: Path) -> None:
    line = await refused_start(INVOICE_DATA_DIR=str(tmp_path), TEMPORAL_ADDRESS="localhost:72333")
    assert "TEMPORAL_ADDRESS must be host:port, such as localhost:7233 or " in line
    assert line.endswith(", and is 'localhost:72333'.")


async def test_a_broken_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = await refused_start(INVOICE_DATA_DIR=str(tmp_path / "file"))
    assert "The data directory can't be used" in line
    assert str(tmp_path / "file") in line


async def test_a_broken_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "payments.db").write_text("no database, but as long as the header of one is " * 3)
    line = await refused_start(INVOICE_DATA_DIR=str(tmp_path))
    assert f"The payment ledger {tmp_path / 'payments.db'} can't be used" in line


async def test_a_database_of_temporals_that_cannot_be_opened_is_named(
    refused_here: RefusedHere, tmp_path: Path
) -> None:
    (tmp_path / "temporal.db").mkdir()
    line = await refused_here()
    assert "unable to open database file" in line
    assert str(tmp_path / "temporal.db") in line


async def test_a_closed_standard_output_is_named(address: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        line = await refused_start(
            stdout=writer, **environment(address, INVOICE_DATA_DIR=str(tmp_path))
        )
    finally:
        os.close(writer)
    assert "Standard output can't be written to" in line


async def test_a_limit_that_is_not_an_amount_is_named(tmp_path: Path) -> None:
    line = await refused_start(INVOICE_DATA_DIR=str(tmp_path), INVOICE_DECLINE_OVER="much")
    assert "INVOICE_DECLINE_OVER must be an amount" in line


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_idle_worker_ends_cleanly(number: int, address: str, tmp_path: Path) -> None:
    async with Worker(address, tmp_path) as worker:
        assert await worker.end(number) == 0
        assert "Traceback" not in worker.log.read_text()
        assert "Fatal Python error" not in worker.log.read_text()
        assert "gets no work" not in worker.log.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("drain", "end", "is_told"),
    [
        pytest.param(1, 90, False, id="by the worker"),
        pytest.param(90, 1, True, id="with the process"),
    ],
)
async def test_a_payment_that_hangs_does_not_keep_it_from_ending(
    drain: int, end: int, is_told: bool, namespace: Namespace, tmp_path: Path
) -> None:
    limits = [str(drain), str(end)]
    script = PROCESSES / "hung_worker.py"
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path, script, limits) as worker:
        await desk.submit_and_approve()
        await eventually((tmp_path / "paying").exists)
        assert await worker.end() == 0
    log = worker.log.read_text()
    assert "Traceback" not in log
    assert ("cut off. The next worker tries it again." in log) == is_told


INTERRUPTING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))

sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("module", "name"),
    [("argparse", "SIGINT"), ("temporalio.worker", "SIGTERM"), ("workflow", "SIGINT")],
)
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


async def test_a_database_that_is_not_there_ends_the_worker_with_one_sentence(
    tmp_path: Path,
) -> None:
    url = f"postgresql://invoices:{PASSWORD}@127.0.0.1:1/there"
    line = await refused_start(INVOICE_DATA_DIR=str(tmp_path), PAYMENT_LEDGER_URL=url)
    assert "The payment ledger there on 127.0.0.1 can't be used: " in line
    assert PASSWORD not in line
