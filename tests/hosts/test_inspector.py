"""The MCP Inspector's strict check: schemas that every host can use."""

import json
import sys

from node_tools import INSPECTOR, npx


def test_tools_pass_the_strict_check() -> None:
    # In one era: `test_schemas.py` holds that the tools are the same in both.
    arguments = [sys.executable, "invoice_server.py", "--method", "tools/list"]
    checked = npx(INSPECTOR, "--cli", *arguments, "--strict")
    assert checked.returncode == 0, checked.stderr
    assert len(json.loads(checked.stdout)["tools"]) == 5
