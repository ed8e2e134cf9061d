"""The MCP server as a process: its output is only the protocol, and its errors are clear."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client as McpClient

import invoice_server
from raw_client import RawClient
from support import (
    PROCESSES,
    ROOT,
    Namespace,
    Refused,
    Tools,
    Worker,
    an_invoice,
    answers_of_all_tools,
    environment,
    eventually,
    free_port,
    mcp,
    tools_in_memory,
)


async def test_standard_output_is_json_rpc_from_the_first_byte(namespace: Namespace) -> None:
    async with RawClient(
        namespace.address, TEMPORAL_LOG_LEVEL="debug", FASTMCP_LOG_LEVEL="DEBUG"
    ) as server:
        invoice = an_invoice()
        taken = await server.call("process_invoice", invoice_data=invoice)
        assert taken["isError"] is False
        assert taken["structuredContent"]["worker_answers"] is False
        assert await server.call("approve_invoice", invoice_id=invoice["id"])
        assert await server.end() == 0
        assert server.unclaimed.empty()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_server_cleanly(number: int, address: str, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    async with RawClient(address, log=log) as server:
        server.process.send_signal(number)
        assert await server.wait() == 0
    assert "Traceback" not in log.read_text()


async def test_each_tool_says_that_the_service_is_not_there(
    configure: Callable[[dict[str, str]], None],
) -> None:
    address = f"127.0.0.1:{free_port()}"
    configure(environment(address))
    async with McpClient(invoice_server.mcp) as host:
        answers = await answers_of_all_tools(Tools(host))
    for text in answers.values():
        assert f"The Temporal Service at {address} can't be reached" in text
        assert not re.search(r"https?:|Traceback|rpc|tonic|\{", text)


async def test_each_tool_names_an_address_that_is_not_one(
    configure: Callable[[dict[str, str]], None],
) -> None:
    configure(environment("localhost:72333"))
    async with McpClient(invoice_server.mcp) as host:
        for text in (await answers_of_all_tools(Tools(host))).values():
            assert "TEMPORAL_ADDRESS must be host:port" in text
            assert text.endswith(", and is 'localhost:72333'.")


async def test_an_unknown_invoice_is_named(address: str) -> None:
    async with tools_in_memory(address) as tools:
        for tool in ("get_invoice_status", "approve_invoice", "reject_invoice"):
            with pytest.raises(Refused, match="There is no invoice nobody-knows-it"):
                await tools(tool, invoice_id="nobody-knows-it")


async def test_an_unknown_namespace_is_named(
    address: str, configure: Callable[[dict[str, str]], None]
) -> None:
    configure(environment(f"{address.partition('/')[0]}/elsewhere"))
    async with McpClient(invoice_server.mcp) as host:
        for text in (await answers_of_all_tools(Tools(host))).values():
            assert "no namespace 'elsewhere'" in text


async def test_two_servers_see_the_same_state(address: str, worker: Worker) -> None:
    invoice = an_invoice()
    async with mcp(address, "2026-07-28") as host, tools_in_memory(address) as other:
        await Tools(host)("process_invoice", invoice_data=invoice)
        await other("reject_invoice", invoice_id=invoice["id"])
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


async def test_a_failing_worker_is_not_reported_as_missing(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invoice_runs.QUERY_SECONDS", 0.5)  # it would answer no query later either
    async with Worker(namespace.address, tmp_path, PROCESSES / "failing_worker.py"):
        invoice = an_invoice()
        async with tools_in_memory(namespace.address) as tools:
            await tools("process_invoice", invoice_data=invoice)

            async def failed() -> bool:
                return "worker_failures" in await tools.status(invoice)

            assert await eventually(failed)
            text = await tools("get_invoice_status", invoice_id=invoice["id"])
            assert "A worker tried to process this invoice and failed" in text
            text = await tools("approve_invoice", invoice_id=invoice["id"])
            assert "A worker tried to process this invoice and failed" in text
            assert "the decision is kept" in text
            assert "No worker" not in text


async def test_an_unanswered_read_says_nothing_about_effects(
    configure: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_server, "TOOL_SECONDS", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        configure(environment(f"127.0.0.1:{silent.getsockname()[1]}"))
        async with McpClient(invoice_server.mcp) as host:
            answers = await answers_of_all_tools(Tools(host))
    for tool, text in answers.items():
        assert "didn't answer in time" in text
        looks = tool in ("get_invoice_status", "list_invoices")
        assert ("took effect" in text) is not looks
