"""The bundle that Claude Desktop installs with a double click: `npx @anthropic-ai/mcpb pack`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import invoice_server
from node_tools import node_command
from support import ROOT
from temporal_service import connection

MANIFEST: dict[str, Any] = json.loads((ROOT / "manifest.json").read_text("utf-8"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NO_CODE = {"LICENSE", "approval/card.html", "manifest.json", "pyproject.toml", "uv.lock"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked bundle of a project that has all kinds of private files."""
    mcpb = node_command("@anthropic-ai/mcpb@2", "mcpb")
    folder = tmp_path_factory.mktemp("bundle")
    project = folder / "project"
    project.mkdir()
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, project)
    for package in ROOT.glob("*/__init__.py"):
        shutil.copytree(package.parent, project / package.parent.name)
    for private in (".env", "key.pem", "data/payments.db", "tests/test_x.py", ".venv/x.py"):
        (project / private).parent.mkdir(exist_ok=True)
        (project / private).write_text("private")
    # This also validates the manifest.
    packed = subprocess.run(
        [mcpb, "pack", project, folder / "invoice-processor.mcpb"],
        capture_output=True,
        encoding="utf-8",
    )
    assert packed.returncode == 0, packed.stdout + packed.stderr
    with ZipFile(folder / "invoice-processor.mcpb") as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def contents(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_bundle_is_valid_and_has_the_modules_the_server_imports_and_no_more(bundle: Path) -> None:
    code = (
        "import sys, invoice_server, invoice_client, temporal_service.connection\n"
        "files = [getattr(module, '__file__', None) or '' for module in sys.modules.values()]\n"
        "print(*files, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(bundle)}
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, cwd=bundle, env=environment, encoding="utf-8")
    imported = {
        Path(file).relative_to(bundle).as_posix()
        for file in output.splitlines()
        if Path(file).is_relative_to(bundle)
    }
    assert contents(bundle) == imported | NO_CODE


def test_bundle_is_named_as_the_project_and_the_server() -> None:
    assert MANIFEST["name"] == PROJECT["name"] == invoice_server.mcp.name
    assert MANIFEST["license"] == PROJECT["license"]
    assert MANIFEST["compatibility"]["runtimes"]["python"] == PROJECT["requires-python"]


def test_version_is_the_servers_everywhere() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = {
        "pyproject.toml": PROJECT["version"],
        "manifest.json": MANIFEST["version"],
        "uv.lock": next(p["version"] for p in lock["package"] if p["name"] == PROJECT["name"]),
        "CHANGELOG.md": re.findall(r"^## ([0-9.]+)", changes, re.MULTILINE)[0],
    }
    assert versions == dict.fromkeys(versions, invoice_server.VERSION)


async def test_bundle_lists_the_servers_tools() -> None:
    told = [tool["name"] for tool in MANIFEST["tools"]]
    assert told == [tool.name for tool in await invoice_server.mcp.list_tools()]


@pytest.mark.parametrize("fields", ["as they come", "emptied"])
def test_fields_not_filled_in_mean_the_local_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fields: str
) -> None:
    for name in [name for name in os.environ if name.startswith("TEMPORAL_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "APPDATA"):  # without a TOML file of this machine
        monkeypatch.setenv(name, str(tmp_path))
    for name, value in MANIFEST["server"]["mcp_config"]["env"].items():
        field = MANIFEST["user_config"][value.removeprefix("${user_config.").removesuffix("}")]
        monkeypatch.setenv(name, field["default"] if fields == "as they come" else "")
    assert connection.connect_config() == {
        "target_host": "localhost:7233",
        "namespace": "default",
    }
