"""The same bill under another id is pointed out, and nothing is refused for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from mcp.client.extension import advertise
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributePair, TypedSearchAttributes

import invoice_runs
import invoice_search
from invoices.invoice import Invoice
from invoices.status import RunProgress
from reports import INVOICE_TOTAL
from support import (
    ERAS,
    Desk,
    Namespace,
    Refused,
    Tools,
    an_invoice,
    eventually,
    tools_in_memory,
)
from temporal_service.executions import list_executions
from worker_here import worker_here

BILL = {"supplier": "Northwind Web Ltd", "supplier_reference": "2026-4711"}
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD


async def add_attribute(client: Client, kind: "IndexedValueType.ValueType" = KEYWORD) -> None:
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(
            namespace=client.namespace, search_attributes={INVOICE_TOTAL.name: kind}
        )
    )


@pytest.fixture(scope="module")
async def equipped(new_namespace: Callable[[], str]) -> Namespace:
    """A namespace that has `InvoiceTotal`, but not `InvoiceState`, and no worker."""
    namespace = Namespace(new_namespace())
    client = await namespace.connect()
    await add_attribute(client)
    desk = Desk(client)

    async def usable() -> bool:
        invoice = await desk.submit()
        await desk.handle(invoice).terminate()
        missing = desk.client.runs.missing_attributes
        desk.client.runs.missing_attributes = set()
        return INVOICE_TOTAL.name not in missing

    await eventually(usable)  # it takes a moment
    return namespace


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker runs, so nobody waits for its answer."""
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.2)


@pytest.fixture
async def tools(equipped: Namespace) -> AsyncIterator[Tools]:
    async with tools_in_memory(equipped.address) as tools:
        yield tools


@pytest.fixture
def amount() -> str:
    """A total that no other test has."""
    return f"{next(_cents)}.50"


_cents = iter(range(1_000, 2_000))


def a_bill(amount: str, **fields: Any) -> dict[str, Any]:
    return an_invoice(lines=[{"item": "Web", "amount": amount}], **fields)


async def until_found(client: Client, amount: str, count: int = 1) -> None:
    async def found() -> bool:
        query = f"InvoiceTotal = 'USD {amount}'"
        return (await client.count_workflows(query)).count >= count

    await eventually(found)


async def similar(tools: Tools, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await tools.status({"id": name})).get("similar", [])
    return found


@pytest.mark.parametrize("era", ERAS)
async def test_two_submissions_of_one_bill_show_each_other(
    era: str, equipped: Namespace, tools: Tools, amount: str
) -> None:
    client = await equipped.connect()
    first, second = a_bill(amount, **BILL), a_bill(amount, **BILL)
    await tools("process_invoice", invoice_data=first)
    await until_found(client, amount)
    day = (await tools.status(first))["submitted_at"][:10]
    told = {
        one["id"]: f"Same bill as {other['id']} (waiting since {day})."
        for one, other in ((first, second), (second, first))
    }
    assert told[second["id"]] in await tools("process_invoice", invoice_data=second)
    await until_found(client, amount, 2)
    asked: list[str] = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": False}

    shows_cards = advertise(UI_EXTENSION_ID, {"mimeTypes": [UI_MIME_TYPE]})
    for invoice, other in ((first, second), (second, first)):
        name = invoice["id"]
        assert told[name] in await tools("process_invoice", invoice_data=invoice)
        assert told[name] in await tools("get_invoice_status", invoice_id=name)
        [found] = await similar(tools, name)
        assert found.pop("at").startswith(day)
        assert found == {"invoice_id": other["id"], "state": "waiting", "same_bill": True}
        async with tools_in_memory(equipped.address, era, elicitation_handler=person) as host:
            with pytest.raises(Refused, match="was not approved"):
                await host("approve_invoice", invoice_id=name)
        assert told[name] in asked.pop().splitlines()
        async with tools_in_memory(equipped.address, era, extensions=[shows_cards]) as host:
            card = await host.client.call_tool("invoice_card", {"invoice_id": name})
        assert told[name] in card.structured_content["details"]  # type: ignore[index]
    await tools("reject_invoice", invoice_id=first["id"])


async def test_a_paid_one_is_told_with_the_day_it_was_paid(
    equipped: Namespace, tools: Tools, amount: str, tmp_path: Path
) -> None:
    client = await equipped.connect()
    async with worker_here(equipped.address, tmp_path):
        paid = (await Desk(client).submit_and_approve(**a_bill(amount))).id
        await tools.until({"id": paid}, "completed")
    await until_found(client, amount)

    async def told() -> bool:
        invoice = a_bill(amount, supplier="Anybody")
        text = await tools("process_invoice", invoice_data=invoice)
        return f"Same total as {paid} (paid 20" in text

    await eventually(told)


async def test_a_different_supplier_and_earlier_runs_are_not_similar(
    equipped: Namespace, tools: Tools, amount: str
) -> None:
    client = await equipped.connect()
    one, other = a_bill(amount, supplier="A"), a_bill(amount, supplier="B")
    for invoice in (one, other):
        await tools("process_invoice", invoice_data=invoice)
    await client.get_workflow_handle(f"invoice-{one['id']}").terminate()
    await tools("process_invoice", invoice_data=one)
    await until_found(client, amount, 3)
    assert await similar(tools, one["id"]) == []


@pytest.mark.parametrize("claims", [{}, {"total": "{total}"}, {"total": 5, "supplier": {"a": 1}}])
async def test_what_another_client_claims_is_not_believed(
    claims: dict[str, Any], equipped: Namespace, tools: Tools, amount: str
) -> None:
    """Its invoice has a different total than its search attribute and its memo."""
    client = await equipped.connect()
    other = Invoice.model_validate(an_invoice())
    claims = {key: amount if value == "{total}" else value for key, value in claims.items()}
    await Desk(client).start(
        other,
        memo={**RunProgress.of(other).to_memo(), **claims},
        search_attributes=TypedSearchAttributes(
            [SearchAttributePair(INVOICE_TOTAL, f"USD {amount}")]
        ),
    )
    await until_found(client, amount)
    invoice = a_bill(amount)
    assert "Same" not in await tools("process_invoice", invoice_data=invoice)
    assert await similar(tools, invoice["id"]) == []


async def test_without_the_attribute_nothing_is_said(namespace: Namespace) -> None:
    client = await namespace.connect()
    async with tools_in_memory(namespace.address) as tools:
        for invoice in (a_bill("7.00", **BILL), a_bill("7.00", **BILL)):
            assert "Same" not in await tools("process_invoice", invoice_data=invoice)

        async def both_listed() -> bool:
            return (await client.count_workflows("WorkflowType = 'InvoiceWorkflow'")).count == 2

        await eventually(both_listed)
        assert "Same" not in await tools("get_invoice_status", invoice_id=invoice["id"])


async def test_an_attribute_of_another_type_harms_nothing(namespace: Namespace) -> None:
    client = await namespace.connect()
    await add_attribute(client, IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE)
    desk = Desk(client)
    for _ in range(2):
        invoice = await desk.submit()
        assert (await desk.status(invoice)).similar is None
        await asyncio.sleep(0.5)
    assert (await desk.client.search.list_invoices("waiting")).invoices


async def test_a_search_that_fails_does_not_stop_a_tool(
    equipped: Namespace, tools: Tools, amount: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(60)
        yield []

    monkeypatch.setattr(invoice_search, "list_executions", hang)
    monkeypatch.setattr(invoice_search, "SIMILAR_SECONDS", 0.1)
    invoice = a_bill(amount)
    not_compared = "There may be invoices with the same total that weren't compared."
    assert not_compared in await tools("process_invoice", invoice_data=invoice)
    monkeypatch.setattr(
        invoice_search,
        "list_executions",
        lambda client, query, **_: list_executions(client, f"{query} AND Nonsense = 1"),
    )
    assert not_compared in await tools("get_invoice_status", invoice_id=invoice["id"])


class Searches:
    """A search in which each page has two invoices, and some pages hang."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages = 0
        self.hangs = ""
        monkeypatch.setattr(invoice_search, "SIMILAR_PAGE", 2)
        monkeypatch.setattr(invoice_search, "list_executions", self.list_executions)

    async def list_executions(self, client: Client, query: str, **how: Any) -> AsyncIterator[Any]:
        if self.hangs and self.hangs in query:
            await asyncio.sleep(60)
        async for page in list_executions(client, query, **how):
            self.pages += 1
            yield page


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Searches:
    return Searches(monkeypatch)


@pytest.mark.parametrize("decoys", ["another supplier", "no supplier"])
async def test_many_open_invoices_do_not_hide_the_same_bill(
    decoys: str,
    equipped: Namespace,
    tools: Tools,
    amount: str,
    searches: Searches,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    client = await equipped.connect()
    desk = Desk(client)
    async with worker_here(equipped.address, tmp_path):
        paid = await desk.submit(**a_bill(amount, **BILL))
        await desk.pay(paid)
    same_bill = f"Same bill as {paid.id} (paid 20"
    names = {"another supplier": {"supplier": "Somebody Else"}, "no supplier": {}}
    for _ in range(5):
        await desk.submit(**a_bill(amount, **names[decoys]))
    await until_found(client, amount, 6)
    searches.pages = 0
    text = await tools("process_invoice", invoice_data=a_bill(amount, **BILL))
    assert same_bill in text
    assert "weren't compared" not in text
    assert searches.pages == 4  # three of open ones, one of completed ones

    monkeypatch.setattr(invoice_search, "SIMILAR_READ", 4)
    invoice = a_bill(amount, **BILL)
    text = await tools("process_invoice", invoice_data=invoice)
    assert same_bill in text
    assert "There may be more invoices with the same total that weren't compared." in text
    assert (await tools.status(invoice))["similar_incomplete"]

    searches.hangs = "CloseTime IS NULL"
    text = await tools("get_invoice_status", invoice_id=invoice["id"])
    assert same_bill in text
    assert "There may be more invoices with the same total that weren't compared." in text


async def test_a_search_ends_with_enough_similar_invoices(
    equipped: Namespace, tools: Tools, amount: str, searches: Searches
) -> None:
    desk = Desk(await equipped.connect())
    for _ in range(5):
        await desk.submit(**a_bill(amount))
    await until_found(desk.temporal, amount, 5)
    searches.pages = 0
    assert "Same total" in await tools("process_invoice", invoice_data=a_bill(amount))
    assert searches.pages == 3
