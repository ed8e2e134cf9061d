"""What `list_invoices` shows first, and that its cursor gives the rest."""

import asyncio
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

import invoice_search
from invoice_runs import InvoiceRuns
from invoice_search import InvoiceSearch
from support import (
    Desk,
    Namespace,
    Refused,
    Tools,
    an_invoice,
    eventually,
    tools_in_memory,
)
from worker_here import worker_here


class Idle:
    """A namespace without a worker, whose invoices are started at once and stay as they are."""

    def __init__(self, client: Client, tools: Tools) -> None:
        self.client = client
        self.tools = tools
        self.desk = Desk(client)
        self.started = 0

    async def start(self, count: int = 1, **fields: Any) -> list[str]:
        """Starts invoices; returns their ids once they can be listed."""
        invoices = [an_invoice(**fields) for _ in range(count)]
        await asyncio.gather(*map(self.desk.start, invoices))
        self.started += count
        await self.visible("WorkflowType = 'InvoiceWorkflow'", self.started)
        return [invoice["id"] for invoice in invoices]

    async def end(self, *names: str) -> None:
        """Terminates them one after another."""
        for name in names:
            await self.client.get_workflow_handle(f"invoice-{name}").terminate()

    async def visible(self, query: str, count: int) -> None:
        async def counted() -> bool:
            return (await self.client.count_workflows(query)).count >= count

        await eventually(counted)

    async def answer(self, status: str = "waiting", **arguments: Any) -> dict[str, Any]:
        result = await self.tools.client.call_tool("list_invoices", {"status": status, **arguments})
        content: dict[str, Any] = result.structured_content  # type: ignore[assignment]
        return content

    async def pages(self, status: str) -> list[list[str]]:
        """The ids on each page."""
        content = await self.answer(status)
        pages = [ids(content)]
        while cursor := content.get("next_cursor"):
            content = await self.answer(status, cursor=cursor)
            pages.append(ids(content))
        return pages


def ids(content: dict[str, Any]) -> list[str]:
    return [invoice["invoice_id"] for invoice in content["invoices"]]


@pytest.fixture
async def idle(namespace: Namespace) -> AsyncIterator[Idle]:
    client = await namespace.connect()
    async with tools_in_memory(namespace.address) as tools:
        yield Idle(client, tools)


async def test_the_nearest_deadline_comes_first(idle: Idle) -> None:
    [later] = await idle.start(approval_timeout_days=9)
    [latest] = await idle.start(approval_timeout_days=20)
    [first] = await idle.start(approval_timeout_days=1)
    assert await idle.pages("waiting") == [[first, later, latest]]
    await idle.end(later, latest)
    await idle.visible("ExecutionStatus = 'Terminated'", 2)
    [newest] = await idle.start(approval_timeout_days=30)
    # The last to end is the first of the closed ones.
    assert await idle.pages("all") == [[first, newest, latest, later]]
    text = await idle.tools("list_invoices")
    assert text.startswith(
        "4 invoices, those that wait first, the nearest deadline first:\n- " + first
    )
    assert text.splitlines()[-1] == ("Sum of all 4: waiting $14,000.00; terminated $14,000.00.")


async def test_a_cursor_gives_the_rest_and_sums_are_of_all(idle: Idle) -> None:
    names = await idle.start(52)
    first = await idle.answer()
    assert (len(first["invoices"]), first["not_shown"], first["count"]) == (50, 2, 52)
    assert first["totals_by_state"] == {"waiting": {"USD": f"{52 * 7000}.00"}}
    cursor = first["next_cursor"]
    *_, sums, rest = first["message"].splitlines()
    assert first["message"].startswith("50 of 52 waiting invoices, the nearest deadline first:")
    assert sums == "Sum of all 52: $364,000.00."
    assert rest == (
        "Not shown here: 2 more. To see them, call list_invoices with status waiting and cursor"
        f" {cursor}"
    )
    # What ends and what is submitted in between neither hides nor repeats another.
    await idle.end(*ids(first)[:3])
    await idle.visible("ExecutionStatus = 'Terminated'", 3)
    [newer] = await idle.start(approval_timeout_days=90)
    second = await idle.answer(cursor=cursor)
    assert ids(second) == [*sorted(set(names) - set(ids(first)), key=ids(second).index), newer]
    assert "next_cursor" not in second
    assert second["message"].startswith("3 of 50 waiting invoices")


async def test_every_invoice_is_on_one_page(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invoice_search, "LIST_LIMIT", 5)
    names = await idle.start(23)
    await idle.end(*names[:12])
    await idle.visible("ExecutionStatus = 'Terminated'", 12)
    pages = await idle.pages("all")
    assert [len(page) for page in pages] == [5, 5, 5, 5, 3]
    listed = [*chain(*pages)]
    assert listed[:11] == [*chain(*await idle.pages("waiting"))]
    assert set(listed[:11]) == set(names[12:])
    assert listed[11:] == names[11::-1] == [*chain(*await idle.pages("terminated"))]


async def test_of_too_many_the_earliest_are_compared_first(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_search, "LIST_LIMIT", 3)
    monkeypatch.setattr(invoice_search, "SCAN_LIMIT", 6)
    names = [name for _ in range(3) for name in await idle.start(5)]
    first = await idle.answer()
    assert 0 < first["compared"] <= 6
    assert set(ids(first)) <= set(names[:6])
    assert "count" not in first
    assert first["totals_by_state"] == {"waiting": {"USD": f"{len(ids(first)) * 7000}.00"}}
    assert first["not_shown"] == 15 - len(ids(first))
    assert first["not_shown_may_differ"]
    head, *_, sums, rest = first["message"].splitlines()
    assert head.endswith(
        f"of {first['compared']}. There are too many to compare all, so those that were submitted"
        " first are compared and listed first:"
    )
    assert sums.startswith("Sum of those shown here: $")
    assert rest.startswith("Not shown here: up to 1")
    listed = [*chain(*await idle.pages("all"))]
    assert len(listed) == 15
    assert set(listed) == set(names)


async def test_an_invoice_that_was_submitted_again_is_listed_once(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_search, "LIST_LIMIT", 2)
    names = await idle.start(4)
    await idle.end(*names)
    again = an_invoice(id=names[0])
    await idle.desk.start(again)
    await idle.desk.handle(again).terminate()
    await idle.visible("ExecutionStatus = 'Terminated'", 5)
    # What is left for the last page is the earlier submission alone.
    assert await idle.pages("all") == [[names[0], names[3]], [names[2], names[1]], []]


@pytest.mark.parametrize("cursor", ["x", "ü", "e30", "eyJ3aGljaCI6IDV9", "W10" * 1000])
async def test_what_is_not_a_cursor_is_refused(cursor: str, idle: Idle) -> None:
    with pytest.raises(Refused, match="isn't a cursor that list_invoices gave"):
        await idle.tools("list_invoices", status="waiting", cursor=cursor)


async def test_a_cursor_of_another_list_is_refused(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_search, "LIST_LIMIT", 1)
    await idle.start(2)
    cursor = (await idle.answer())["next_cursor"]
    with pytest.raises(Refused, match="belongs to the list with the status waiting"):
        await idle.tools("list_invoices", cursor=cursor)


async def test_rejected_invoices_are_not_added_to_paid_ones(tools_here: Tools) -> None:
    paid, rejected = [await tools_here.submit(currency="XTS") for _ in range(2)]
    await tools_here("approve_invoice", invoice_id=paid["id"])
    await tools_here("reject_invoice", invoice_id=rejected["id"])
    for invoice, state in ((paid, "completed"), (rejected, "rejected")):
        await tools_here.until(invoice, state)

    async def summed() -> bool:
        cursor: str | None = None
        sums: dict[str, str] = {}
        while True:  # until those that have ended, however many others wait
            result = await tools_here.client.call_tool("list_invoices", {"cursor": cursor})
            page: dict[str, Any] = result.structured_content  # type: ignore[assignment]
            sums |= {s: all["XTS"] for s, all in page["totals_by_state"].items() if "XTS" in all}
            if not (cursor := page.get("next_cursor")):
                return sums == {"completed": "7000.00", "rejected": "7000.00"}

    await eventually(summed)


async def test_a_payment_that_is_retried_stands_in_its_line(
    namespace: Namespace, tmp_path: Path
) -> None:
    async with (
        worker_here(namespace.address, tmp_path),
        tools_in_memory(namespace.address) as tools,
    ):
        (tmp_path / "gateway-down").touch()
        invoice = await tools.submit()
        await tools("approve_invoice", invoice_id=invoice["id"])

        async def line() -> str | None:
            lines = (await tools("list_invoices", status="paying")).splitlines()
            return next(
                (line for line in lines if "line 1 is being retried, attempt" in line), None
            )

        assert f"- {invoice['id']}: Processing payments; " in await eventually(line)


async def test_a_reset_run_is_listed_with_its_first_submission(
    idle: Idle, namespace: Namespace, tmp_path: Path
) -> None:
    invoice = await idle.desk.submit()
    async with worker_here(namespace.address, tmp_path):
        await idle.desk.once(invoice, lambda status: status.paid_earlier_lines is not None)
    status = await idle.desk.status(invoice)
    run_id = await idle.desk.reset(invoice)
    await idle.visible(f"RunId = '{run_id}'", 1)
    [listed] = (await InvoiceSearch(InvoiceRuns(idle.client)).list_invoices("waiting")).invoices
    assert (listed.submitted_at, listed.deadline) == (status.submitted_at, status.deadline)
