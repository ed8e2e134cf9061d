"""The MCP Inspector's strict check: schemas that every host can use."""

import json
import sys

import pytest

from node_tools import INSPECTOR, npx


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_tools_pass_the_strict_check(era: str) -> None:
    arguments = [sys.executable, "invoice_server.py", "--method", "tools/list"]
    checked = npx(INSPECTOR, "--cli", *arguments, "--strict", "--protocol-era", era)
    assert checked.returncode == 0, checked.stderr
    assert len(json.loads(checked.stdout)["tools"]) == 5
