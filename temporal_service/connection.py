"""Where the Temporal Service is, connecting to it, and what goes wrong with it in words.

`temporalio.envconfig` decides: `TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`,
`TEMPORAL_TLS...`, `TEMPORAL_PROFILE` and the TOML file; without any of these it is
`localhost:7233`.
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

PORT = 7233
"""Of the Temporal Service (gRPC)."""
UI_PORT = 8233
"""Of its Web UI."""
MAX_NAME = 200
"""Of who sends something, in characters."""


def whoami() -> str:
    """`user@host` of this process: the user as the operating system has it, not the environment."""
    if sys.platform == "win32":
        user = os.getlogin()
    else:
        import pwd

        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:  # no name for the number, as in some containers
            user = str(os.geteuid())
    return f"{user}@{platform.node()}"[:MAX_NAME]


def connect_config() -> ClientConnectConfig:
    """What the environment and the TOML file say about the service, with the default address.

    Raises:
        StartupError: the configuration is broken or leaves out the address.
    """
    config = _configured()
    config.setdefault("target_host", f"localhost:{PORT}")
    config.setdefault("namespace", "default")
    return config


def address_is_configured() -> bool:
    """Whether the environment or the TOML file names an address.

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
    """A client that keeps one connection and restores it by itself.

    Args:
        identity: who the history shows as the sender of what this client sends.
        lazy: connect with the first call, so that this one never fails on the network.
        runtime: one of `quiet_runtime`, by default the one without metrics.

    Raises:
        StartupError: the service can't be reached within 10 s, or refuses.
    """
    try:
        async with asyncio.timeout(10):
            return await Client.connect(
                **config,
                identity=identity,
                lazy=lazy,
                runtime=runtime or quiet_runtime(),
                data_converter=data_converter,
            )
    except (RuntimeError, TimeoutError) as error:
        raise StartupError(describe_connection_error(config["target_host"], str(error))) from error


def describe_connection_error(address: str, detail: str) -> str:
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


NO_ANSWER = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,  # the SDK's word for a time that ran out
)


def describe_rpc_error(client: Client, error: Exception, *, read_only: bool) -> str | None:
    """What a failed call means and what to do, in words for a person; None for anything else."""
    address = client.service_client.config.target_host
    if isinstance(error, RPCError) and error.status not in NO_ANSWER:
        if error.status == RPCStatusCode.NOT_FOUND:
            return (
                f"The Temporal Service at {address} has no namespace {client.namespace!r};"
                " set TEMPORAL_NAMESPACE to one it has."
            )
        if error.status in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED):
            return describe_connection_error(address, "permission")
        return f"The Temporal Service at {address} refused the call ({error.status.name})."
    if isinstance(error, RPCError | TimeoutError):
        if read_only:
            return f"The Temporal Service at {address} doesn't answer. Make the same call again."
        return (
            f"The Temporal Service at {address} doesn't answer, so it isn't known whether the call"
            " took effect. Make the same call again: nothing is started, decided or paid twice."
        )
    if "client connect" in str(error):
        reason = describe_connection_error(address, str(error))
        return f"{reason} Nothing was done; make the same call again then."
    return None


def _configured() -> ClientConnectConfig:
    file = read_setting("TEMPORAL_CONFIG_FILE")
    if file and not Path(file).is_file():  # which envconfig would pass over in silence
        raise StartupError(f"TEMPORAL_CONFIG_FILE names {file}, which is no file.")
    try:
        config = ClientConfig.load_client_connect_config(override_env_vars=environment())
    except OSError as error:
        raise StartupError(
            f"The Temporal configuration names a TLS file that can't be read:"
            f" {error.filename} ({error.strerror})."
        ) from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        where = f" in {file}" if file else ""
        raise StartupError(f"The Temporal configuration{where} can't be used: {reason}.") from error
    if "target_host" not in config and ("api_key" in config or config.get("tls")):
        raise StartupError(
            "The Temporal configuration has an API key or TLS but no address: set TEMPORAL_ADDRESS."
        )
    return config


@cache
def quiet_runtime(metrics_address: str | None = None) -> Runtime:
    """The SDK's core, which logs through `logging`.

    By itself it logs to standard output, which belongs to MCP in the one process and to the person
    in the other.

    Args:
        metrics_address: `host:port` where Prometheus may fetch the SDK's metrics.

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
    """`host:port` with the host's IP address, since the SDK looks up no names."""
    match = re.fullmatch(r"(?:\[(.+)\]|([^:]+)):([0-9]{1,5})", address)
    if not match:
        raise ValueError("it must be host:port, such as localhost:9464 or [::1]:9464")
    host, port = match[1] or match[2], int(match[3])
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise ValueError(f"{host} isn't a host's name") from error
    # Where a name has addresses of both kinds, most look at the older kind first.
    family, *_, numbers = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return f"[{numbers[0]}]:{port}" if family == socket.AF_INET6 else f"{numbers[0]}:{port}"
