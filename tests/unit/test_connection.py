"""A configuration of Temporal that can't be used is named before anything is sent."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import invoice_server
from startup import StartupError
from temporal_service.connection import connect_config

Settings = dict[str, str]
"""As a TOML profile names them, but for `tls_x` in place of `tls.x`."""


def variables(settings: Settings, folder: Path) -> dict[str, str]:
    return {f"TEMPORAL_{name.upper()}": value for name, value in settings.items()}


def profile(settings: Settings, folder: Path) -> dict[str, str]:
    file = folder / "temporal.toml"
    lines = [f"{k.replace('tls_', 'tls.')} = {json.dumps(v)}" for k, v in settings.items()]
    file.write_text("\n".join(["[profile.accounts]", *lines]), encoding="utf-8")
    return {"TEMPORAL_CONFIG_FILE": str(file), "TEMPORAL_PROFILE": "accounts"}


@pytest.fixture
def configure(
    unconfigured: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, str]], None]:
    """Gives this process a configuration of Temporal, and no other."""

    def configure(env: dict[str, str]) -> None:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(invoice_server, "_client", None)

    return configure


def test_profile_that_is_not_in_the_file_is_named(
    configure: Callable[[dict[str, str]], None], tmp_path: Path
) -> None:
    settings = {"address": "localhost:7233", "api_key": "a-key"}
    configure({**profile(settings, tmp_path), "TEMPORAL_PROFILE": "elsewhere"})
    with pytest.raises(StartupError, match="Profile 'elsewhere' not found"):
        connect_config()


def test_missing_tls_file_is_named(
    configure: Callable[[dict[str, str]], None], tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing.key")
    configure(variables({"tls_client_key_path": missing}, tmp_path))
    with pytest.raises(StartupError, match=f"that can't be read: {re.escape(missing)}"):
        connect_config()
