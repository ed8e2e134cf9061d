"""The embedded Temporal dev server, for a worker that finds no service.

Only the worker may start one, and only if no address is configured and nothing listens on
localhost:7233.
"""

import asyncio
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.duration_pb2 import Duration
from platformdirs import user_cache_path
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, UpdateNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from startup import StartupError
from temporal_service import connection
from temporal_service.connection import (
    configured,
    connect,
    connect_config,
    describe_rpc_error,
    quiet_runtime,
)

RETENTION = timedelta(days=365)
"""How long the embedded server remembers closed invoices."""
CLI_SOURCE = "github.com/temporalio/cli/cmd/temporal@v1.5.1"
"""Later versions have a `replace` in their go.mod, which `go install` refuses."""

log = logging.getLogger("temporal_service")


@asynccontextmanager
async def connect_or_start(directory: Path) -> AsyncIterator[Client]:
    """A client of the configured service, or of an embedded one while the context lasts.

    The embedded dev server is started if no address is configured and nothing listens on
    localhost:7233; `directory` has its database and its log.

    Raises:
        StartupError: no service can be reached or started, or it has no such namespace.
    """
    address_configured = "target_host" in configured()
    config = connect_config()
    if address_configured or await _listens(connection.PORT):
        try:
            client = await connect(config)
        except StartupError as error:
            if address_configured:
                raise
            raise StartupError(
                f"Port {connection.PORT} is in use by something that is no Temporal Service;"
                " stop it, or set TEMPORAL_ADDRESS to a service elsewhere."
            ) from error
        await _check_namespace(client)
        yield client
    else:
        async with dev_server(directory, connection.PORT, connection.UI_PORT, config["namespace"]):
            yield await connect(config)


async def _check_namespace(client: Client) -> None:
    try:
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=client.namespace),
            timeout=timedelta(seconds=4),
        )
    except RPCError as error:
        raise StartupError(describe_rpc_error(client, error, read_only=True)) from error


@asynccontextmanager
async def dev_server(
    directory: Path, port: int, ui_port: int, namespace: str
) -> AsyncIterator[None]:
    """Runs a Temporal dev server on 127.0.0.1 while the context lasts, and again should it end.

    A server that another process puts on `port` in the meantime is used and left alone.

    Args:
        directory: has `temporal.db`, the invoices, and `temporal.log`.

    Raises:
        StartupError: it doesn't start; within an ExceptionGroup if that happens on a restart.
    """

    async def keep_running(process: asyncio.subprocess.Process) -> None:
        try:
            while True:
                code = await process.wait()
                log.warning("The Temporal dev server ended (exit code %s); restarting it.", code)
                process = await _start(executable, directory, port, ui_port, namespace)
        finally:
            await _stop(process)

    async with _one_at_a_time(directory):  # a second worker waits here and finds the first's server
        if await _listens(port):
            process = None
        else:
            if await _listens(ui_port):
                raise StartupError(
                    f"Port {ui_port}, for Temporal's Web UI, is in use by another program; stop it."
                )
            executable = await temporal_executable()
            process = await _start(executable, directory, port, ui_port, namespace)
    if process is None:
        yield
    else:
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(keep_running(process))
            yield
            keeper.cancel()


async def _start(
    executable: Path, directory: Path, port: int, ui_port: int, namespace: str
) -> asyncio.subprocess.Process:
    arguments = ["server", "start-dev", "--ip", "127.0.0.1", "--log-level", "warn"]
    arguments += ["--port", str(port), "--ui-port", str(ui_port), "--namespace", namespace]
    arguments += ["--db-filename", str(directory / "temporal.db")]
    log_file = directory / "temporal.log"
    with log_file.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            executable,
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Out of the reach of Ctrl-C: the worker first ends the payment under way.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while process.returncode is None:
                with suppress(RuntimeError, RPCError):
                    await _set_retention(port, namespace)
                    return process
                await asyncio.sleep(0.1)
    await _stop(process)
    raise StartupError(f"The Temporal dev server didn't start; {log_file} has the reason.")


async def _set_retention(port: int, namespace: str) -> None:
    # The dev server's own is one day, after which it would forget that an invoice was paid.
    retention = Duration()
    retention.FromTimedelta(RETENTION)
    client = await Client.connect(f"127.0.0.1:{port}", runtime=quiet_runtime())
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=namespace,
            config=NamespaceConfig(workflow_execution_retention_ttl=retention),
        ),
        timeout=timedelta(seconds=5),
    )


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("localhost", port), 2)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


@asynccontextmanager
async def _one_at_a_time(directory: Path) -> AsyncIterator[None]:
    # SQLite's lock: on every system, and gone with the process that held it.
    with closing(sqlite3.connect(directory / "starting.lock", timeout=0)) as lock:
        while True:
            try:
                lock.execute("BEGIN EXCLUSIVE")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
            await asyncio.sleep(0.2)
        yield


async def temporal_executable() -> Path:
    """The Temporal CLI: on `PATH`, in the user's cache, or brought into that cache now.

    It is downloaded by the Temporal SDK or, where that fails and there is a Go toolchain, built by
    `go install` (some minutes, once).

    Raises:
        StartupError: none of these works.
    """
    cache_directory = user_cache_path("invoice-processor")
    if on_path := shutil.which("temporal"):
        return Path(on_path)
    if cached := _cached(cache_directory):
        return cached
    cache_directory.mkdir(parents=True, exist_ok=True)
    log.info("Downloading the Temporal CLI, once, into %s", cache_directory)
    await _download(cache_directory)
    if cached := _cached(cache_directory):
        return cached
    if go := shutil.which("go"):
        log.info("No download to be had. Building the Temporal CLI with go install instead:")
        log.info("this takes some minutes, once.")
        await _go_install(Path(go), cache_directory)
        if cached := _cached(cache_directory):
            return cached
    raise StartupError(
        "No Temporal CLI found, and it could neither be downloaded nor built with Go. Install it"
        " (macOS: brew install temporal; Windows and Linux: the archive from Temporal's site) so"
        " that `temporal` is on PATH, or set TEMPORAL_ADDRESS to a service that runs."
    )


def _cached(directory: Path) -> Path | None:
    # `temporal` if built, `temporal-sdk-python-1.35.0` if downloaded, `.exe` on Windows.
    found = [p for p in directory.glob("temporal*") if p.is_file() and p.suffix != ".downloading"]
    return max(found, default=None)


async def _download(directory: Path) -> None:
    # The SDK downloads only in order to start a server, whose banner goes to standard output: so in
    # a process of its own, which can also be ended where a firewall lets the download hang.
    code = (
        "import asyncio, sys\n"
        "from temporalio.testing import WorkflowEnvironment\n"
        "async def main():\n"
        "    async with await WorkflowEnvironment.start_local(download_dest_dir=sys.argv[1]):\n"
        "        pass\n"
        "asyncio.run(main())"
    )
    await _run([sys.executable, "-c", code, str(directory)], timedelta(minutes=5))


async def _go_install(go: Path, directory: Path) -> None:
    with TemporaryDirectory(dir=directory) as target:
        failure = await _run(
            [str(go), "install", CLI_SOURCE],
            timedelta(minutes=30),
            cwd=target,
            env={**os.environ, "GOBIN": target},
        )
        if failure:
            log.warning("go install failed: %s", failure)
        for built in Path(target).glob("temporal*"):
            built.replace(directory / built.name)


async def _run(
    command: list[str],
    limit: timedelta,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """Runs a command that may take long, with a word every half minute.

    Returns:
        The last line it wrote if it failed, else nothing.
    """
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    output = asyncio.create_task(process.stderr.read())
    try:
        for half_minutes in range(1, int(limit / timedelta(seconds=30)) + 1):
            done, _ = await asyncio.wait([output], timeout=30)
            if done:
                break
            log.info("still at it after %s s", half_minutes * 30)
        if output.done():
            await process.wait()
    finally:
        await _stop(process)
    lines = (await output).decode(errors="replace").strip().splitlines() or ["no output"]
    return lines[-1] if process.returncode else ""
