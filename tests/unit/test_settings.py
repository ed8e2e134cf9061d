"""The table of settings, and that code and documents agree with it."""

import json
import re
from pathlib import Path

import pytest

from settings import SETTINGS, Program, describe_settings, find_setting, read_setting
from support import ROOT
from temporal_service import connection

SOURCES = [
    file
    for file in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]
    if file.parent not in (ROOT / "tests", ROOT / "benchmarks") and file.parent.name[0] != "."
]
ELSEWHERE = {
    "claude_desktop.py": ["LOCALAPPDATA", "APPDATA", "XDG_CONFIG_HOME", "UV"],
    # Settings of libraries, which read them when they are imported.
    "invoice_server.py": ["FASTMCP_LOG_ENABLED", "PY_KEY_VALUE_DISABLE_BEARTYPE"],
}
"""Variables that aren't our settings, by the module that reads or sets them."""


def names(*readers: Program) -> set[str]:
    """The settings that exactly these programs read."""
    return {setting.name for setting in SETTINGS if setting.readers == readers}


def test_a_setting_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYMENT_GATEWAY", "stripe")
    assert read_setting("PAYMENT_GATEWAY") == "stripe"
    monkeypatch.setenv("PAYMENT_GATEWAY", "other")
    assert read_setting("PAYMENT_GATEWAY") == "other"


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, default in (("PAYMENT_GATEWAY", "simulated"), ("STRIPE_API_KEY", "")):
        monkeypatch.setenv(name, "")
        assert read_setting(name) == default
        monkeypatch.delenv(name)
        assert read_setting(name) == default


def test_a_name_outside_the_table_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOICE_OTHER", "set")
    with pytest.raises(KeyError):
        read_setting("INVOICE_OTHER")
    assert find_setting("INVOICE_OTHER") is None


def test_a_header_of_any_name_belongs_to_one_setting() -> None:
    setting = find_setting("TEMPORAL_GRPC_META_AUTHORIZATION")
    assert setting
    assert setting.name == "TEMPORAL_GRPC_META_*"


def test_no_other_module_reads_the_environment() -> None:
    for file in SOURCES:
        uses = re.findall(r'\b(?:environ|getenv)\b(?:\.\w+\("(\w+)")?', file.read_text("utf-8"))
        assert uses == ELSEWHERE.get(file.name, []) or file.name == "settings.py", file


def test_code_asks_for_the_settings_of_the_table() -> None:
    asked = {
        name
        for file in SOURCES
        for name in re.findall(r'read_setting\("(\w+)"\)', file.read_text("utf-8"))
    }
    table = {setting.name for setting in SETTINGS}
    assert asked <= table
    # The SDKs read the others.
    assert all(name.startswith(("TEMPORAL_", "OTEL_")) for name in table - asked)


def test_defaults_are_those_without_configuration(unconfigured: None) -> None:
    assert connection.connect_config() == {
        "target_host": read_setting("TEMPORAL_ADDRESS"),
        "namespace": read_setting("TEMPORAL_NAMESPACE"),
    }


@pytest.mark.parametrize("program", ["worker", "audit"])
def test_help_has_every_setting_of_the_program_and_no_other(program: Program) -> None:
    told = re.findall(r"^  ([A-Z_*]+)$", describe_settings(program), re.MULTILINE)
    assert told == [setting.name for setting in SETTINGS if program in setting.readers]


def test_the_operators_guide_lists_every_setting_once_with_its_readers() -> None:
    text = (ROOT / "docs" / "operating.md").read_text("utf-8")
    [section] = re.findall(r"^## Configuration$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    all_programs, traced, server, worker = re.split(r"^Only the ", section, flags=re.MULTILINE)
    for part, expected in (
        (all_programs, names("worker", "server", "audit")),
        (traced, names("worker", "server")),
        (server, names("server")),
        (worker, names("worker", "audit") | names("worker")),
    ):
        assert sorted(re.findall(r"`([A-Z]+_[A-Z_]*\*?)`", part)) == sorted(expected)
    for setting in SETTINGS:
        [row] = [line for line in section.splitlines() if f"`{setting.name}`" in line]
        # The guide has the data directory without the folder of this project.
        assert not setting.default or f"`{Path(setting.default).name}" in row


def test_bundle_asks_for_settings_of_the_server() -> None:
    manifest = json.loads((ROOT / "manifest.json").read_text("utf-8"))
    for name, value in manifest["server"]["mcp_config"]["env"].items():
        setting = find_setting(name)
        assert setting
        assert "server" in setting.readers
        field = manifest["user_config"][value.removeprefix("${user_config.").removesuffix("}")]
        assert field["default"] == setting.default
        assert field.get("sensitive", False) is setting.is_secret
