"""Traces with OpenTelemetry, if its variables ask for them. Otherwise none of it is imported."""

import threading
from typing import TYPE_CHECKING

from settings import read_setting
from startup import StartupError, is_web_address

# Neither is for a process without traces, and the MCP server starts without the second.
if TYPE_CHECKING:
    from temporalio.client import Plugin

    from temporal_service.spans import Tracing

_tracing: "Tracing | None" = None


def start_traces(service_name: str) -> None:
    """Sends this process's spans to the configured endpoint from now on, if there is one.

    Args:
        service_name: used unless OpenTelemetry's own variables name the service.

    Raises:
        StartupError: the packages for traces are missing, or a variable can't be used.
    """
    global _tracing
    name, endpoint = _endpoint()
    if not endpoint:
        return
    try:
        from temporal_service.spans import Tracing
    except ImportError:
        raise StartupError(
            f"{name} asks for traces, but their packages are missing: run uv sync --inexact"
            " --extra otel, or unset it."
        ) from None
    if not is_web_address(endpoint):
        raise StartupError(f"{name} must be an http or https address.")
    try:
        _tracing = Tracing(service_name, endpoint)
    except ValueError as error:
        raise StartupError(f"One of OpenTelemetry's variables can't be used: {error}.") from error


def client_plugins() -> "list[Plugin]":
    """The plugins for a client of Temporal's SDK, which its workers get from it."""
    return _tracing.plugins if _tracing else []


def record_outcome(outcome: str) -> None:
    """Adds the outcome of a run or an activity to its span. Must not have other people's text."""
    if _tracing:
        _tracing.record_outcome(outcome)


def flush_traces() -> None:
    """Sends the spans that haven't been sent. Waits for a second at most."""
    if _tracing:
        # The SDK doesn't limit the time that this takes.
        flushing = threading.Thread(target=_tracing.flush, daemon=True)
        flushing.start()
        flushing.join(1)


def _endpoint() -> tuple[str, str]:
    """The variable that asks for traces, and the address to send them to; both may be empty."""
    if address := read_setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", address
    if base := read_setting("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return "OTEL_EXPORTER_OTLP_ENDPOINT", f"{base.rstrip('/')}/v1/traces"
    return "", ""
