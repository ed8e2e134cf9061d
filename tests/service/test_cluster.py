"""From one machine to a cluster or Temporal Cloud: by `TEMPORAL_*` variables or a profile alone.

The Temporal Service is behind TLS and wants a client certificate or an API key.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from fastmcp import Client as McpClient

import invoice_server
from reports import SEARCH_ATTRIBUTES
from startup import StartupError
from support import Refused, Tools, Worker, an_invoice, free_port, paid
from temporal_service.dev_server import connect_or_start
from tls_proxy import tls_proxy

Settings = dict[str, str]
"""Named as in a TOML profile, but with `tls_x` in place of `tls.x`."""


@pytest.fixture(scope="module")
async def plain(new_namespace: Callable[[], str]) -> Settings:
    """The address of the service behind the TLS endpoints, and a new namespace."""
    address, _, namespace = new_namespace().partition("/")
    return {"address": address, "namespace": namespace}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    file = tmp_path_factory.mktemp("authority") / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    return {"tls_server_ca_cert_path": str(file)}


@pytest.fixture(scope="module")
async def by_certificate(
    plain: Settings,
    authority: trustme.CA,
    trusting: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Settings]:
    """The settings for an endpoint that requires client certificates."""
    folder = tmp_path_factory.mktemp("client")
    certificate = authority.issue_cert("invoices@example.com")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "client.key"))
    tls = server_side(authority)
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    async with tls_proxy(port_of(plain), tls) as address:
        yield {
            **plain,
            "address": address,
            "tls_client_cert_path": str(folder / "client.pem"),
            "tls_client_key_path": str(folder / "client.key"),
            **trusting,
        }


@pytest.fixture(scope="module")
async def by_key(
    plain: Settings, authority: trustme.CA, trusting: Settings
) -> AsyncIterator[Settings]:
    """The settings for an endpoint that requires an API key."""
    async with tls_proxy(port_of(plain), server_side(authority), "a-key") as address:
        yield {**plain, "address": address, "api_key": "a-key", **trusting}


def port_of(settings: Settings) -> int:
    return int(settings["address"].partition(":")[2])


def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def variables(settings: Settings, folder: Path) -> dict[str, str]:
    return {f"TEMPORAL_{name.upper()}": value for name, value in settings.items()}


def profile(settings: Settings, folder: Path) -> dict[str, str]:
    file = folder / "temporal.toml"
    lines = [f"{k.replace('tls_', 'tls.')} = {json.dumps(v)}" for k, v in settings.items()]
    file.write_text("\n".join(["[profile.accounts]", *lines]), encoding="utf-8")
    return {"TEMPORAL_CONFIG_FILE": str(file), "TEMPORAL_PROFILE": "accounts"}


Configured = Callable[[Settings, Path], dict[str, str]]


Pay = Callable[[dict[str, str]], Awaitable[None]]


@pytest.fixture
def pay(configure: Callable[[dict[str, str]], None], tmp_path: Path) -> Pay:
    """Submits, approves and pays an invoice with only the variables in `env`."""

    async def pay(env: dict[str, str]) -> None:
        worker = Worker("", tmp_path)
        del worker.environment["TEMPORAL_ADDRESS"]
        worker.environment |= env
        configure(env)
        invoice = an_invoice()
        async with worker, McpClient(invoice_server.mcp) as client:
            tools = Tools(client)
            await tools("process_invoice", invoice_data=invoice)
            await tools("approve_invoice", invoice_id=invoice["id"])
            await tools.until(invoice, "completed")
        assert len(paid(tmp_path, invoice)) == 2

    return pay


@pytest.mark.parametrize("configured", [variables, profile])
async def test_invoice_is_paid_with_client_certificates(
    by_certificate: Settings, configured: Configured, pay: Pay, tmp_path: Path
) -> None:
    await pay(configured(by_certificate, tmp_path))


@pytest.mark.parametrize("configured", [variables, profile])
async def test_invoice_is_paid_with_an_api_key(
    by_key: Settings, configured: Configured, pay: Pay, tmp_path: Path
) -> None:
    await pay(configured(by_key, tmp_path))


Said = Callable[[dict[str, str]], Awaitable[tuple[str, str]]]


@pytest.fixture
def said(configure: Callable[[dict[str, str]], None], tmp_path: Path) -> Said:
    """The error messages of a worker and of a tool under a wrong configuration."""

    async def worker() -> str:  # `test_worker.py` tests the process
        with pytest.raises(StartupError) as problem:
            async with asyncio.timeout(60), connect_or_start(tmp_path, SEARCH_ATTRIBUTES):
                pytest.fail("it connected")
        return str(problem.value)

    async def tool() -> str:
        async with McpClient(invoice_server.mcp) as client, asyncio.timeout(60):
            with pytest.raises(Refused) as refused:
                await Tools(client)("list_invoices")
            return str(refused.value)

    async def both(env: dict[str, str]) -> tuple[str, str]:
        configure(env)
        return await asyncio.gather(worker(), tool())

    return both


async def test_wrong_api_key_is_named(said: Said, by_key: Settings, tmp_path: Path) -> None:
    for sentence in await said(variables({**by_key, "api_key": "another"}, tmp_path)):
        assert f"The Temporal Service at {by_key['address']} refuses the credentials" in sentence


async def test_missing_client_certificate_gives_no_traceback(
    said: Said, by_certificate: Settings, tmp_path: Path
) -> None:
    settings = {key: value for key, value in by_certificate.items() if "client" not in key}
    for sentence in await said(variables(settings, tmp_path)):
        assert f"The Temporal Service at {settings['address']} " in sentence


async def test_missing_configuration_file_is_named(said: Said, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.toml")
    for sentence in await said({"TEMPORAL_CONFIG_FILE": missing}):
        assert f"TEMPORAL_CONFIG_FILE is {missing}, which doesn't exist" in sentence


async def test_address_that_refuses_is_named(said: Said) -> None:
    address = f"127.0.0.1:{free_port()}"
    for sentence in await said({"TEMPORAL_ADDRESS": address}):
        assert f"The Temporal Service at {address} can't be reached" in sentence


async def test_address_that_never_answers_is_named(said: Said) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        worker, tool = await said({"TEMPORAL_ADDRESS": address})
    assert f"The Temporal Service at {address} can't be reached" in worker
    assert f"The Temporal Service at {address} didn't answer in time" in tool


async def test_missing_namespace_is_named(said: Said, plain: Settings) -> None:
    env = {"TEMPORAL_ADDRESS": plain["address"], "TEMPORAL_NAMESPACE": "accounts"}
    for sentence in await said(env):
        assert f"{plain['address']} has no namespace 'accounts'" in sentence
