"""Web hooks for a worker's notices, both well behaved and not."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from support import AnInvoice, eventually, id_of

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def accept(writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


async def fail(writer: asyncio.StreamWriter) -> None:
    writer.write(OK.replace(b"200 OK", b"503 Unavailable"))


def respond(*statuses: int) -> Answer:
    """Answers with these statuses in turn, and with 200 after that."""
    left = list(statuses)

    async def answer(writer: asyncio.StreamWriter) -> None:
        status = left.pop(0) if left else 200
        writer.write(OK.replace(b"200 OK", f"{status} As told".encode()))

    return answer


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def dribble(writer: asyncio.StreamWriter) -> None:
    """Sends headers byte by byte, without end."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-More: ")
    while True:
        writer.write(b"a")
        await asyncio.sleep(0.05)


async def never_end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(bytes(2**16))
        await writer.drain()


def redirect(location: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"200 OK", b"302 Found\r\nLocation: " + location.encode()))

    return answer


class Hook:
    """A web hook that answers as told. Each post has its own connection."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.posts: list[dict[str, Any]] = []
        self.ended = 0
        """How many posts were answered or given up."""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        [length] = [line[15:] for line in head.splitlines() if line.startswith("Content-Length:")]
        self.posts.append(json.loads(await reader.readexactly(int(length))))
        answering = asyncio.ensure_future(self.answer(writer))
        gone = asyncio.ensure_future(reader.read())
        await asyncio.wait([answering, gone], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() or answering.exception():
            answering.cancel()
        self.ended += 1
        gone.cancel()
        with suppress(OSError, asyncio.CancelledError):
            await answering
            await writer.drain()
        writer.close()

    def of(self, invoice: AnInvoice) -> list[dict[str, Any]]:
        return [post for post in self.posts if post["invoice_id"] == id_of(invoice)]

    def events(self, invoice: AnInvoice) -> list[str]:
        return [post["event"] for post in self.of(invoice)]

    async def until(self, invoice: AnInvoice, *events: str) -> list[dict[str, Any]]:
        """Waits for posts about exactly these events of an invoice, and returns them."""
        await eventually(lambda: self.events(invoice) == list(events))
        return self.of(invoice)


@asynccontextmanager
async def a_hook(answer: Answer) -> AsyncIterator[Hook]:
    hook = Hook(answer)
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    hook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret-token"
    try:
        yield hook
    finally:
        server.close()
