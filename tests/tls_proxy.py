"""A proxy that adds TLS, client certificates and API keys to a Temporal Service."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hpack

PREFACE = 24
"""Bytes that an HTTP/2 client sends before its first frame."""
HEADERS = 1
REFUSED = {
    ":status": "200",
    "content-type": "application/grpc",
    "grpc-status": "16",  # UNAUTHENTICATED
    "grpc-message": "Request unauthorized.",
}


@asynccontextmanager
async def tls_proxy(port: int, tls: ssl.SSLContext, api_key: str = "") -> AsyncIterator[str]:
    """Yields the address of a TLS endpoint in front of the plain Temporal Service on `port`.

    Args:
        api_key: if set, the first call without it makes the proxy refuse that call and all later
            ones on its connection.
    """
    open_ends: set[asyncio.StreamWriter] = set()

    async def connected(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        service, to_service = await asyncio.open_connection("127.0.0.1", port)
        open_ends.add(to_client)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_requests(client, to_service, to_client, api_key))
                tasks.create_task(_answers(service, to_client))
        except* (OSError, asyncio.IncompleteReadError):
            pass  # one side has ended the connection
        finally:
            to_service.close()
            to_client.close()
            open_ends.remove(to_client)

    tls.set_alpn_protocols(["h2"])
    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for to_client in open_ends:
            to_client.close()


async def _requests(
    client: asyncio.StreamReader,
    to_service: asyncio.StreamWriter,
    to_client: asyncio.StreamWriter,
    api_key: str,
) -> None:
    to_service.write(await client.readexactly(PREFACE))
    headers = hpack.Decoder()  # it has a state, so it must see every header of the connection
    refused = False
    while True:
        head, payload = await _frame(client)
        if api_key and head[3] == HEADERS:
            assert head[4] & 0b101100 == 0b100, "padding, priority or more frames"
            given = dict(headers.decode(payload, raw=True)).get(b"authorization")
            refused |= given != f"Bearer {api_key}".encode()
            if refused:
                to_client.write(_refusal(head))
        if not refused:
            to_service.write(head + payload)
        await to_service.drain()


async def _answers(service: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
    while True:
        to_client.write(b"".join(await _frame(service)))  # whole: a refusal may follow
        await to_client.drain()


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A frame's head (length: 3 bytes, kind: 1, flags: 1, stream: 4) and its payload."""
    head = await reader.readexactly(9)
    return head, await reader.readexactly(int.from_bytes(head[:3], "big"))


def _refusal(request: bytes) -> bytes:
    """A refusal of the request whose HEADERS frame has this head."""
    # Not indexed, so that the header compression between service and client stays in step.
    payload = hpack.Encoder().encode([(key, value, True) for key, value in REFUSED.items()])
    end_of_headers_and_stream = b"\5"
    return (
        len(payload).to_bytes(3, "big")
        + bytes([HEADERS])
        + end_of_headers_and_stream
        + request[5:]
        + payload
    )
