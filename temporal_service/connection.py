"""Connects to the Temporal Service, and explains connection errors to people.

`temporalio.envconfig` reads the configuration: `TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`,
`TEMPORAL_API_KEY`, `TEMPORAL_TLS...`, `TEMPORAL_PROFILE` and the TOML file. Without any of these,
the address is `localhost` with the port `INVOICE_TEMPORAL_PORT`, by default 7233.
"""

import asyncio
import logging
import os
import platform
import re
import socket
import sys
from functools import cache
from pathlib import Path

from temporalio.client import Client
from temporalio.envconfig import ClientConfig, ClientConnectConfig
from temporalio.runtime import (
    LogForwardingConfig,
    LoggingConfig,
    PrometheusConfig,
    Runtime,
    TelemetryConfig,
    TelemetryFilter,
)
from temporalio.service import RPCError, RPCStatusCode

from settings import environment, read_setting
from startup import StartupError
from temporal_service.payloads import data_converter
from temporal_service.traces import client_plugins

MAX_NAME = 200
"""The longest result of `whoami`, in characters."""


def whoami() -> str:
    """`user@host` of this process. The operating system names the user, not the environment.

    What can't be decoded in it becomes `?`, because a signal with half characters can't be read.
    """
    if sys.platform == "win32":
        user = os.getlogin()
    else:
        import pwd

        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:  # in some containers, the user id has no name
            user = str(os.geteuid())
    return f"{user}@{platform.node()}"[:MAX_NAME].encode(errors="replace").decode()


def service_port() -> int:
    """The port of the embedded Temporal Service (gRPC).

    Raises:
        StartupError: `INVOICE_TEMPORAL_PORT` isn't a port.
    """
    return _port("INVOICE_TEMPORAL_PORT")


def web_ui_port() -> int:
    """The port of the embedded service's Web UI.

    Raises:
        StartupError: `INVOICE_WEB_UI_PORT` isn't a port.
    """
    return _port("INVOICE_WEB_UI_PORT")


def connect_config() -> ClientConnectConfig:
    """The configuration from the environment and the TOML file, with the default address.

    Raises:
        StartupError: the configuration can't be read, or lacks an address that it needs.
    """
    config = _configured()
    if "target_host" not in config:
        config["target_host"] = f"localhost:{service_port()}"
    config.setdefault("namespace", "default")
    return config


def address_is_configured() -> bool:
    """Whether the environment or the TOML file sets an address.

    Raises:
        StartupError: as for `connect_config`.
    """
    return "target_host" in _configured()


async def connect(
    config: ClientConnectConfig,
    *,
    identity: str | None = None,
    lazy: bool = False,
    runtime: Runtime | None = None,
) -> Client:
    """A client with one connection, which it restores by itself.

    Args:
        identity: the sender that event histories show for this client's calls.
        lazy: connect in the first call, so that creating the client needs no network.
        runtime: a runtime from `quiet_runtime`, by default the one without metrics.

    Raises:
        StartupError: the service can't be reached within 10 s, or refuses the connection, or the
            address or the TLS certificate can't be used. With `lazy`, the first call raises the
            SDK's own errors instead, for `describe_rpc_error`.
    """
    try:
        async with asyncio.timeout(10):
            return await Client.connect(
                **config,
                identity=identity,
                lazy=lazy,
                runtime=runtime or quiet_runtime(),
                data_converter=data_converter,
                plugins=client_plugins(),
            )
    except ValueError as error:
        reason = _describe_unusable(config["target_host"], str(error))
        raise StartupError(
            reason or f"The Temporal configuration can't be used: {error}."
        ) from error
    except (RuntimeError, TimeoutError) as error:
        # A worker with a configured address starts no service.
        address, how = config["target_host"], START if address_is_configured() else None
        raise StartupError(describe_connection_error(address, str(error), how)) from error


def _describe_unusable(address: str, detail: str) -> str | None:
    """Names the setting that the SDK refused before it sent anything; None for other errors."""
    if "client cert" in detail:
        return (
            "A client certificate and its key go together: set both TEMPORAL_TLS_CLIENT_CERT_PATH"
            " and TEMPORAL_TLS_CLIENT_KEY_PATH (or ..._DATA), or none."
        )
    if "target URL" not in detail:
        return None
    is_variable = read_setting("TEMPORAL_ADDRESS") == address
    name = "TEMPORAL_ADDRESS" if is_variable else "The address in the Temporal configuration"
    return f"{name} must be host:port, such as localhost:7233 or [::1]:7233, and is {address!r}."


def describe_connection_error(address: str, detail: str, start: str | None = None) -> str:
    """Explains the SDK's connection error `detail` to a person, in a sentence.

    Args:
        start: how to start the service; by default the command, where that uses this address.
    """
    service = f"The Temporal Service at {address}"
    detail = detail.lower()
    if "unauthenticated" in detail or "permission" in detail:
        return f"{service} refuses the credentials; check TEMPORAL_API_KEY or the TLS certificate."
    if "invalidcertificate" in detail:
        return (
            f"{service} has a certificate that this computer doesn't trust; check"
            " TEMPORAL_TLS_SERVER_CA_CERT_PATH and TEMPORAL_TLS_SERVER_NAME."
        )
    if "invalid headers" in detail:
        return f"{service} can't be called: check the names and values of TEMPORAL_GRPC_META_*."
    if "privatekeyparseerror" in detail:
        return f"{service} can't be called: TEMPORAL_TLS_CLIENT_KEY_... isn't a private key in PEM."
    if "invalid uri" in detail:
        return f"{service} can't be called: TEMPORAL_TLS_SERVER_NAME isn't a host name."
    if "invalidcontenttype" in detail:
        return f"{service} doesn't speak TLS; unset TEMPORAL_TLS and TEMPORAL_API_KEY."
    # Not checked whether these are ports: an address may be configured, and then they don't matter.
    port, ui_port = read_setting("INVOICE_TEMPORAL_PORT"), read_setting("INVOICE_WEB_UI_PORT")
    if address.endswith(f":{ui_port}"):
        return f"{service} can't be reached: {ui_port} is the Web UI's port; use port {port}."
    if "after connection" in detail:
        return (
            f"{service} closes the connection; check the TLS settings: TEMPORAL_TLS,"
            " TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_TLS_CLIENT_KEY_PATH."
        )
    ports = ""
    if start is None:
        is_default = address == f"localhost:{port}"
        start = "start it with `uv run worker.py`" if is_default else START
        ports = " and INVOICE_TEMPORAL_PORT" if is_default else ""
    return f"{service} can't be reached; {start}, or check TEMPORAL_ADDRESS{ports}."


START = "start it"
NO_ANSWER = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,  # how the SDK reports that time ran out
)


def describe_rpc_error(client: Client, error: Exception, *, read_only: bool) -> str | None:
    """Explains a failed call to a person, and what to do. None for other kinds of errors."""
    address = client.service_client.config.target_host
    if isinstance(error, ValueError):
        return _describe_unusable(address, str(error))
    if isinstance(error, RPCError) and error.status not in NO_ANSWER:
        if error.status == RPCStatusCode.NOT_FOUND:
            return (
                f"The Temporal Service at {address} has no namespace {client.namespace!r};"
                " set TEMPORAL_NAMESPACE to one that exists."
            )
        if error.status in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED):
            return describe_connection_error(address, "permission")
        return f"The Temporal Service at {address} refused the call ({error.status.name})."
    if isinstance(error, RPCError | TimeoutError):
        # It may be well, and what was asked for too much.
        late = f"The Temporal Service at {address} didn't answer in time"
        if read_only:
            return f"{late}. Make the same call again."
        return (
            f"{late}, so it isn't known whether the call took effect. Make the same call again:"
            " nothing is started, decided or paid twice."
        )
    if "client connect" in str(error):
        reason = describe_connection_error(address, str(error))
        return f"{reason} Nothing was done. After that, make the same call again."
    return None


def _port(name: str) -> int:
    text = read_setting(name)
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 2**16:
        raise StartupError(f"{name} must be a port from 1 to 65535, and is {text!r}.")
    return int(text)


def _configured() -> ClientConnectConfig:
    file = read_setting("TEMPORAL_CONFIG_FILE")
    if file and not Path(file).is_file():  # envconfig would ignore this silently
        raise StartupError(f"TEMPORAL_CONFIG_FILE is {file}, which doesn't exist or isn't a file.")
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=environment())
    except OSError as error:
        raise StartupError(
            f"The Temporal configuration has a TLS file that can't be read:"
            f" {error.filename} ({error.strerror})."
        ) from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        where = f" in {file}" if file else ""
        raise StartupError(f"The Temporal configuration{where} can't be used: {reason}.") from error
    # The SDK would leave out such a key without a word.
    if not re.fullmatch("[!-~]*", config.get("api_key") or ""):
        raise StartupError(
            "TEMPORAL_API_KEY must have no blanks, line breaks or characters outside ASCII."
        )
    if "target_host" not in config and ("api_key" in config or config.get("tls")):
        raise StartupError(
            "The Temporal configuration has an API key or TLS but no address: set TEMPORAL_ADDRESS."
        )
    return config


@cache
def quiet_runtime(metrics_address: str | None = None) -> Runtime:
    """A runtime for the SDK that logs through `logging`.

    By default it would log to standard output. In the MCP server that carries the protocol, and in
    the worker the messages for the person.

    Args:
        metrics_address: `host:port` on which to serve the SDK's metrics for Prometheus.

    Raises:
        StartupError: metrics can't be served at that address.
    """
    quiet = LoggingConfig(
        filter=TelemetryFilter(core_level="WARN", other_level="ERROR"),
        forwarding=LogForwardingConfig(logger=logging.getLogger("temporal.core")),
    )
    if not metrics_address:
        return Runtime(telemetry=TelemetryConfig(logging=quiet))
    try:
        metrics = PrometheusConfig(bind_address=_resolved(metrics_address))
        return Runtime(telemetry=TelemetryConfig(logging=quiet, metrics=metrics))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).removeprefix("Failed starting Prometheus exporter: ")
        raise StartupError(f"Metrics can't be served at {metrics_address}: {reason}.") from error


def _resolved(address: str) -> str:
    """`host:port` with the host's IP address, because the SDK doesn't resolve host names."""
    match = re.fullmatch(r"(?:\[(.+)\]|([^:]+)):([0-9]{1,5})", address)
    if not match:
        raise ValueError("it must be host:port, such as localhost:9464 or [::1]:9464")
    host, port = match[1] or match[2], int(match[3])
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise ValueError(f"{host} isn't a host name") from error
    # If a name has both IPv4 and IPv6 addresses, prefer IPv4, which most clients try first.
    family, *_, numbers = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return f"[{numbers[0]}]:{port}" if family == socket.AF_INET6 else f"{numbers[0]}:{port}"
