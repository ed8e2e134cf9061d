"""The embedded Temporal dev server, for a worker that finds no service.

Only the worker may start one, and only if no address is configured and nothing listens on
`INVOICE_TEMPORAL_PORT` of this machine.
"""

import asyncio
import errno
import logging
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import temporalio.service
from google.protobuf.duration_pb2 import Duration
from platformdirs import user_cache_path
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.namespace.v1 import NamespaceConfig, UpdateNamespaceInfo
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    UpdateNamespaceRequest,
)
from temporalio.client import Client
from temporalio.envconfig import ClientConnectConfig
from temporalio.runtime import Runtime
from temporalio.service import RPCError

from startup import StartupError
from temporal_service.connection import (
    address_is_configured,
    connect,
    connect_config,
    describe_rpc_error,
    quiet_runtime,
    service_port,
    web_ui_port,
)

RETENTION = timedelta(days=365)
"""The minimum time for which an embedded server keeps closed invoices."""
START_ATTEMPTS = 6
"""One second apart. A server that is ending keeps its ports and database for up to a second."""
LOCK_SECONDS = 60
"""How long to wait for another worker to start its server, which takes seconds."""
DOWNLOAD_SECONDS = 300
"""The limit for the download of the CLI, because a firewall may make it hang."""
LOG_LIMIT = 1_000_000
"""If `temporal.log` has more bytes than this, the next start begins a new one."""
STOP_SECONDS = 5
"""A server needs about one second to end. After this time it is killed."""
DIRECTORY = "invoice_data_dir"
"""The key under which the data of an embedded server's namespace has the server's directory."""

log = logging.getLogger("temporal_service")
_started: list[asyncio.subprocess.Process] = []
"""The server that this process started last, if any."""


@asynccontextmanager
async def connect_or_start(
    directory: Path, search_attributes: tuple[str, ...], metrics_address: str | None = None
) -> AsyncIterator[Client]:
    """Yields a client of the configured service, or of an embedded one.

    If no address is configured, this uses the service on `INVOICE_TEMPORAL_PORT`, unless that
    belongs to another directory. If nothing listens there, it starts a server. It does so again
    whenever this directory's server is gone, because it crashed or because the worker that started
    it has ended. A server that was started here ends with the context.

    Args:
        directory: where the embedded server's `temporal.db`, `temporal.log` and `temporal.port`
            are.
        search_attributes: of type Keyword. The embedded server gets those that are missing.
        metrics_address: see `quiet_runtime`.

    Raises:
        StartupError: no service can be reached or started, it has no such namespace or belongs to
            another directory, this directory's runs on another port, or metrics can't be served.
            It is within an ExceptionGroup if this happens while the context lasts.
    """
    config = connect_config()
    runtime = quiet_runtime(metrics_address)
    if address_is_configured():
        client = await connect(config, runtime=runtime)
        with _rpc_errors_in_words(client):
            await _describe_namespace(client)
        yield client
        return
    server = _DevServer(directory, config, runtime)
    try:
        await server.find_or_start()
        try:
            client = await connect(config, runtime=runtime)
        except StartupError as error:
            raise StartupError(
                f"Port {service_port()} is in use by something that isn't a Temporal Service;"
                " stop it, set INVOICE_TEMPORAL_PORT to another port for the worker, the MCP server"
                " and the audit, or set TEMPORAL_ADDRESS to a service elsewhere."
            ) from error
        with _rpc_errors_in_words(client):
            await server.check(client)
        await _prepare(client, search_attributes)
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(server.keep_running(client, search_attributes))
            yield client
            keeper.cancel()
    finally:
        await server.stop()


def kill_started_servers() -> None:
    """Kills the server that this process has started. May be called in any thread."""
    for process in _started:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()


async def belongs_to(client: Client, directory: Path) -> bool:
    """Whether a worker with this data directory started the service.

    False if the service has no record of a directory, because it was started by hand or by a worker
    of version 1.1.

    Raises:
        StartupError: a worker with another data directory started it.
        RPCError: the service doesn't answer, or has no such namespace.
    """
    description = await _describe_namespace(client)
    other = description.namespace_info.data.get(DIRECTORY)
    if not other:
        return False
    if other == _as_text(directory):
        return True
    with suppress(OSError, ValueError):  # it isn't there any more, or isn't a path
        if directory.samefile(other):  # another name for it, such as one in lower case
            return True
    other = "".join(filter(str.isprintable, other))
    raise StartupError(
        f"The Temporal Service on port {service_port()} was started for the data directory"
        f" {other}, and the data directory here is {_as_text(directory)}. To work on the invoices"
        " of that service, set INVOICE_DATA_DIR to its directory; to work on those here, end its"
        " worker first, or the service if no worker is left, or set INVOICE_TEMPORAL_PORT and"
        " INVOICE_WEB_UI_PORT to other ports. To use that service with the directory here, set"
        f" TEMPORAL_ADDRESS=localhost:{service_port()}."
    )


def dev_server_command(executable: Path, port: int, ui_port: int, namespace: str) -> list[str]:
    """The command of a dev server on 127.0.0.1, with `temporal.db` in its working directory."""
    return [
        *(str(executable), "server", "start-dev", "--ip", "127.0.0.1", "--log-level", "warn"),
        *("--port", str(port), "--ui-port", str(ui_port), "--namespace", namespace),
        # Without a folder, because this becomes part of a URI, where `?`, `#` and `%` are special.
        *("--db-filename", "temporal.db"),
        # The HTTP API refuses every host. Otherwise any web page could send a signal through it.
        *("--dynamic-config-value", "frontend.httpAllowedHosts=[]"),
    ]


async def temporal_executable() -> Path:
    """The Temporal CLI of this Python environment, or from `PATH`, or else the SDK's download.

    Raises:
        StartupError: there is none, and none can be downloaded.
    """
    for path in (sysconfig.get_path("scripts"), None):
        if found := shutil.which("temporal", path=path):
            return Path(found).absolute()  # since the server has a working directory of its own
    return await _downloaded_executable()


class _DevServer:
    """The dev server on `INVOICE_TEMPORAL_PORT`, whether this process or another has started it."""

    def __init__(self, directory: Path, config: ClientConnectConfig, runtime: Runtime) -> None:
        self._directory = directory
        self._log_file = directory / "temporal.log"
        self._port_file = directory / "temporal.port"
        """Has the port of the server that was last started here."""
        self._port, self._ui_port = service_port(), web_ui_port()
        if self._port == self._ui_port:
            raise StartupError(
                f"INVOICE_TEMPORAL_PORT and INVOICE_WEB_UI_PORT are both {self._port}: they must"
                " differ."
            )
        self._config = config
        self._runtime = runtime
        self._process: asyncio.subprocess.Process | None = None
        """None if another process has started it."""
        self._belongs_here = False
        """Whether it is known to be this directory's."""

    async def find_or_start(self) -> None:
        # A second worker waits here until it finds the first one's server.
        async with _one_at_a_time(self._port):
            for _ in range(START_ATTEMPTS):
                if await listens(self._port):
                    return
                await self._expect_none_on_another_port()
                if await self._start():
                    return
                await asyncio.sleep(1)
        if await listens(self._ui_port):
            raise StartupError(
                f"Port {self._ui_port}, for Temporal's Web UI, is in use by another program; stop"
                " it, or set INVOICE_WEB_UI_PORT to another port."
            )
        last_line = self._log_file.read_text("utf-8", "replace").rstrip().rpartition("\n")[2]
        raise StartupError(
            f"The Temporal dev server doesn't start: {last_line} (its database is"
            f" {self._directory / 'temporal.db'}, its log {self._log_file})"
        )

    async def check(self, client: Client) -> None:
        """Finds out whether the server is this directory's. Raises the errors of `belongs_to`."""
        self._belongs_here = await belongs_to(client, self._directory)

    async def keep_running(self, client: Client, search_attributes: tuple[str, ...]) -> None:
        """Starts this directory's server again whenever it has ended. Never returns.

        If another service was there, this waits until that is back. A server with this directory's
        invoices in its place would make people think that the other invoices were lost.

        Raises:
            StartupError: the port now has another directory's service, or no server can be started.
        """
        while True:
            if self._process:
                await self._process.wait()
            else:
                while await listens(self._port):
                    await self._answers(client)
                    await asyncio.sleep(1)
            if self._belongs_here:
                log.warning("The Temporal Service on port %s ended; starting it.", self._port)
                await self.stop()
                await self.find_or_start()
            else:
                log.warning(
                    "The Temporal Service on port %s ended. It was not started for %s, so this"
                    " worker waits for it: start it again. To work on the invoices in that"
                    " directory instead, end this worker and start it again.",
                    self._port,
                    self._directory,
                )
                while not await self._answers(client):
                    await asyncio.sleep(1)
                log.info("The Temporal Service on port %s is back.", self._port)
            await _prepare(client, search_attributes)  # its database may be a new one

    async def _answers(self, client: Client) -> bool:
        try:
            await self.check(client)
        except RPCError:
            return False
        return True

    async def stop(self) -> None:
        """Ends the server if this process has started it."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _expect_none_on_another_port(self) -> None:
        """Two servers must not write to one database.

        Raises:
            StartupError: the server that was last started here still runs, on another port.
        """
        try:
            port = int(self._port_file.read_text("utf-8"))
            if port == self._port or not await listens(port):
                return
            config: ClientConnectConfig = {**self._config, "target_host": f"localhost:{port}"}
            client = await connect(config, runtime=self._runtime)
            runs_there = await belongs_to(client, self._directory)
        except (OSError, OverflowError, ValueError, RPCError, StartupError):
            return
        if runs_there:
            raise StartupError(
                f"The Temporal Service of the data directory {self._directory} already runs on port"
                f" {port}: set INVOICE_TEMPORAL_PORT={port}, or end it and its worker first."
            )

    async def _start(self) -> bool:
        """Starts a server. Returns False if it ends at once, or isn't ready within 30 s."""
        executable = await temporal_executable()
        try:
            self._port_file.write_text(str(self._port), "utf-8")
            with self._open_log() as output:
                self._process = await asyncio.create_subprocess_exec(
                    *dev_server_command(
                        executable, self._port, self._ui_port, self._config["namespace"]
                    ),
                    cwd=self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    # So that Ctrl-C or a closed terminal doesn't end it, because the worker first
                    # finishes the payment under way. The flag does the same on Windows.
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
        except OSError as error:
            raise StartupError(f"The Temporal dev server can't be started: {error}.") from error
        _started[:] = [self._process]
        with suppress(TimeoutError):
            async with asyncio.timeout(30):
                while self._process.returncode is None:
                    with suppress(StartupError, RPCError):
                        client = await connect(self._config, runtime=self._runtime)
                        await _extend_retention(client)
                        # Before others check it. A copied database names another directory.
                        await _update_namespace(
                            client,
                            update_info=UpdateNamespaceInfo(
                                data={DIRECTORY: _as_text(self._directory)}
                            ),
                        )
                        self._belongs_here = True
                        return True
                    await asyncio.sleep(0.1)
        await self.stop()
        return False

    def _open_log(self) -> BinaryIO:
        if self._log_file.exists() and self._log_file.stat().st_size > LOG_LIMIT:
            self._log_file.replace(self._log_file.with_name("temporal.log.1"))
        return self._log_file.open("ab")  # so that a server that crashed leaves its log


@contextmanager
def _rpc_errors_in_words(client: Client) -> Iterator[None]:
    try:
        yield
    except RPCError as error:
        raise StartupError(describe_rpc_error(client, error, read_only=True)) from error


async def _prepare(client: Client, search_attributes: tuple[str, ...]) -> None:
    with suppress(RPCError):  # a service that was found may not allow it
        await _extend_retention(client)
        await _register(client, search_attributes)


async def _extend_retention(client: Client) -> None:
    # By default, the dev server would forget after one day that an invoice was paid.
    description = await _describe_namespace(client)
    if description.config.workflow_execution_retention_ttl.ToTimedelta() < RETENTION:
        retention = Duration()
        retention.FromTimedelta(RETENTION)
        await _update_namespace(
            client, config=NamespaceConfig(workflow_execution_retention_ttl=retention)
        )


async def _update_namespace(client: Client, **changes: Any) -> None:
    """Changes only the named settings; the other keys of the namespace's data stay as they are."""
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(namespace=client.namespace, **changes),
        timeout=timedelta(seconds=5),
    )


async def _register(client: Client, search_attributes: tuple[str, ...]) -> None:
    """Adds the search attributes that the namespace doesn't have yet."""
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=client.namespace,
            search_attributes=dict.fromkeys(search_attributes, keyword),
        ),
        timeout=timedelta(seconds=5),
    )


async def _describe_namespace(client: Client) -> DescribeNamespaceResponse:
    return await client.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace=client.namespace), timeout=timedelta(seconds=4)
    )


def _as_text(directory: Path) -> str:
    # A name on Linux may be bytes that aren't UTF-8.
    return str(directory).encode(errors="backslashreplace").decode()


async def listens(port: int) -> bool:
    """Whether anything on this machine listens on the port."""
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection("localhost", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


@asynccontextmanager
async def _one_at_a_time(port: int) -> AsyncIterator[None]:
    """Lets only one worker with this port at a time look for a server and start one.

    The next worker then finds a server that already has the record of its directory.

    Raises:
        StartupError: it isn't this one's turn within `LOCK_SECONDS`, and there is no server to use.
    """
    # The lock is the UDP port with the service's number, which nothing else uses. On every system,
    # it is free again as soon as the process that holds it ends.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lock:
        if not _bound(lock, port):
            log.info("Another worker is starting its Temporal Service; waiting for it.")
            try:
                async with asyncio.timeout(LOCK_SECONDS):
                    while not _bound(lock, port):
                        await asyncio.sleep(0.2)
            except TimeoutError:
                if not await listens(port):
                    raise StartupError(
                        f"UDP port {port} has been in use for {LOCK_SECONDS} s, by a worker that"
                        " can't start its Temporal Service or by another program; stop it, or set"
                        " INVOICE_TEMPORAL_PORT to another port for the worker, the MCP server and"
                        " the audit."
                    ) from None
        yield


def _bound(lock: socket.socket, port: int) -> bool:
    try:
        lock.bind(("127.0.0.1", port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise StartupError(
                f"UDP port {port} can't be used ({error}); set INVOICE_TEMPORAL_PORT to another."
            ) from error
        return False
    return True


async def _downloaded_executable() -> Path:
    directory = user_cache_path("invoice-processor")
    suffix = sysconfig.get_config_var("EXE") or ""  # `.exe` on Windows
    executable = directory / f"temporal-sdk-python-{temporalio.service.__version__}{suffix}"
    if not executable.exists():
        log.info("Downloading the Temporal CLI, once, into %s", directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            problem = await download(directory)
        except OSError as error:
            problem = str(error) or f"not done after {DOWNLOAD_SECONDS} s"
        if problem:
            raise StartupError(
                f"There is no Temporal CLI here, and it can't be downloaded ({problem}). Put"
                " `temporal` on PATH (macOS: brew install temporal; else the archive from"
                " Temporal's site), or set TEMPORAL_ADDRESS to a service that runs."
            )
    return executable


async def download(directory: Path) -> str:
    """Downloads the CLI. Returns the last line of the error, or an empty string."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        Path(__file__).with_name("download_cli.py"),
        directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DOWNLOAD_SECONDS):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return errors.decode(errors="replace").strip().rpartition("\n")[2] if process.returncode else ""
