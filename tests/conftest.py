"""One Temporal Service, one worker and two MCP servers for the tests that harm none of them."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.client import Client

from payments.ledger import SQLiteLedger
from postgres import PostgreSQL, programs
from support import Service, Tools, Worker, connect, mcp

ERAS = ["legacy", "2026-07-28"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--temporal-address",
        metavar="HOST:PORT",
        help="run on this Temporal Service instead of one started for the tests",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    if config.option.markexpr == "unit":
        config.option.numprocesses = 0  # these take less time than to start three processes


@pytest.fixture(scope="session")
async def address(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """Of the Temporal Service that the tests share."""
    if given := request.config.getoption("--temporal-address"):
        yield given
        return
    service = Service(tmp_path_factory.mktemp("service"))
    try:
        await service.start()
        yield service.address
    finally:
        service.kill()


@pytest.fixture(scope="session")
async def client(address: str) -> Client:
    """Another client than ours, such as the `temporal` CLI or the Web UI."""
    return await connect(address)


@pytest.fixture(scope="session")
async def worker(address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """The worker that the tests share; its `data` has the ledger."""
    # One ledger for all test processes, since with --temporal-address they share a task queue.
    base = tmp_path_factory.getbasetemp()
    data = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"
    data.mkdir(exist_ok=True)
    worker = Worker(address, data)
    try:
        yield await worker.start()
    finally:
        worker.kill()


@pytest.fixture(scope="session", params=ERAS)
async def tools(
    request: pytest.FixtureRequest, address: str, worker: Worker
) -> AsyncIterator[Tools]:
    """The tools of an MCP server that the tests share, over stdio, in both eras of MCP."""
    async with mcp(address, request.param) as client:
        yield Tools(client)


@pytest.fixture
def ledger(tmp_path: Path) -> SQLiteLedger:
    return SQLiteLedger(tmp_path / "payments.db")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A Temporal Service of the test's own, to be killed and started again. Not yet started."""
    service = Service(tmp_path)
    try:
        yield service
    finally:
        service.kill()


@pytest.fixture(scope="session")
async def postgresql() -> AsyncIterator[PostgreSQL]:
    """A PostgreSQL server for tests that harm none but their own database."""
    if programs() is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    server = PostgreSQL()
    try:
        await server.start()
        yield server
    finally:
        server.remove()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Those that wait long come first, so that the others fill the time.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
