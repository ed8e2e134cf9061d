"""What models and hosts are told about the tools, held as a snapshot.

After a change that is meant: `UPDATE_SNAPSHOTS=1 uv run pytest tests/unit/test_schemas.py`.
"""

import json
import os
from typing import Any

import pytest
from fastmcp import Client as McpClient

import invoice_server
from support import ERAS, ROOT

SNAPSHOT = ROOT / "tests" / "snapshots" / "tools.json"
TOLD = {"name", "title", "description", "annotations", "input_schema", "output_schema"}


@pytest.mark.parametrize("era", ERAS)
async def test_tools_are_told_as_in_the_snapshot(era: str) -> None:
    async with McpClient(invoice_server.mcp, mode=era) as client:
        tools = [
            tool.model_dump(mode="json", by_alias=True, include=TOLD, exclude_none=True)
            for tool in await client.list_tools()
        ]
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(json.dumps(tools, indent=2, ensure_ascii=False) + "\n", "utf-8")
    assert tools == json.loads(SNAPSHOT.read_text("utf-8")), "see this module's docstring"


@pytest.mark.parametrize("tool", json.loads(SNAPSHOT.read_text("utf-8")), ids=lambda t: t["name"])
def test_what_may_be_empty_may_be_missing(tool: dict[str, Any]) -> None:
    def check(schema: Any) -> None:
        if isinstance(schema, dict):
            for name, field in schema.get("properties", {}).items():
                if {"type": "null"} in field.get("anyOf", []):
                    assert name not in schema.get("required", [])
            for part in schema.values():
                check(part)
        elif isinstance(schema, list):
            for part in schema:
                check(part)

    check(tool["outputSchema"])
