"""A web hook that is as bad as a stranger's server can be."""

import asyncio
import json
import random
import time
import zlib
from collections import Counter
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Literal, Self
from uuid import uuid4

Conduct = Literal["hang", "dribble", "endless", "inflate", "refuse", "close", "accept"]
CONDUCTS: dict[Conduct, int] = {
    "hang": 8,
    "dribble": 4,
    "endless": 1,
    "inflate": 1,
    "refuse": 2,
    "close": 2,
    "accept": 2,
}
"""How often each is chosen, out of twenty."""

MIB = 2**20
ENDLESS_MIB = 1024
"""The limit for an endless answer, in case a worker keeps all of it in memory."""


class HangingHook(AbstractAsyncContextManager["HangingHook"]):
    """Takes notices on a free port, and misbehaves at random when it answers."""

    def __init__(self, chance: random.Random) -> None:
        self.secret = uuid4().hex
        """Part of the address, because anyone who knows that can post."""
        self.posted: list[Any] = []
        self.conduct: Counter[str] = Counter()
        self.only_hangs = True
        """True at first, so that soon as many notices hang as workers can post at once."""
        self.hanging = 0
        """How many notices hang now."""
        self.most = 0
        self.given_up = 0
        """How many notices hung until a worker gave up or was killed."""
        self.longest = 0.0
        """The longest time that a notice hung, in seconds."""
        self._chance = chance
        self._changed = time.monotonic()
        self._endless = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/{self.secret}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def seconds_unchanged(self) -> float:
        """How long the number of hanging notices hasn't changed."""
        return time.monotonic() - self._changed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            # The worker gives up, or was killed.
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._take(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        self.posted.append(json.loads(await reader.readexactly(length)))
        conduct = self._choose()
        self.conduct[conduct] += 1
        match conduct:
            case "hang" | "dribble":
                self.hanging += 1
                self.most = max(self.most, self.hanging)
                self._changed = began = time.monotonic()
                try:
                    await self._hang(reader, writer, conduct)
                finally:
                    self.hanging -= 1
                    self.given_up += 1
                    self._changed = time.monotonic()
                    self.longest = max(self.longest, self._changed - began)
            case "endless" | "inflate":
                async with self._endless:
                    await self._answer_without_end(writer, conduct)
            case "refuse":
                writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
            case "accept":
                writer.write(b"HTTP/1.1 204 Yes\r\n\r\n")
            case "close":
                pass
        await writer.drain()

    def _choose(self) -> Conduct:
        if self.only_hangs:
            return self._chance.choice(["hang", "dribble"])
        conduct = self._chance.choices(list(CONDUCTS), list(CONDUCTS.values()))[0]
        return "refuse" if conduct in ("endless", "inflate") and self._endless.locked() else conduct

    async def _hang(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, conduct: Conduct
    ) -> None:
        """Hangs until the worker hangs up. With `dribble`, sends a byte now and then."""
        if conduct == "dribble":
            writer.write(b"HTTP/1.1 200 Yes\r\nX-Slow: ")
        while not reader.at_eof():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await reader.read(1)
            if conduct == "dribble":
                writer.write(b"x")
                await writer.drain()

    async def _answer_without_end(self, writer: asyncio.StreamWriter, conduct: Conduct) -> None:
        writer.write(b"HTTP/1.1 200 Yes\r\nContent-Type: text/plain\r\nConnection: close\r\n")
        chunk = b"x" * MIB
        if conduct == "inflate":
            writer.write(b"Content-Encoding: gzip\r\n")
            gzip = zlib.compressobj(wbits=31)
            first = gzip.compress(chunk) + gzip.flush(zlib.Z_FULL_FLUSH)
            # After a full flush a chunk doesn't refer to those before it, so it can be repeated.
            chunk = gzip.compress(chunk) + gzip.flush(zlib.Z_FULL_FLUSH)
            writer.write(b"\r\n" + first)
        else:
            writer.write(b"\r\n")
        for _ in range(ENDLESS_MIB):
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)
