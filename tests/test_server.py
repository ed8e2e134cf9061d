"""The MCP server as a process: only the protocol on its output, clear words on what is down."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raw_client import RawClient
from support import (
    PROCESSES,
    ROOT,
    Namespace,
    Refused,
    Service,
    Tools,
    Worker,
    an_invoice,
    environment,
    eventually,
    free_port,
    mcp,
)

CALLS: dict[str, dict[str, Any]] = {
    "process_invoice": {"invoice_data": an_invoice()},
    "approve_invoice": {"invoice_id": "INV-1"},
    "reject_invoice": {"invoice_id": "INV-1"},
    "get_invoice_status": {"invoice_id": "INV-1"},
    "list_invoices": {},
}


async def test_standard_output_is_json_rpc_from_the_first_byte(
    address: str, worker: Worker
) -> None:
    server = RawClient(address, TEMPORAL_LOG_LEVEL="debug", FASTMCP_LOG_LEVEL="DEBUG")
    assert (await server.start())["result"]["serverInfo"]["name"] == "invoice-processor"
    invoice = an_invoice()
    assert (await server.call("process_invoice", invoice_data=invoice))["isError"] is False
    assert await server.call("approve_invoice", invoice_id=invoice["id"])
    assert await server.end() == 0
    assert server.unclaimed.empty()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_server_cleanly(number: int, address: str, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    server = RawClient(address, log=log)
    await server.start()
    server.process.send_signal(number)
    assert await server.wait() == 0
    assert "Traceback" not in log.read_text()


async def test_each_tool_says_within_10_s_that_the_service_is_not_there() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with mcp(address) as host:
        tools = Tools(host)
        for tool, arguments in CALLS.items():
            started = time.monotonic()
            with pytest.raises(Refused) as refusal:
                await tools(tool, **arguments)
            assert time.monotonic() - started < 10
            text = str(refusal.value)
            assert f"The Temporal Service at {address} can't be reached" in text
            assert not re.search(r"https?:|Traceback|rpc|tonic|\{", text)


@pytest.mark.slow  # the client tries for some seconds before each call is given up
async def test_the_server_recovers_when_the_service_comes_back(service: Service) -> None:
    async with mcp(service.address) as host:
        tools = Tools(host)
        with pytest.raises(Refused, match="can't be reached"):
            await tools("list_invoices")
        await service.start()
        assert await tools("list_invoices") == "There are no invoices."
        service.kill()
        calls = (tools(tool, **arguments) for tool, arguments in CALLS.items())
        started = time.monotonic()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - started < 10
        for answer in answers:
            assert isinstance(answer, Refused)
            assert re.search(r"doesn't answer|can't be reached", str(answer))
        await service.start()
        assert await tools("list_invoices") == "There are no invoices."


async def test_without_a_worker_each_tool_answers_within_5_s(namespace: Namespace) -> None:
    invoice = an_invoice()
    name = invoice["id"]
    calls: dict[str, tuple[dict[str, Any], str]] = {
        "process_invoice": ({"invoice_data": invoice}, "goes on when a worker runs"),
        "get_invoice_status": ({"invoice_id": name}, "No worker answers now"),
        "approve_invoice": ({"invoice_id": name}, "takes effect when a worker runs"),
        "reject_invoice": ({"invoice_id": name}, "takes effect when a worker runs"),
        "list_invoices": ({}, f"{name}: Awaiting approval; 2 lines, $7,000.00"),
    }
    async with mcp(namespace.address) as host:
        tools = Tools(host)
        await tools("list_invoices")  # the first call of a process also imports
        for tool, (arguments, words) in calls.items():
            started = time.monotonic()
            assert words in await tools(tool, **arguments)
            assert time.monotonic() - started < 5
        status = await tools.status(invoice)
        assert status["worker_answers"] is False
        assert (status["state"], status["total"]) == ("waiting", "7000.00")


async def test_an_unknown_invoice_is_named(tools: Tools) -> None:
    for tool in ("get_invoice_status", "approve_invoice", "reject_invoice"):
        with pytest.raises(Refused, match="There is no invoice nobody-knows-it"):
            await tools(tool, invoice_id="nobody-knows-it")


async def test_an_unknown_namespace_is_named(address: str) -> None:
    async with mcp(address, env={"TEMPORAL_NAMESPACE": "elsewhere"}) as host:
        for tool, arguments in CALLS.items():
            with pytest.raises(Refused, match="no namespace 'elsewhere'"):
                await Tools(host)(tool, **arguments)


async def test_a_broken_configuration_is_told_by_the_tools(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    async with mcp("", env={"TEMPORAL_CONFIG_FILE": missing}) as host:
        with pytest.raises(Refused, match=r"TEMPORAL_CONFIG_FILE names .*missing.toml"):
            await Tools(host)("list_invoices")


async def test_two_servers_see_one_truth(address: str, worker: Worker) -> None:
    invoice = an_invoice()
    async with mcp(address) as host, mcp(address, "2026-07-28") as other:
        await Tools(host)("process_invoice", invoice_data=invoice)
        await Tools(other)("reject_invoice", invoice_id=invoice["id"])
        assert (await Tools(host).status(invoice))["state"] == "rejected"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't wait for a closed pipe")
@pytest.mark.parametrize("within_a_call", [True, False])
def test_a_host_that_closes_its_side_ends_the_server(
    within_a_call: bool, address: str, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "host", "version": "1"},
    }
    call = {"name": "process_invoice", "arguments": {"invoice_data": an_invoice()}}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, ROOT / "invoice_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(address),
        ) as server,
    ):
        assert server.stdin
        assert server.stdout

        def send(**message: Any) -> None:
            server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]

        send(id=1, method="initialize", params=hello)
        server.stdout.readline()
        send(method="notifications/initialized")
        if within_a_call:
            send(id=2, method="tools/call", params=call)
        server.stdout.close()
        try:
            assert server.wait(10) == 0
        finally:
            server.kill()
    assert "Traceback" not in log.read_text()


async def test_a_worker_that_fails_is_not_told_as_none(
    namespace: Namespace, tmp_path: Path
) -> None:
    worker = await Worker(namespace.address, tmp_path, PROCESSES / "failing_worker.py").start()
    invoice = an_invoice()
    try:
        async with mcp(namespace.address) as host:
            tools = Tools(host)
            await tools("process_invoice", invoice_data=invoice)

            async def failed() -> bool:
                return "worker_failures" in await tools.status(invoice)

            assert await eventually(failed)
            text = await tools("get_invoice_status", invoice_id=invoice["id"])
            assert "A worker took this invoice up and failed" in text
            text = await tools("approve_invoice", invoice_id=invoice["id"])
            assert "A worker took this invoice up and failed" in text
            assert "the decision is kept" in text
            assert "No worker" not in text
    finally:
        worker.kill()


@pytest.mark.slow  # a call waits for 8 s
async def test_a_look_that_is_not_answered_says_nothing_of_effects() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        async with mcp(f"127.0.0.1:{silent.getsockname()[1]}") as host:
            for tool in CALLS:
                with pytest.raises(Refused, match="doesn't answer") as refusal:
                    await Tools(host)(tool, **CALLS[tool])
                looks = tool in ("get_invoice_status", "list_invoices")
                assert ("took effect" in str(refusal.value)) is not looks
