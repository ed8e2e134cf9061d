"""Every environment variable of the worker, the MCP server and the audit.

A variable is read each time its value is needed. An empty variable counts as not set, because hosts
pass on fields that a person left empty. Each value is validated where it is used.
"""

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

Program = Literal["worker", "server", "audit"]


@dataclass(frozen=True)
class Setting:
    """An environment variable. If `name` ends with `*`, all variables with that prefix."""

    name: str
    readers: tuple[Program, ...]
    help: str
    default: str = ""
    is_secret: bool = False
    is_path: bool = False


_ALL: tuple[Program, ...] = ("worker", "server", "audit")
_BOOKS: tuple[Program, ...] = ("worker", "audit")
_TRACED: tuple[Program, ...] = ("worker", "server")
_WORKER: tuple[Program, ...] = ("worker",)
_SERVER: tuple[Program, ...] = ("server",)

# `temporalio.envconfig` reads most of the variables that all three programs use, and
# OpenTelemetry's SDK those with `*` that the worker and the server use.
SETTINGS = (
    Setting("TEMPORAL_ADDRESS", _ALL, "host:port of the Temporal Service", "localhost:7233"),
    Setting("TEMPORAL_NAMESPACE", _ALL, "namespace of the invoices", "default"),
    Setting("TEMPORAL_API_KEY", _ALL, "API key; also turns TLS on", is_secret=True),
    Setting("TEMPORAL_TLS", _ALL, "true or false: whether to use TLS"),
    Setting("TEMPORAL_TLS_CLIENT_CERT_PATH", _ALL, "file of the client certificate", is_path=True),
    Setting("TEMPORAL_TLS_CLIENT_CERT_DATA", _ALL, "the client certificate itself, in PEM"),
    Setting("TEMPORAL_TLS_CLIENT_KEY_PATH", _ALL, "file of the certificate's key", is_path=True),
    Setting("TEMPORAL_TLS_CLIENT_KEY_DATA", _ALL, "the key itself, in PEM", is_secret=True),
    Setting("TEMPORAL_TLS_SERVER_CA_CERT_PATH", _ALL, "file of the service's CA", is_path=True),
    Setting("TEMPORAL_TLS_SERVER_CA_CERT_DATA", _ALL, "the service's CA itself, in PEM"),
    Setting("TEMPORAL_TLS_SERVER_NAME", _ALL, "host name on the service's certificate"),
    Setting(
        "TEMPORAL_GRPC_META_*",
        _ALL,
        "a header to send to the service",
        is_secret=True,
    ),
    Setting("TEMPORAL_PROFILE", _ALL, "profile to use from the TOML file", "default"),
    Setting(
        "TEMPORAL_CONFIG_FILE",
        _ALL,
        "TOML file to read instead of temporalio/temporal.toml in the user's configuration folder",
        is_path=True,
    ),
    Setting(
        "INVOICE_TEMPORAL_PORT",
        _ALL,
        "port of the embedded service, used unless an address is configured",
        "7233",
    ),
    Setting("INVOICE_WEB_UI_PORT", _ALL, "port of the embedded service's Web UI", "8233"),
    Setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        _TRACED,
        "http or https address to send traces to by OTLP, such as http://localhost:4318",
        is_secret=True,
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        _TRACED,
        "the same with its path, such as http://localhost:4318/v1/traces",
        is_secret=True,
    ),
    Setting("OTEL_*", _TRACED, "OpenTelemetry's other variables for traces", is_secret=True),
    Setting("INVOICE_APPROVAL_CARD", _SERVER, "auto, required or off: approval by a card", "auto"),
    Setting(
        "INVOICE_DATA_DIR",
        _BOOKS,
        "directory of the ledger and of the embedded service's files",
        str(Path(__file__).with_name("data")),
        is_path=True,
    ),
    Setting(
        "PAYMENT_LEDGER_URL",
        _BOOKS,
        "postgresql://user:password@host:5432/database: a ledger for several workers",
        is_secret=True,
    ),
    Setting("PAYMENT_GATEWAY", _WORKER, "simulated or stripe", "simulated"),
    Setting("STRIPE_API_KEY", _WORKER, "secret or restricted key for Stripe", is_secret=True),
    Setting("STRIPE_API_BASE", _WORKER, "address of a stand-in for Stripe"),
    Setting(
        "INVOICE_NOTIFY_URL",
        _WORKER,
        "webhook for notices that an invoice waits or has ended",
        is_secret=True,
    ),
    Setting("INVOICE_METRICS_ADDRESS", _WORKER, "host:port for Prometheus metrics"),
    Setting(
        "TEMPORAL_DEPLOYMENT_NAME", _WORKER, "deployment of this worker, for Worker Versioning"
    ),
    Setting("TEMPORAL_WORKER_BUILD_ID", _WORKER, "version of this worker in that deployment"),
    Setting("INVOICE_DECLINE_OVER", _WORKER, "the simulated gateway declines amounts above this"),
)


_DEFAULTS = {setting.name: setting.default for setting in SETTINGS}


def read_setting(name: str) -> str:
    """The variable's value, or the setting's default, which may be an empty string."""
    return environment().get(name, _DEFAULTS[name])


def environment() -> dict[str, str]:
    """All environment variables of this process that aren't empty."""
    return {name: value for name, value in os.environ.items() if value}


def find_setting(variable: str) -> Setting | None:
    """The setting that an environment variable belongs to, if any."""
    return next((setting for setting in SETTINGS if fnmatchcase(variable, setting.name)), None)


def describe_settings(program: Program) -> str:
    """The settings that a program reads, for its `--help`."""
    lines = ["Environment variables:"]
    for setting in SETTINGS:
        if program in setting.readers:
            default = f" (default: {setting.default})" if setting.default else ""
            lines.append(f"  {setting.name}\n      {setting.help}{default}")
    return "\n".join(lines)
