"""An unusable Temporal configuration is reported before anything is sent."""

import platform
import re
import socket
from pathlib import Path

import pytest

from startup import StartupError
from temporal_service.connection import (
    START,
    connect,
    connect_config,
    describe_connection_error,
    whoami,
)


def test_profile_that_is_not_in_the_file_is_named(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "temporal.toml"
    file.write_text('[profile.accounts]\naddress = "localhost:7233"\napi_key = "a-key"')
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(file))
    monkeypatch.setenv("TEMPORAL_PROFILE", "elsewhere")
    with pytest.raises(StartupError, match="Profile 'elsewhere' not found"):
        connect_config()


def test_missing_tls_file_is_named(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing.key")
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_KEY_PATH", missing)
    with pytest.raises(StartupError, match=f"that can't be read: {re.escape(missing)}"):
        connect_config()


def test_only_the_default_address_is_named_with_the_command_that_starts_the_service(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = describe_connection_error("localhost:7233", "refused")
    assert "start it with `uv run worker.py`, or check TEMPORAL_ADDRESS" in local
    assert "uv run" not in describe_connection_error("temporal.example:7233", "refused")
    monkeypatch.setenv("INVOICE_TEMPORAL_PORT", "7300")
    assert "uv run" in describe_connection_error("localhost:7300", "refused")
    # A worker whose configuration has this address starts no service.
    assert "uv run" not in describe_connection_error("localhost:7300", "refused", START)


def test_without_an_address_the_embedded_services_port_is_used(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVOICE_TEMPORAL_PORT", "7300")
    assert connect_config()["target_host"] == "localhost:7300"
    monkeypatch.setenv("TEMPORAL_ADDRESS", "cluster:7233")
    assert connect_config()["target_host"] == "cluster:7233"


@pytest.mark.parametrize("port", ["0", "65536", "-1", "7233.0", "seven", " ", "9" * 5000])
def test_a_port_that_is_not_one_is_named(
    port: str, unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVOICE_TEMPORAL_PORT", port)
    with pytest.raises(StartupError, match="INVOICE_TEMPORAL_PORT must be a port from 1 to 65535"):
        connect_config()
    monkeypatch.setenv("TEMPORAL_ADDRESS", "cluster:7233")
    assert connect_config()["target_host"] == "cluster:7233"


def test_an_address_with_the_web_uis_port_is_told_the_services(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVOICE_TEMPORAL_PORT", "7300")
    monkeypatch.setenv("INVOICE_WEB_UI_PORT", "8300")
    told = describe_connection_error("localhost:8300", "connection refused")
    assert told.endswith("8300 is the Web UI's port; use port 7300.")


IMPOSSIBLE = [
    *["localhost:72333", "localhost:-1", "host:x", "local host:7233", " localhost:7233"],
    *["::1:7233", "[::1", ":7233", "localhost:7233,localhost:7234"],
]


@pytest.mark.parametrize("address", IMPOSSIBLE)
async def test_an_address_that_is_not_one_is_named(
    address: str, unconfigured: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rule = f"must be host:port, such as localhost:7233 or [::1]:7233, and is {address!r}."
    monkeypatch.setenv("TEMPORAL_ADDRESS", address)
    with pytest.raises(StartupError) as refusal:
        await connect(connect_config())
    assert str(refusal.value) == f"TEMPORAL_ADDRESS {rule}"
    file = tmp_path / "temporal.toml"
    file.write_text(f"[profile.default]\naddress = '{address}'")
    monkeypatch.delenv("TEMPORAL_ADDRESS")
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(file))
    with pytest.raises(StartupError) as refusal:
        await connect(connect_config())
    assert str(refusal.value) == f"The address in the Temporal configuration {rule}"


async def test_a_certificate_without_its_key_is_named(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "localhost:7233")
    monkeypatch.setenv("TEMPORAL_TLS_CLIENT_CERT_DATA", "a certificate")
    with pytest.raises(StartupError, match="TEMPORAL_TLS_CLIENT_KEY_PATH"):
        await connect(connect_config())


@pytest.mark.parametrize("key", ["a\nkey", "a-key\n", " a-key", "kéy"])
def test_an_api_key_that_could_not_be_sent_is_refused_without_being_quoted(
    key: str, unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "localhost:7233")
    monkeypatch.setenv("TEMPORAL_API_KEY", key)
    with pytest.raises(StartupError, match=r"^TEMPORAL_API_KEY must have no blanks") as refusal:
        connect_config()
    assert key not in str(refusal.value)


@pytest.mark.parametrize(
    ("variables", "blamed"),
    [
        ({"TEMPORAL_GRPC_META_TEAM": "a\nb"}, "TEMPORAL_GRPC_META_*"),
        ({"TEMPORAL_GRPC_META_A:B": "c"}, "TEMPORAL_GRPC_META_*"),
        ({"TEMPORAL_TLS_SERVER_NAME": "a b"}, "TEMPORAL_TLS_SERVER_NAME"),
        (
            {"TEMPORAL_TLS_CLIENT_CERT_DATA": "a", "TEMPORAL_TLS_CLIENT_KEY_DATA": "b"},
            "TEMPORAL_TLS_CLIENT_KEY_...",
        ),
    ],
)
async def test_a_setting_that_the_sdk_refuses_is_blamed_and_not_the_service(
    variables: dict[str, str],
    blamed: str,
    unconfigured: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The SDK reads headers only once it is connected to something.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{listening.getsockname()[1]}")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StartupError) as refusal:
            await connect(connect_config())
    assert blamed in str(refusal.value)
    assert "can't be reached" not in str(refusal.value)


def test_a_name_that_is_not_text_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "desk\udcff")
    assert whoami().endswith("@desk?")
