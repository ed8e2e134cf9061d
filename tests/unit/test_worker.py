"""A worker's imports, its arguments, and its address for metrics."""

import asyncio
import socket
import subprocess
import sys
import urllib.request

import pytest

import worker
from startup import StartupError
from support import (
    ROOT,
    STARTED,
    free_port,
)
from temporal_service import connection


@pytest.mark.parametrize(
    ("program", "not_needed"),
    [
        ("worker", {"httpx2", "fastmcp", "stripe", "psycopg"}),
        ("invoice_server", {"griffe", "temporalio", "stripe", "psycopg"}),
    ],
)
def test_what_only_some_calls_need_is_not_imported_at_the_start(
    program: str, not_needed: set[str]
) -> None:
    code = f"import sys, {program}; print(*sys.modules)"
    imported = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, encoding="utf-8")
    assert not_needed.isdisjoint(imported.split())


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


def test_the_tutorials_line_is_the_one_waited_for() -> None:
    assert STARTED in (ROOT / "worker.py").read_text()
