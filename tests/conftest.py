"""One Temporal Service, one worker and two MCP servers for the tests that don't harm them."""

import gc
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client

from hooks import Hook, a_hook, accept
from payments.ledger import SQLiteLedger
from postgres import PostgreSQL, programs
from stripe_stand_in import StripeStandIn
from support import (
    ERAS,
    Namespace,
    Service,
    Tools,
    Worker,
    connect,
    eventually,
    host_here,
    mcp,
    tools_of,
)

if TYPE_CHECKING:  # the import takes a second, and the unit tests don't need it
    from fastmcp import Client as McpClient

SHARED = pytest.StashKey[Path]()
SERVICE = pytest.StashKey[Service]()
HERE = Path(__file__).parent
UNIT = HERE / "unit"
NAMESPACES = 250
"""How many tests and processes can have their own namespace; about 50 do."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--temporal-address",
        metavar="HOST:PORT",
        help="run on this Temporal Service instead of one started for the tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes one folder for all processes of pytest-xdist. The main process removes it."""
    workerinput = getattr(config, "workerinput", None)
    config.stash[SHARED] = Path(workerinput["shared"] if workerinput else mkdtemp(prefix="tests-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["shared"] = str(node.config.stash[SHARED])


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    folder = config.stash[SHARED]
    if (folder / "pid").exists():
        with suppress(psutil.NoSuchProcess):
            service = psutil.Process(int((folder / "pid").read_text()))
            service.kill()
            service.wait(10)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    # Two processes are enough for unit tests. pytest-xdist gives its own processes a 0 here.
    if config.option.numprocesses and only_unit_tests(config):
        config.option.numprocesses = 2


def only_unit_tests(config: pytest.Config) -> bool:
    named = [config.invocation_params.dir / arg.partition("::")[0] for arg in config.args]
    return config.option.markexpr == "unit" or all(UNIT in (p, *p.parents) for p in named)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m unit`, doesn't import other files, which would take longer than the tests."""
    if config.option.markexpr == "unit" and collection_path.parent == HERE:
        return collection_path != UNIT or None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Each process collects all tests: in half the time if it looks for no garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()  # nor is it looked for later in what was imported
        gc.enable()


@pytest.fixture(scope="session")
async def new_namespace(pytestconfig: pytest.Config) -> Callable[[], str]:
    """Each call gives the address of a new namespace of the service that all tests share."""
    folder = pytestconfig.stash[SHARED]
    names = [f"namespace-{n}" for n in range(NAMESPACES)]
    address = folder / "address"
    try:
        (folder / "temporal").mkdir()
    except FileExistsError:  # another process starts it

        async def started() -> bool:
            return address.exists()

        await eventually(started, 60)
    else:
        service = Service(folder / "temporal", names)
        await service.start()
        assert service.process
        (folder / "pid").write_text(str(service.process.pid))
        (folder / "starting").write_text(service.address)
        (folder / "starting").rename(address)
        pytestconfig.stash[SERVICE] = service  # `pytest_unconfigure` ends it

    def take() -> str:
        for name in names:
            with suppress(FileExistsError):
                (folder / name).mkdir()  # only one process succeeds
                return f"{address.read_text()}/{name}"
        raise LookupError("all namespaces are in use")

    return take


@pytest.fixture(scope="session")
async def address(pytestconfig: pytest.Config, new_namespace: Callable[[], str]) -> str:
    """The address of the shared Temporal Service, with a namespace for this process."""
    return pytestconfig.getoption("--temporal-address") or new_namespace()


@pytest.fixture
def namespace(new_namespace: Callable[[], str]) -> Namespace:
    """A namespace for one test, which runs its own workers there, or none."""
    return Namespace(new_namespace())


@pytest.fixture(scope="module")
async def equipped(new_namespace: Callable[[], str]) -> Namespace:
    """A namespace for one test file, which has the search attribute."""
    namespace = Namespace(new_namespace())
    client = await namespace.connect()
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=client.namespace, search_attributes={"InvoiceState": keyword}
        )
    )
    return namespace


@pytest.fixture(scope="session")
async def client(address: str) -> Client:
    """A client that isn't ours, such as the `temporal` CLI or the Web UI."""
    return await connect(address)


@pytest.fixture(scope="session")
async def worker(address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """The worker that the tests share. The ledger is in the folder `data`."""
    # One ledger for all test processes, since with --temporal-address they share a task queue.
    base = tmp_path_factory.getbasetemp()
    data = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"
    data.mkdir(exist_ok=True)
    async with Worker(address, data) as worker:
        yield worker


@pytest.fixture(scope="module")
async def own_worker(
    new_namespace: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Worker]:
    """A worker for one test file, whose tests may take its ledger or gateway away."""
    async with Worker(new_namespace(), tmp_path_factory.mktemp("data")) as worker:
        yield worker


@pytest.fixture(scope="session", params=ERAS)
async def tools(
    request: pytest.FixtureRequest, address: str, worker: Worker
) -> AsyncIterator[Tools]:
    """The tools of an MCP server that the tests share, over stdio, in both eras of MCP."""
    async with mcp(address, request.param) as client:
        yield Tools(client)


@pytest.fixture
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the variables of this process that are settings of ours or of Temporal's."""
    for name in [name for name in os.environ if name.startswith(("TEMPORAL_", "INVOICE_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def configure(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, str]], None]:
    """Sets these variables, and no others of Temporal's. The MCP server here connects anew."""
    import invoice_server

    def configure(env: dict[str, str]) -> None:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(invoice_server, "shared_client", None)

    return configure


@pytest.fixture(scope="session")
async def host_of_all() -> "AsyncIterator[McpClient[Any]]":
    async with host_here() as host:
        yield host


@pytest.fixture
async def tools_here(
    address: str, worker: Worker, host_of_all: "McpClient[Any]"
) -> AsyncIterator[Tools]:
    """The tools in this process, if neither the server's process nor the era matters."""
    async with tools_of(host_of_all, address) as tools:
        yield tools


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(tmp_path / "payments.db")) as ledger:
        yield ledger


@pytest.fixture
def stand_in() -> Iterator[StripeStandIn]:
    with StripeStandIn() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
async def hook() -> AsyncIterator[Hook]:
    async with a_hook(accept) as hook:
        yield hook


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A Temporal Service for one test, which may kill and restart it. It isn't started yet."""
    service = Service(tmp_path)
    try:
        yield service
    finally:
        service.kill()


@pytest.fixture(scope="session")
async def postgresql() -> AsyncIterator[PostgreSQL]:
    """A PostgreSQL server for tests that harm only their own database."""
    if programs() is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    server = PostgreSQL()
    try:
        await server.start()
        yield server
    finally:
        server.remove()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks the tests that don't need a Temporal Service and those that take long, by folder."""
    if mark := {"unit": "unit", "faults": "slow"}.get(item.path.parent.name):
        item.add_marker(mark)


LONGEST = [
    "service/test_secrets.py",
    "hosts/test_card_in_a_browser.py",
    "faults/test_dev_server.py",
    "faults/test_campaign_with_stripe.py",
    "service/test_two_people.py",
    "faults/test_campaign.py",
    "faults/test_killed_processes.py",
    "hosts/test_inspector.py",
    "service/test_audit.py",
    "service/test_without_a_worker.py",
    "service/test_other_clients.py",
    "service/test_late_decisions.py",
    "service/test_deciding.py",
    "faults/test_largest_invoices.py",
    "faults/test_shared_ledger.py",
    "hosts/test_card.py",
    "service/test_tutorial.py",
    "service/test_traces.py",
    "faults/test_misbehaving_hooks.py",
    "hosts/test_two_users.py",
]
"""The files that take longer than 20 s, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest files first, so that none still runs when all others have ended.

    Then come those that mostly wait, and of those the ones with the most tests.
    """
    longest = {HERE / name: place for place, name in enumerate(LONGEST)}
    order = {"faults": 0, "hosts": 1, "service": 2, "unit": 3}
    tests = Counter(item.path for item in items)

    def place(item: pytest.Item) -> tuple[int, int, int]:
        path = item.path
        folder = order.get(path.parent.name, 0)
        return longest.get(path, len(LONGEST)), folder, -tests[path]

    items.sort(key=place)
