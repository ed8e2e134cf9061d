"""An unusable Temporal configuration is reported before anything is sent."""

import re
from pathlib import Path

import pytest

from startup import StartupError
from temporal_service.connection import connect_config


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
