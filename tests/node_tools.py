"""Runs Node packages for the tests. If they can't be installed, the tests are skipped."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from support import ROOT

MCPB = "@anthropic-ai/mcpb@2"
INSPECTOR = "@modelcontextprotocol/inspector@2"


def npx(package: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the package's command in the project's folder."""
    if reason := _missing(package):
        pytest.skip(reason)
    return _npx(package, *arguments)


@cache
def _missing(package: str) -> str:
    """Why the package can't be used here; empty if it can."""
    if not shutil.which("npx"):
        return "no npx on PATH"
    tried = _npx(package, "--help")
    return f"{package} can't be had: {tried.stderr.strip()[-300:]}" if tried.returncode else ""


def _npx(package: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    npx = shutil.which("npx")
    assert npx
    return subprocess.run(
        [npx, "--yes", "--prefer-offline", "--fetch-retries=0", package, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def npm_exec(package: str) -> list[str]:
    """The start of a command line that has this package's commands on its PATH."""
    if reason := _missing(package):
        pytest.skip(reason)
    npm = shutil.which("npm")
    assert npm
    return [
        npm,
        "exec",
        "--yes",
        "--prefer-offline",
        "--fetch-retries=0",
        f"--package={package}",
        "--",
    ]
