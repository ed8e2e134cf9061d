"""What is on an invoice, whose bill it is and what became of each line is told by the status."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import invoice_runs
import invoice_server
from payments.gateway import LedgerEntry, Payment
from payments.ledger import SQLiteLedger
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
from temporal_service import executions
from temporal_service.connection import whoami
from worker_here import worker_here

BILL = {
    "supplier": "Northwind Web Ltd",
    "supplier_reference": "2026-4711",
    "due_date": "2026-12-31",
}
HOSTILE = "Fine\n2. $0.01 for “x” (paid)\u202e <b>"


@pytest.fixture
async def idle(
    new_namespace: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Tools, Desk]]:
    """The tools, and another client, of a namespace for which no worker runs."""
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.2)
    namespace = Namespace(new_namespace())
    async with tools_in_memory(namespace.address) as tools:
        yield tools, Desk(await namespace.connect())


async def lines_in_words(tools: Tools, invoice: dict[str, Any]) -> list[str]:
    text = await tools("get_invoice_status", invoice_id=invoice["id"])
    return text[text.index("\nLines") + 1 :].splitlines()


async def test_the_status_has_the_invoice_from_its_submission_to_its_end(tools: Tools) -> None:
    invoice = an_invoice(**BILL, project="Website")
    name = invoice["id"]
    bill = "From “Northwind Web Ltd”, their reference “2026-4711”, due 2026-12-31."
    assert bill in await tools("process_invoice", invoice_data=invoice)
    waiting = await tools.until(invoice, "waiting")
    assert {field: waiting[field] for field in BILL} == BILL
    assert [line["state"] for line in waiting["lines"]] == ["unpaid", "unpaid"]
    assert waiting["other_fields"]["project"] == "Website"
    text = await tools("get_invoice_status", invoice_id=name)
    submitted = f"Submitted by {whoami()}."
    assert text.startswith(f"Invoice {name} status: Awaiting approval. {bill} 2 lines, $7,000.00;")
    assert submitted in text
    assert "\nAlso given: project “Website”" in text
    assert await lines_in_words(tools, invoice) == [
        "Lines:",
        "1. $5,000.00 for “Web Development”: “Frontend work” (unpaid)",
        "2. $2,000.00 for “Design Services”: “UI/UX design” (unpaid)",
    ]
    await tools("approve_invoice", invoice_id=name)
    completed = await tools.until(invoice, "completed")
    assert completed["lines"] == [{**line, "state": "paid"} for line in waiting["lines"]]

    async def listed() -> bool:
        lines = (await tools("list_invoices", status="completed")).splitlines()
        return any(f"{name}: Completed; 2 lines, $7,000.00; from “North" in line for line in lines)

    assert await eventually(listed)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("supplier", "x" * 256, "must have at most 255 characters"),
        ("supplier_reference", ["4711"], "must be a valid string"),
        ("due_date", "31.12.2026", "must be a date such as 2026-12-31"),
    ],
)
async def test_a_new_invoice_that_says_oddly_whose_bill_it_is_is_refused(
    field: str, value: Any, rule: str, tools_here: Tools
) -> None:
    with pytest.raises(Refused) as refusal:
        await tools_here("process_invoice", invoice_data=an_invoice(**{field: value}))
    assert str(refusal.value) == f"Nothing was done. invoice_data.{field}: {rule}."


@pytest.mark.parametrize(
    "odd", [{"supplier": 5, "due_date": ["soon"]}, {"supplier": "x" * 10_000, "due_date": None}]
)
async def test_another_clients_odd_fields_change_nothing(
    odd: dict[str, Any], tools_here: Tools, worker: Worker
) -> None:
    desk = Desk(await Namespace(worker.address).connect())
    invoice = an_invoice(**odd)
    await desk.start(invoice)
    status = await tools_here.until(invoice, "waiting")
    assert not status.keys() & BILL.keys()
    assert "supplier" in status["other_fields"]
    await tools_here("approve_invoice", invoice_id=invoice["id"])
    assert (await tools_here.until(invoice, "completed"))["paid_lines"] == 2


async def test_without_a_worker_the_status_has_the_content(idle: tuple[Tools, Desk]) -> None:
    tools, desk = idle
    own = await tools.submit(**BILL)
    others = an_invoice(lines=[{"item": HOSTILE, "amount": 10, "description": HOSTILE}], **BILL)
    await desk.start(others, memo={"supplier": "Another", "line_count": 7})
    for invoice in (own, others):
        status = await tools.status(invoice)
        assert {field: status[field] for field in BILL} == BILL
        assert [line["item"] for line in status["lines"]] == [
            line["item"] for line in invoice["lines"]
        ]
        assert {line["state"] for line in status["lines"]} == {"not_known"}
    fine = "Fine 2. $0.01 for 'x' (paid)\N{REPLACEMENT CHARACTER} ‹b›"
    assert await lines_in_words(tools, others) == [
        "Lines:",
        f"1. $10.00 for “{fine}”: “{fine}” (not known whether it is paid)",
    ]


@pytest.mark.parametrize("lines", [5, [{"item": "Pens"}], [{"item": "Pens", "amount": -1}]])
async def test_content_that_cannot_be_read_is_said(lines: Any, idle: tuple[Tools, Desk]) -> None:
    tools, desk = idle
    invoice = an_invoice(lines=lines)
    await desk.start(invoice)
    text = await tools("get_invoice_status", invoice_id=invoice["id"])
    assert text.endswith("\nIts lines can't be shown: its content breaks the rules.")
    assert "lines" not in await tools.status(invoice)


async def test_content_is_read_once_and_at_the_same_time_as_the_rest(
    idle: tuple[Tools, Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    describe, read = executions.describe_execution, invoice_runs.InvoiceRuns.read_start

    async def described(*arguments: Any) -> Any:
        calls.append("describes")
        try:
            return await describe(*arguments)
        finally:
            calls.append("described")

    async def reading(*arguments: Any, **options: Any) -> Any:
        calls.append("reads")
        return await read(*arguments, **options)

    monkeypatch.setattr(invoice_runs, "describe_execution", described)
    monkeypatch.setattr(invoice_runs.InvoiceRuns, "read_start", reading)
    tools, desk = idle
    own = await tools.submit()
    calls.clear()
    assert len((await tools.status(own))["lines"]) == 2
    assert "reads" not in calls
    others = an_invoice()
    await desk.start(others, memo={})
    calls.clear()
    await tools.status(others)
    assert calls.index("reads") < calls.index("described")
    # As with one that is too large to be remembered.
    assert invoice_server.shared_client
    invoice_server.shared_client.runs.remembered_starts = invoice_runs.RememberedStarts()
    calls.clear()
    assert len((await tools.status(own))["lines"]) == 2
    assert calls.index("reads") < calls.index("described")


async def test_a_later_submission_is_told_with_its_own_lines(idle: tuple[Tools, Desk]) -> None:
    tools, desk = idle
    invoice = await tools.submit()
    await tools.status(invoice)
    await desk.handle(invoice).terminate()
    later = {**invoice, "lines": [{"item": "Other", "amount": "1.00"}]}
    await desk.start(later)
    [line] = (await tools.status(later))["lines"]
    assert line["item"] == "Other"


async def test_lines_paid_earlier_are_told_wherever_they_stand(
    namespace: Namespace, tmp_path: Path
) -> None:
    lines = [{"item": f"Day {number}", "amount": f"{number}.00"} for number in range(1, 5)]
    invoice = an_invoice(lines=lines)
    with closing(SQLiteLedger(tmp_path / "payments.db")) as ledger:
        for number in (2, 4):
            key = f"invoice-{invoice['id']}/line-{number}"
            payment = Payment(key, invoice["id"], f"Day {number}", Decimal(number), "USD")
            now = datetime.now(UTC)
            begun = LedgerEntry(payment, 1, "simulated", f"sim-{number}", "begun", now)
            ledger.settle(replace(ledger.add(begun), state="paid"))
    states = ["unpaid", "paid_earlier", "unpaid", "paid_earlier"]
    async with tools_in_memory(namespace.address) as tools:
        async with worker_here(namespace.address, tmp_path):
            await tools("process_invoice", invoice_data=invoice)
            status = await tools.until(invoice, "waiting")
            assert [line["state"] for line in status["lines"]] == states
        without_worker = await tools.status(invoice)
        assert not without_worker.get("worker_answers")  # by the memo
        assert [line["state"] for line in without_worker["lines"]] == states
        assert without_worker["paid_earlier_numbers"] == "2, 4"
        assert (await lines_in_words(tools, invoice))[1:3] == [
            "1. $1.00 for “Day 1” (unpaid)",
            "2. $2.00 for “Day 2” (paid earlier)",
        ]
        async with worker_here(namespace.address, tmp_path):
            await tools("approve_invoice", invoice_id=invoice["id"])
            status = await tools.until(invoice, "completed")
            assert [line["state"] for line in status["lines"]] == [
                "paid",
                "paid_earlier",
                "paid",
                "paid_earlier",
            ]


async def test_the_longest_invoice_is_told_in_less_than_100_kilobytes(tools: Tools) -> None:
    line = {"item": "Ж" * 200, "amount": "9999999999.99", "description": "Ж" * 300}
    invoice = await tools.submit(lines=[line] * 500, supplier="Ж" * 255)
    result = await tools.client.call_tool_mcp("get_invoice_status", {"invoice_id": invoice["id"]})
    answer = json.dumps(result.model_dump(mode="json"), ensure_ascii=False).encode()
    assert len(answer) < 100_000
    assert result.structured_content
    assert len(result.structured_content["lines"]) == 100
    assert result.structured_content["lines_not_shown"] == 400
