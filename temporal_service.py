"""Reaching a Temporal Service, or running one.

Where it is, `temporalio.envconfig` decides: `TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`,
`TEMPORAL_API_KEY`, `TEMPORAL_TLS...`, `TEMPORAL_PROFILE` and the TOML file; without any of these it
is `localhost:7233`. Only `service`, for the worker, may start one, and only there.
"""

import asyncio
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from google.protobuf.duration_pb2 import Duration
from platformdirs import user_cache_path
from temporalio.api.common.v1 import Payload
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, UpdateNamespaceRequest
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.converter import DataConverter, DefaultPayloadConverter
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)
from temporalio.service import RPCError, RPCStatusCode

PORT = 7233
"""Of the Temporal Service (gRPC)."""
UI_PORT = 8233
"""Of its Web UI."""
RETENTION = timedelta(days=365)
"""How long the embedded server remembers closed invoices."""
CLI_SOURCE = "github.com/temporalio/cli/cmd/temporal@v1.5.1"
"""Later versions have a `replace` in their go.mod, which `go install` refuses."""

log = logging.getLogger("temporal_service")


class ServiceError(Exception):
    """What is wrong with the Temporal Service or its configuration, in words for a person."""


class ForgivingConverter(DefaultPayloadConverter):
    """Takes nonsense from other clients; what is sent is the same as with the SDK's own.

    What can't be decoded stays raw, and of surplus arguments the first counts. Otherwise a signal
    would be dropped, or a workflow task fail for ever.
    """

    def from_payloads(
        self, payloads: Sequence[Payload], type_hints: list[type] | None = None
    ) -> list[Any]:
        if type_hints is None and len(payloads) > 1:  # not as many as the handler takes
            return [RawValue(payloads[0])]
        try:
            return super().from_payloads(payloads, type_hints)
        except (KeyError, RuntimeError):
            return [RawValue(payload) for payload in payloads]


def connect_config() -> ClientConnectConfig:
    """What the environment and the TOML file say about the service, with the default address.

    Raises:
        ServiceError: the configuration is broken or leaves out the address.
    """
    config = _configured()
    config.setdefault("target_host", f"localhost:{PORT}")
    config.setdefault("namespace", "default")
    return config


def _configured() -> ClientConnectConfig:
    file = os.environ.get("TEMPORAL_CONFIG_FILE")
    if file and not Path(file).is_file():  # which envconfig would pass over in silence
        raise ServiceError(f"TEMPORAL_CONFIG_FILE names {file}, which is no file.")
    # An empty variable is an unset one: hosts pass on fields that a person left empty.
    variables = {name: value for name, value in os.environ.items() if value}
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=variables)
    except OSError as error:
        raise ServiceError(
            f"The Temporal configuration names a TLS file that can't be read:"
            f" {error.filename} ({error.strerror})."
        ) from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        where = f" in {file}" if file else ""
        raise ServiceError(f"The Temporal configuration{where} can't be used: {reason}.") from error
    if "target_host" not in config and ("api_key" in config or config.get("tls")):
        raise ServiceError(
            "The Temporal configuration has an API key or TLS but no address: set TEMPORAL_ADDRESS."
        )
    return config


async def connect(
    config: ClientConnectConfig, *, identity: str | None = None, lazy: bool = False
) -> Client:
    """A client that keeps one connection and restores it by itself.

    Args:
        identity: who the history shows as the sender of what this client sends.
        lazy: connect with the first call, so that this one never fails on the network.

    Raises:
        ServiceError: the service can't be reached within 10 s, or refuses.
    """
    try:
        async with asyncio.timeout(10):
            return await Client.connect(
                **config,
                identity=identity,
                lazy=lazy,
                runtime=_quiet_runtime(),
                data_converter=replace(
                    DataConverter.default, payload_converter_class=ForgivingConverter
                ),
            )
    except (RuntimeError, TimeoutError) as error:
        raise ServiceError(unreachable(config["target_host"], str(error))) from error


def unreachable(address: str, detail: str) -> str:
    """A sentence for a person on why no service answers at `address`, from the SDK's words."""
    service = f"The Temporal Service at {address}"
    detail = detail.lower()
    if "unauthenticated" in detail or "permission" in detail:
        return f"{service} refuses the credentials; check TEMPORAL_API_KEY or the TLS certificate."
    if "invalidcertificate" in detail:
        return (
            f"{service} shows a certificate that isn't trusted here; check"
            " TEMPORAL_TLS_SERVER_CA_CERT_PATH and TEMPORAL_TLS_SERVER_NAME."
        )
    if "invalidcontenttype" in detail:
        return f"{service} doesn't speak TLS; unset TEMPORAL_TLS and TEMPORAL_API_KEY."
    if address.endswith(f":{UI_PORT}"):
        return (
            f"{service} can't be reached: {UI_PORT} is the Web UI's port, the service's is {PORT}."
        )
    if "after connection" in detail:
        return (
            f"{service} ends the connection; check TLS: TEMPORAL_TLS,"
            " TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH."
        )
    return f"{service} can't be reached; start it, or check TEMPORAL_ADDRESS."


def explain(client: Client, error: Exception) -> str | None:
    """What a failed call means and what to do, in words for a person; None for anything else."""
    address = client.service_client.config.target_host
    if isinstance(error, RPCError) and error.status != RPCStatusCode.UNAVAILABLE:
        if error.status == RPCStatusCode.NOT_FOUND:
            return (
                f"The Temporal Service at {address} has no namespace {client.namespace!r};"
                " set TEMPORAL_NAMESPACE to one it has."
            )
        if error.status in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED):
            return unreachable(address, "permission")
        return f"The Temporal Service at {address} refused the call ({error.status.name})."
    if isinstance(error, RPCError | TimeoutError):
        return (
            f"The Temporal Service at {address} doesn't answer, so it isn't known whether the call"
            " took effect. Make the same call again: nothing is started, decided or paid twice."
        )
    if "client connect" in str(error):
        return (
            f"{unreachable(address, str(error))} Nothing was done; make the same call again then."
        )
    return None


@cache
def _quiet_runtime() -> Runtime:
    # By itself the SDK's core logs to standard output, which belongs to MCP in the one process and
    # to the person in the other.
    return Runtime(
        telemetry=TelemetryConfig(
            logging=LoggingConfig(
                filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
                forwarding=LogForwardingConfig(logger=logging.getLogger("temporal.core")),
            )
        )
    )


@asynccontextmanager
async def service(directory: Path) -> AsyncIterator[Client]:
    """A client of the configured service, or of an embedded one while the context lasts.

    The embedded dev server is started if no address is configured and nothing listens on
    localhost:7233; `directory` has its database and its log.

    Raises:
        ServiceError: no service can be reached or started, or it has no such namespace.
    """
    configured = "target_host" in _configured()
    config = connect_config()
    if configured or await _listens(PORT):
        try:
            client = await connect(config)
        except ServiceError as error:
            if configured:
                raise
            raise ServiceError(
                f"Port {PORT} is in use by something that is no Temporal Service;"
                " stop it, or set TEMPORAL_ADDRESS to a service elsewhere."
            ) from error
        await _check_namespace(client)
        yield client
    else:
        async with dev_server(directory, PORT, UI_PORT, config["namespace"]):
            yield await connect(config)


async def _check_namespace(client: Client) -> None:
    try:
        await client.workflow_service.describe_namespace(
            DescribeNamespaceRequest(namespace=client.namespace),
            timeout=timedelta(seconds=4),
        )
    except RPCError as error:
        raise ServiceError(explain(client, error)) from error


@asynccontextmanager
async def dev_server(
    directory: Path, port: int, ui_port: int, namespace: str
) -> AsyncIterator[None]:
    """Runs a Temporal dev server on 127.0.0.1 while the context lasts, and again should it end.

    A server that another process puts on `port` in the meantime is used and left alone.

    Args:
        directory: has `temporal.db`, the invoices, and `temporal.log`.

    Raises:
        ServiceError: it doesn't start; within an ExceptionGroup if that happens on a restart.
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
                raise ServiceError(
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
    raise ServiceError(f"The Temporal dev server didn't start; {log_file} has the reason.")


async def _set_retention(port: int, namespace: str) -> None:
    # The dev server's own is one day, after which it would forget that an invoice was paid.
    retention = Duration()
    retention.FromTimedelta(RETENTION)
    client = await Client.connect(f"127.0.0.1:{port}", runtime=_quiet_runtime())
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
        ServiceError: none of these works.
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
    raise ServiceError(
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
