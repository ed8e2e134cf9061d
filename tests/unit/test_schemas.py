"""What models and hosts are told about the tools, compared with a snapshot.

After an intended change: `UPDATE_SNAPSHOTS=1 uv run pytest tests/unit/test_schemas.py`.
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
async def test_tools_are_listed_as_in_the_snapshot(era: str) -> None:
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


@pytest.mark.parametrize("spelling", ["object", "text", "text of the lines"])
async def test_nesting_is_refused_before_the_invoice_is_validated(
    spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_yet(*_: Any, **__: Any) -> Any:
        raise AssertionError("the invoice is validated")

    monkeypatch.setattr("invoices.invoice.from_json", not_yet)
    deep = json.loads("[" * 21 + "]" * 21)
    invoice: Any = {"id": "INV-1", "lines": [{"item": "Pens", "amount": "1.00", "tax": deep}]}
    if spelling == "text of the lines":
        invoice["lines"] = json.dumps(invoice["lines"])
    elif spelling == "text":
        invoice = json.dumps(invoice)
    async with McpClient(invoice_server.mcp) as client:
        answer = await client.call_tool(
            "process_invoice", {"invoice_data": invoice}, raise_on_error=False
        )
    assert answer.is_error
    assert [block.text for block in answer.content] == [
        "Nothing was done. invoice_data: must have at most 20 levels of nesting in “lines”."
    ]
