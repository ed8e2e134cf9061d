"""What programs and models get and send: structured content, schemas, spellings of arguments."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from support import (
    CALLS,
    ERAS,
    Refused,
    Tools,
    Worker,
    advertised,
    an_invoice,
    eventually,
    tools_in_memory,
)

INNER = {"request", "sent_at", "digest", "ledger", "gateway", "approval_timeout_days"}


@pytest.fixture(params=ERAS)
async def tools(
    request: pytest.FixtureRequest, address: str, worker: Worker
) -> AsyncIterator[Tools]:
    async with tools_in_memory(address, request.param) as tools:
        yield tools


async def structured(tools: Tools, tool: str, **arguments: Any) -> dict[str, Any]:
    """Returns the structured content of an answer, after comparing it with the text."""
    result = await tools.client.call_tool(tool, arguments)
    content: dict[str, Any] = result.structured_content  # type: ignore[assignment]
    assert content["message"] == result.content[0].text  # type: ignore[union-attr]
    assert next(iter(content)) == "message"  # as programs show it to a person
    return content


def fields(content: Any) -> list[tuple[str, Any]]:
    """All fields at any depth."""
    if isinstance(content, list):
        return [field for item in content for field in fields(item)]
    if not isinstance(content, dict):
        return []
    return [*content.items(), *fields(list(content.values()))]


async def test_structured_content_has_the_outcome_of_a_call(tools: Tools) -> None:
    paid, rejected = an_invoice(payment_interval_seconds=60), an_invoice()
    for invoice, decide, outcome in (
        (paid, "approve_invoice", "approved"),
        (rejected, "reject_invoice", "rejected"),
    ):
        name = invoice["id"]
        content = await structured(tools, "process_invoice", invoice_data=invoice)
        assert content["outcome"] == "started"
        content = await structured(tools, "process_invoice", invoice_data=invoice)
        assert content["outcome"] == "already_in_process"
        content = await structured(tools, decide, invoice_id=name)
        assert content["outcome"] == outcome
        content = await structured(tools, decide, invoice_id=name)
        assert content["outcome"] == f"already_{outcome}"
        content = await structured(tools, "get_invoice_status", invoice_id=name)
        assert "outcome" not in content


async def test_structured_content_has_no_empty_fields_and_no_inner_ids(tools_here: Tools) -> None:
    invoice = an_invoice(payment_interval_seconds=60)
    name = invoice["id"]
    answers = [
        await structured(tools_here, "process_invoice", invoice_data=invoice),
        await structured(tools_here, "approve_invoice", invoice_id=name, total="7000.00"),
        await structured(tools_here, "get_invoice_status", invoice_id=name),
        await structured(tools_here, "list_invoices"),
    ]
    assert answers[2]["decision"]["approved"] is True
    for key, value in fields(answers):
        assert value is not None
        assert key not in INNER


async def test_times_are_the_same_in_every_answer(tools_here: Tools) -> None:
    invoice = an_invoice(approval_timeout_days=0.5)  # among the first in the list

    async def listed() -> dict[str, Any] | None:
        content = await structured(tools_here, "list_invoices", status="waiting")
        found = [one for one in content["invoices"] if one["invoice_id"] == invoice["id"]]
        return found[0] if found else None

    answers = [
        await structured(tools_here, "process_invoice", invoice_data=invoice),
        await structured(tools_here, "process_invoice", invoice_data=invoice),
        await structured(tools_here, "get_invoice_status", invoice_id=invoice["id"]),
        await eventually(listed),
    ]
    assert len({(answer["submitted_at"], answer["deadline"]) for answer in answers}) == 1


async def test_null_stands_for_the_default(tools_here: Tools) -> None:
    nothing = dict.fromkeys(
        [
            "currency",
            "customer",
            "payment_method",
            "approval_timeout_days",
            "payment_interval_seconds",
        ]
    )
    invoice = an_invoice(**nothing)
    content = await structured(tools_here, "process_invoice", invoice_data=invoice)
    assert content["currency"] == "USD"
    assert await structured(tools_here, "list_invoices", status=None)
    content = await structured(tools_here, "reject_invoice", invoice_id=invoice["id"], reason=None)
    assert content["outcome"] == "rejected"


async def test_spellings_of_models_are_understood(tools_here: Tools) -> None:
    invoice = an_invoice(currency="usd")
    content = await structured(tools_here, "process_invoice", invoice_data=invoice)
    assert content["currency"] == "USD"
    assert await structured(tools_here, "list_invoices", status="Waiting")
    with pytest.raises(Refused, match=f"the invoice's own id is {invoice['id']}"):
        await tools_here("get_invoice_status", invoice_id=f"invoice-{invoice['id']}")


async def test_no_lines_are_refused_in_plain_words(tools_here: Tools) -> None:
    with pytest.raises(Refused, match=r"invoice_data.lines: must have at least 1 item\.$"):
        await tools_here("process_invoice", invoice_data=an_invoice(lines=[]))


async def test_no_input_schema_has_a_boolean_additional_properties(tools: Tools) -> None:
    listed = await tools.client.list_tools()
    schemas = [tool.model_dump(by_alias=True)["inputSchema"] for tool in listed]
    assert len(schemas) == len(CALLS)
    for key, value in fields(schemas):
        assert key != "additionalProperties" or not isinstance(value, bool)


async def test_what_is_advertised_has_content(tools: Tools) -> None:
    client = tools.client
    lists = {
        "prompts": client.list_prompts,
        "resources": client.list_resources,
        "tools": client.list_tools,
    }
    kinds = lists.keys() & await advertised(client)
    assert kinds
    for kind in kinds:
        assert await lists[kind]()
