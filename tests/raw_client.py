"""A client that writes JSON-RPC itself, to send what client libraries don't, and to be fast."""

import asyncio
import json
import sys
from itertools import count
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Self

from support import ROOT, environment

CLIENT = {"name": "raw", "version": "1"}


class RawClient:
    """An MCP server process, and a connection to it with JSON-RPC lines over stdio.

    Args:
        era: `legacy` begins with a handshake. Any other value is the protocol version that each
            request has in its `_meta`.
        capabilities: the capabilities that the client declares.
        log: the file for the server's standard error.
    """

    def __init__(
        self,
        address: str = "",
        era: str = "legacy",
        *,
        script: Path = ROOT / "invoice_server.py",
        capabilities: dict[str, Any] | None = None,
        log: Path | None = None,
        **env: str,
    ) -> None:
        self.era = era
        self.script = script
        self.capabilities = capabilities or {}
        self.log = log
        self.environment = environment(address, **env)
        self.numbers = count(1)
        self.waiting: dict[int, asyncio.Future[dict[str, Any] | None]] = {}
        self.unclaimed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> dict[str, Any]:
        """Starts or restarts the server. Returns its side of the handshake, if there is one."""
        errors = self.log.open("ab") if self.log else DEVNULL
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                self.script,
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                env=self.environment,
                limit=2**22,
            )
        finally:
            if not isinstance(errors, int):
                errors.close()
        self.reader = asyncio.create_task(self._read())
        if self.era != "legacy":
            return {}
        hello = await self.request(
            "initialize",
            protocolVersion="2025-11-25",
            capabilities=self.capabilities,
            clientInfo=CLIENT,
        )
        await self.send(method="notifications/initialized")
        return hello

    async def end(self) -> int:
        """Closes the server's input; returns its exit code."""
        assert self.process.stdin
        self.process.stdin.close()
        return await self.wait()

    async def wait(self) -> int:
        """Waits until the server has ended. Fails if it wrote anything but JSON-RPC."""
        async with asyncio.timeout(20):
            await self.reader
            return await self.process.wait()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.wait()

    async def send_line(self, line: bytes) -> None:
        """Sends a line as it is.

        Raises:
            ConnectionError: the server has ended.
        """
        assert self.process.stdin
        if self.reader.done():
            raise ConnectionError
        self.process.stdin.write(line + b"\n")
        await self.process.stdin.drain()

    async def send(self, **message: Any) -> None:
        await self.send_line(json.dumps({"jsonrpc": "2.0", **message}).encode())

    async def receive(self) -> dict[str, Any]:
        """The next message that isn't an answer to `request`."""
        return await asyncio.wait_for(self.unclaimed.get(), 30)

    async def request(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a request; returns the whole answer, with `result` or `error`.

        Raises:
            ConnectionError: the server ended before it answered.
        """
        number = next(self.numbers)
        self.waiting[number] = asyncio.get_running_loop().create_future()
        if self.era != "legacy":
            params["_meta"] = {
                "io.modelcontextprotocol/protocolVersion": self.era,
                "io.modelcontextprotocol/clientInfo": CLIENT,
                "io.modelcontextprotocol/clientCapabilities": self.capabilities,
            }
        try:
            await self.send(id=number, method=method, params=params)
            async with asyncio.timeout(60):
                answer = await self.waiting[number]
        finally:
            del self.waiting[number]
        if not answer:
            raise ConnectionError
        return answer

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of a tool, which may be an error of the tool's."""
        answer = await self.request("tools/call", name=tool, arguments=arguments)
        result: dict[str, Any] = answer["result"]
        return result

    async def _read(self) -> None:
        assert self.process.stdout
        try:
            async for line in self.process.stdout:
                if not line.endswith(b"\n"):
                    break  # cut off by a kill
                message = json.loads(line)
                assert message["jsonrpc"] == "2.0"
                request = None if "method" in message else self.waiting.get(message["id"])
                if request:
                    request.set_result(message)
                else:
                    self.unclaimed.put_nowait(message)
        finally:
            for request in self.waiting.values():
                if not request.done():
                    request.set_result(None)
