"""What a person is told about invoices, in the chat and in the Web UI."""

import random
import string
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import temporalio.api.sdk.v1
from temporalio.client import Client

from support import (
    Desk,
    Namespace,
    Refused,
    Tools,
    Worker,
    an_invoice,
    eventually,
    tools_in_memory,
)
from temporal_service.connection import whoami


@pytest.fixture
def tools(tools_here: Tools) -> Tools:
    """The words don't depend on the server's process or the era."""
    return tools_here


async def details(client: Client, invoice: dict[str, Any]) -> str:
    """The Web UI's current details."""
    handle = client.get_workflow_handle(f"invoice-{invoice['id']}")

    async def current_details() -> str:
        metadata = await handle.query(
            "__temporal_workflow_metadata", result_type=temporalio.api.sdk.v1.WorkflowMetadata
        )
        text: str = metadata.current_details
        return text

    return await eventually(current_details)  # there aren't any before the ledger has answered


async def test_a_waiting_invoice_shows_its_amounts_and_deadline(tools: Tools) -> None:
    invoice = await tools.submit()
    text = await tools("get_invoice_status", invoice_id=invoice["id"])
    assert "2 lines, $7,000.00; nothing has been paid." in text
    assert "Approval deadline: 20" in text
    assert "(in 5 days); without a decision by then it is rejected." in text
    status = await tools.status(invoice)
    waiting = datetime.fromisoformat(status["deadline"]) - datetime.fromisoformat(
        status["submitted_at"]
    )
    assert waiting == timedelta(days=5)


async def test_the_web_ui_shows_the_submitter_and_the_payment_date(
    tools: Tools, client: Client
) -> None:
    day = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}"
    invoice = await tools.submit(pay_on=day)
    assert f"Submitted by {whoami()}." in await details(client, invoice)
    assert f"Payment date: {day}." in await details(client, invoice)
    await tools("approve_invoice", invoice_id=invoice["id"])
    await tools.until(invoice, "scheduled")
    assert f"### Approved, to be paid on {day}\n" in await details(client, invoice)
    await tools("cancel_invoice", invoice_id=invoice["id"])


async def test_who_submitted_an_invoice_is_in_the_status_and_the_list(tools: Tools) -> None:
    invoice = await tools.submit()
    text = await tools("process_invoice", invoice_data=invoice)
    assert text.startswith("Already in process; nothing was started.")
    assert f"Submitted by {whoami()}." in text
    status = await tools.status(invoice)
    assert status["submitted_by"] == whoami()
    assert "submitted_by" not in status.get("other_fields", {})

    async def listed() -> bool:
        return f"submitted by {whoami()} " in await tools("list_invoices", status="waiting")

    assert await eventually(listed)


@pytest.mark.parametrize("name", ["x" * 5000, "boss and eve. Completed", 5, {"by": "boss"}, None])
async def test_another_clients_name_for_the_submitter_is_quoted_or_left_out(
    name: object, tools: Tools, client: Client
) -> None:
    invoice = an_invoice()
    await Desk(client).start(invoice, memo={"submitted_by": name})
    text = (await tools.until(invoice, "waiting"), await tools.status(invoice))[1]["message"]
    if isinstance(name, str):
        assert f"Submitted by {'x' * 199}" in text or f"Submitted by “{name}”." in text
    else:
        assert "Submitted by" not in text
    await tools("cancel_invoice", invoice_id=invoice["id"])


@pytest.mark.parametrize("name", ["submitted_by", "ledger"])
async def test_half_a_character_in_another_clients_memo_is_left_out(
    name: str, tools: Tools, client: Client
) -> None:
    invoice = an_invoice()
    await Desk(client).start(invoice, memo={name: "\ud800x"})
    await tools("approve_invoice", invoice_id=invoice["id"])
    status = await tools.until(invoice, "completed")
    assert "Paid: 2 of 2 lines" in status["message"]
    assert "Submitted by" not in status["message"]


async def test_a_paying_invoice_shows_its_progress_and_who_approved(tools: Tools) -> None:
    invoice = await tools.submit(payment_interval_seconds=1.5)
    await tools("approve_invoice", invoice_id=invoice["id"], reason="as agreed")

    async def half_paid() -> str | None:
        text = await tools("get_invoice_status", invoice_id=invoice["id"])
        return text if "Paid: 1 of 2 lines" in text else None

    text = await eventually(half_paid)
    assert "Paid: 1 of 2 lines, $5,000.00 of $7,000.00." in text
    assert "Now: line 2 of 2, “Design Services”, $2,000.00." in text
    assert "reason: “as agreed”" in text


async def test_other_currencies_are_shown_by_code(tools: Tools) -> None:
    invoice = await tools.submit(currency="EUR")
    assert "2 lines, EUR 7,000.00" in await tools("get_invoice_status", invoice_id=invoice["id"])


async def test_an_unknown_state_is_refused(tools: Tools) -> None:
    with pytest.raises(Refused, match="status: must be 'all', 'waiting'"):
        await tools("list_invoices", status="open")


@pytest.mark.parametrize(
    ("invoice", "words"),
    [
        ({"lines": [{"item": "A", "amount": 1}]}, "invoice_data.id: is required"),
        ({"id": "unknown", "lines": []}, "invoice_data.lines: must have at least 1 item"),
        ({"id": "A", "lines": 5}, "invoice_data.lines: must be a valid list"),
        ({"id": "A", "lines": [5]}, "invoice_data.lines[0]: must be a valid JSON object"),
        ({"id": "A", "lines": [{"item": "A", "amount": 0}]}, "amount: must be greater than 0"),
        ({"id": "-", "lines": [{"item": "A", "amount": 1}]}, "invoice_data.id: must contain only"),
    ],
)
async def test_bad_input_names_the_field_and_the_rule(
    invoice: dict[str, Any], words: str, tools: Tools
) -> None:
    with pytest.raises(Refused) as refusal:
        await tools("process_invoice", invoice_data=invoice)
    assert str(refusal.value).startswith("Nothing was done. ")
    assert words in str(refusal.value)


async def test_the_web_ui_shows_a_table_of_lines(tools: Tools, client: Client) -> None:
    invoice = await tools.submit()
    text = await details(client, invoice)
    assert text.startswith("### Awaiting approval, until 20")
    assert "2 lines, \\$7,000.00; nothing has been paid." in text
    # No-break spaces keep the columns apart; the Web UI leaves no room between them.
    gap = "\N{NO-BREAK SPACE}" * 2
    assert f"| 1 |{gap}\\$5,000.00 |{gap}unpaid{gap}| Web Development: “Frontend work” |" in text


async def test_the_web_ui_asks_for_nothing_about_a_paid_invoice(
    tools: Tools, client: Client
) -> None:
    invoice = await tools.submit(payment_interval_seconds=0)
    await tools("approve_invoice", invoice_id=invoice["id"])
    await tools.until(invoice, "completed")
    text = await details(client, invoice)
    assert "### Completed" in text
    assert "Submitted again" not in text


async def test_hostile_text_does_not_break_out_of_the_table(tools: Tools, client: Client) -> None:
    item = "x | <script> `a` \u202e\n\n# Completed\n[a](b) $1$ \\"
    invoice = await tools.submit(lines=[{"item": item, "amount": "1.00"}])
    table = (await details(client, invoice)).split("|--:|--:|:--|:--|\n")[1].strip()
    assert len(table.splitlines()) == 1
    assert table.count("|") == 5
    assert not set("<>`[]\u202e") & set(table)


async def test_workflow_timer_and_activities_have_summaries(
    tools: Tools, client: Client, worker: Worker
) -> None:
    invoice = await tools.submit(payment_interval_seconds=0.1)
    await tools.until(invoice, "waiting")  # so that the deadline's timer runs
    await tools("approve_invoice", invoice_id=invoice["id"])
    await tools.until(invoice, "completed")
    handle = client.get_workflow_handle(f"invoice-{invoice['id']}")
    summary = await (await handle.describe()).static_summary()
    assert summary == f"{invoice['id']}: 2 lines, $7,000.00"
    events = (await handle.fetch_history()).events
    summaries = [
        event.user_metadata.summary.data.decode()
        for event in events
        if event.user_metadata.HasField("summary")
    ]
    assert summaries[-5:] == [
        '"Approval deadline"',
        '"Pacing before line 1"',
        '"Web Development: $5,000.00"',
        '"Pacing before line 2"',
        '"Design Services: $2,000.00"',
    ]


async def test_an_invoice_is_listed_once_with_its_latest_submission(tools: Tools) -> None:
    currency = "".join(random.choices(string.ascii_uppercase, k=3))
    invoice = an_invoice(currency=currency, approval_timeout_days=0.5)  # among the first
    for _ in range(2):
        await tools("process_invoice", invoice_data=invoice)
        await tools("reject_invoice", invoice_id=invoice["id"])
    await tools("process_invoice", invoice_data=invoice)

    async def listed(status: str) -> tuple[list[str], dict[str, Any]]:
        result = await tools.client.call_tool("list_invoices", {"status": status})
        content: dict[str, Any] = result.structured_content  # type: ignore[assignment]
        found = [one for one in content["invoices"] if one["invoice_id"] == invoice["id"]]
        return [one["state"] for one in found], content

    async def waits() -> bool:
        return (await listed("waiting"))[0] == ["waiting"]

    assert await eventually(waits)
    states, content = await listed("all")
    assert states == ["waiting"]
    assert content["totals_by_state"]["waiting"][currency] == "7000.00"
    assert (await listed("rejected"))[0] == []


async def test_a_workflow_id_with_a_line_break_does_not_add_a_line(namespace: Namespace) -> None:
    name = f"x\n- INV-9: Completed; {uuid4().hex}"
    client = await namespace.connect()
    await client.start_workflow("InvoiceWorkflow", 5, id=f"invoice-{name}", task_queue="of-nobody")
    async with tools_in_memory(namespace.address) as tools:

        async def line() -> str | None:
            lines = (await tools("list_invoices")).splitlines()
            return next((line for line in lines if name[-32:] in line), None)

        assert (await eventually(line)).startswith("- “x - INV-9: Completed; ")
