"""The commands of Node packages. If npm can't install one, the tests that need it are skipped."""

import shutil
import subprocess
from functools import cache

import pytest


@cache
def node_command(package: str, name: str) -> str:
    """The path of a package's command: starting that takes less than starting npm each time."""
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("no npm on PATH")
    options = ["--yes", "--prefer-offline", "--fetch-retries=0", f"--package={package}"]
    found = subprocess.run(
        [npm, "exec", *options, "--", "node", "--print", "process.env.PATH"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    path = shutil.which(name, path=found.stdout.strip())
    if not path:
        pytest.skip(f"{package} can't be had: {found.stderr.strip()[-300:]}")
    return path
