"""Approving with a card: what hosts are told, what a model can call, and what a click does."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client as McpClient
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from mcp.client.extension import advertise

import invoice_server
from approval.card import APP_TOOLS, CARD_URI, LOADING_SECONDS, ApprovalCards, card_html
from invoice_client import InvoiceClient
from support import (
    ERAS,
    PROCESSES,
    ROOT,
    Namespace,
    Refused,
    Tools,
    Worker,
    advertised,
    eventually,
    mcp,
    paid,
    tools_in_memory,
)
from temporal_service.connection import whoami

SHOWS_CARDS = advertise(UI_EXTENSION_ID, {"mimeTypes": [UI_MIME_TYPE]})


@asynccontextmanager
async def impatient(address: str, era: str) -> AsyncIterator[Tools]:
    """The tools in a host that shows cards and can't ask, and has a second to load the first."""
    script, env = PROCESSES / "impatient_server.py", {"PYTHONPATH": str(ROOT)}
    async with mcp(address, era, script=script, env=env, extensions=[SHOWS_CARDS]) as client:
        yield Tools(client)


@pytest.fixture(scope="module")
async def hosts(address: str, worker: Worker) -> AsyncIterator[dict[str, Tools]]:
    """Two hosts, by their era, which have loaded a card."""
    legacy, modern = ERAS
    async with impatient(address, legacy) as earlier, impatient(address, modern) as later:
        hosts = {legacy: earlier, modern: later}
        for host in hosts.values():
            await load_card(host, await host.submit())
        yield hosts


@pytest.fixture(params=ERAS)
def each_host(request: pytest.FixtureRequest, hosts: dict[str, Tools]) -> Tools:
    return hosts[request.param]


@pytest.fixture
def host(hosts: dict[str, Tools]) -> Tools:
    """One of the hosts, where the era can't matter."""
    return hosts[ERAS[1]]


async def load_card(tools: Tools, invoice: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Loads a card. Returns what it shows, and its seal."""
    result = await tools.client.call_tool_mcp("invoice_card", {"invoice_id": invoice["id"]})
    assert result.structured_content
    return result.structured_content, (result.meta or {}).get("seal", "")


async def listed(client: McpClient[Any]) -> dict[str, dict[str, Any]]:
    """The tools in the server's list for a host, by name."""
    tools = await client.list_tools()
    return {tool.name: tool.model_dump(mode="json", by_alias=True) for tool in tools}


async def test_a_host_with_cards_is_told_which_tool_has_one(each_host: Tools) -> None:
    tools = await listed(each_host.client)
    assert set(tools) > APP_TOOLS
    assert all(tools[name]["_meta"]["ui"] == {"visibility": ["app"]} for name in APP_TOOLS)
    meta = tools["approve_invoice"]["_meta"]
    assert meta["ui"] == {"resourceUri": CARD_URI, "visibility": ["model"]}
    assert meta["ui/resourceUri"] == CARD_URI


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("capabilities", "setting"),
    [
        ({"extensions": [advertise(UI_EXTENSION_ID, {"mimeTypes": ["text/html"]})]}, "auto"),
        ({"extensions": [advertise(UI_EXTENSION_ID, {})]}, "auto"),
        ({"extensions": [SHOWS_CARDS], "elicitation_handler": print}, "auto"),
        ({"extensions": [SHOWS_CARDS]}, "off"),
    ],
    ids=["other MIME type", "no MIME type", "asks the person", "off"],
)
async def test_a_host_without_cards_is_not_told_about_them(
    capabilities: dict[str, Any], setting: str, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with McpClient(invoice_server.mcp, mode=era) as client:
        plain = await listed(client)
    monkeypatch.setattr(invoice_server.cards, "setting", setting)
    async with McpClient(invoice_server.mcp, mode=era, **capabilities) as client:
        tools = await listed(client)
        assert not await client.list_resources()
    assert json.dumps(tools) == json.dumps(plain)
    assert not APP_TOOLS & set(tools)
    assert '"ui' not in json.dumps(tools)


async def test_the_card_is_listed_and_read_as_a_card(each_host: Tools) -> None:
    [resource] = await each_host.client.list_resources()
    [content] = await each_host.client.read_resource(CARD_URI)
    assert str(resource.uri) == CARD_URI
    assert content.mime_type == UI_MIME_TYPE
    assert content.text == card_html(invoice_server.VERSION)  # type: ignore[union-attr]


def test_a_card_is_of_the_servers_version() -> None:
    card = card_html("1.2.3")
    assert 'appInfo: { name: "invoice-approval-card", version: "1.2.3" }' in card
    assert "{{" not in card


async def test_the_server_says_that_it_has_cards(each_host: Tools) -> None:
    capabilities = await advertised(each_host.client)
    assert UI_EXTENSION_ID in capabilities["extensions"]
    assert "resources" in capabilities


@pytest.mark.parametrize("era", ERAS)
async def test_other_hosts_are_not_told_about_the_card(
    era: str, address: str, worker: Worker
) -> None:
    async with tools_in_memory(address, era) as tools:
        assert '"ui' not in json.dumps(await listed(tools.client))
        assert not await tools.client.list_resources()
        invoice = await tools.submit()
        for name in APP_TOOLS:
            with pytest.raises(Refused, match=f"Unknown tool: '{name}'"):
                await tools(name, invoice_id=invoice["id"], approve=True, seal="")


async def test_approving_shows_a_card_and_pays_nothing(each_host: Tools, worker: Worker) -> None:
    invoice = await each_host.submit()
    arguments = {"invoice_id": invoice["id"], "total": "7000.00", "reason": "the person said so"}
    result = await each_host.client.call_tool("approve_invoice", arguments)
    assert "Nothing is approved or paid yet" in result.content[0].text  # type: ignore[union-attr]
    assert result.structured_content
    assert result.structured_content["state"] == "waiting"
    assert result.structured_content["outcome"] == "asked_on_card"
    assert not paid(worker.data, invoice)


async def test_a_card_shows_what_is_paid(host: Tools) -> None:
    bill = {"supplier": "Northwind Web Ltd", "due_date": "2026-12-31"}
    invoice = await host.submit(customer="Acme", payment_method="4242", currency="EUR", **bill)
    card, seal = await load_card(host, invoice)
    assert seal
    assert card["deadline"]
    assert card == {
        "invoice_id": invoice["id"],
        "bill": "From “Northwind Web Ltd”, due 2026-12-31",
        "charged": "Charged: customer “Acme”, payment method “4242”",
        "submitted": f"Submitted by {whoami()}.",
        "payment_date": None,
        "approvals": None,
        "is_first_of_two": False,
        "waits_for_second": False,
        "lines": [
            {
                "item": "Web Development",
                "description": "Frontend work",
                "amount": "EUR 5,000.00",
                "paid_earlier": False,
            },
            {
                "item": "Design Services",
                "description": "UI/UX design",
                "amount": "EUR 2,000.00",
                "paid_earlier": False,
            },
        ],
        "total": "EUR 7,000.00",
        "paid_earlier": None,
        "to_pay": "EUR 7,000.00",
        "deadline": card["deadline"],
        "state": "waiting",
        "can_be_decided": True,
        "why_undecidable": None,
        "is_approval_kept": False,
        "paid_lines": 0,
        "details": "",
    }


async def test_a_card_tells_what_was_paid_earlier(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Worker(namespace.address, tmp_path, INVOICE_DECLINE_OVER="4000"):
        monkeypatch.setattr(
            invoice_server, "shared_client", InvoiceClient(await namespace.connect())
        )
        async with McpClient(invoice_server.mcp, extensions=[SHOWS_CARDS]) as client:
            host = Tools(client)
            lines = [{"item": "Small", "amount": "10.00"}, {"item": "Large", "amount": "5000.00"}]
            invoice = await host.submit(lines=lines)
            _, seal = await load_card(host, invoice)
            await host("decide_on_card", invoice_id=invoice["id"], approve=True, seal=seal)
            await host.until(invoice, "failed")
            assert "declined" in (await load_card(host, invoice))[0]["details"]
            await host("process_invoice", invoice_data=invoice)
            card, _ = await load_card(host, invoice)
    assert card["paid_earlier"] == "1 line, $10.00"
    assert card["to_pay"] == "$5,000.00"
    assert card["total"] == "$5,010.00"


async def test_a_click_pays(each_host: Tools, worker: Worker) -> None:
    invoice = await each_host.submit()
    _, seal = await load_card(each_host, invoice)
    await each_host("decide_on_card", invoice_id=invoice["id"], approve=True, seal=seal)
    await each_host.until(invoice, "completed")
    assert len(paid(worker.data, invoice)) == 2
    card, seal = await load_card(each_host, invoice)
    assert card["state"] == "completed"
    assert not seal


async def test_a_click_rejects_with_a_reason(each_host: Tools, worker: Worker) -> None:
    invoice = await each_host.submit()
    _, seal = await load_card(each_host, invoice)
    await each_host(
        "decide_on_card", invoice_id=invoice["id"], approve=False, seal=seal, reason="wrong hours"
    )
    assert (await each_host.until(invoice, "rejected"))["decision"]["reason"] == "wrong hours"
    assert not paid(worker.data, invoice)


@pytest.mark.parametrize("seal", ["", "0" * 64, "ä" * 64, "x" * 101])
async def test_a_made_up_seal_decides_nothing(seal: str, host: Tools) -> None:
    invoice = await host.submit()
    await load_card(host, invoice)
    for approve in (True, False):
        with pytest.raises(Refused, match="Nothing was"):
            await host("decide_on_card", invoice_id=invoice["id"], approve=approve, seal=seal)
    assert (await host.status(invoice))["state"] == "waiting"


async def test_the_seal_of_another_invoice_decides_nothing(host: Tools) -> None:
    invoice, other = await host.submit(), await host.submit()
    _, seal = await load_card(host, other)
    with pytest.raises(Refused, match="out of date"):
        await host("decide_on_card", invoice_id=invoice["id"], approve=True, seal=seal)
    assert (await host.status(invoice))["state"] == "waiting"


@pytest.mark.parametrize("lines", [None, [{"item": "Other", "amount": "9000.00"}]])
async def test_a_click_does_not_decide_a_later_submission(
    lines: list[dict[str, str]] | None, host: Tools
) -> None:
    invoice = await host.submit()
    _, seal = await load_card(host, invoice)
    await host("reject_invoice", invoice_id=invoice["id"])
    await host.until(invoice, "rejected")
    await host("process_invoice", invoice_data={**invoice, **({"lines": lines} if lines else {})})
    with pytest.raises(Refused, match=r"out of date.*Nothing was decided"):
        await host("decide_on_card", invoice_id=invoice["id"], approve=True, seal=seal)
    assert (await host.status(invoice))["state"] == "waiting"


async def test_another_process_has_other_seals(host: Tools, address: str) -> None:
    invoice = await host.submit()
    _, seal = await load_card(host, invoice)
    async with tools_in_memory(address, extensions=[SHOWS_CARDS]) as second:
        with pytest.raises(Refused, match="server was restarted"):
            await second("decide_on_card", invoice_id=invoice["id"], approve=True, seal=seal)
    assert (await host.status(invoice))["state"] == "waiting"


async def test_the_second_of_two_cards_is_told_the_first_decision(host: Tools) -> None:
    invoice = await host.submit(payment_interval_seconds=60)
    (_, first), (_, second) = await load_card(host, invoice), await load_card(host, invoice)
    await host("decide_on_card", invoice_id=invoice["id"], approve=True, seal=first)
    with pytest.raises(Refused, match=r"can't be rejected now.*Approved by"):
        await host("decide_on_card", invoice_id=invoice["id"], approve=False, seal=second)
    await host("decide_on_card", invoice_id=invoice["id"], approve=True, seal=second)
    assert (await host.status(invoice))["state"] == "paying"


async def test_approving_what_is_decided_shows_no_card_to_click_on(host: Tools) -> None:
    invoice = await host.submit()
    await host("reject_invoice", invoice_id=invoice["id"])
    await host.until(invoice, "rejected")
    with pytest.raises(Refused, match="can't be approved now"):
        await host("approve_invoice", invoice_id=invoice["id"])
    card, seal = await load_card(host, invoice)
    assert "Rejected by" in card["details"]
    assert not seal


@pytest.mark.parametrize("era", ERAS)
async def test_a_host_that_asks_and_shows_cards_asks(
    era: str, address: str, worker: Worker
) -> None:
    asked = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": True}

    asks = {"elicitation_handler": person}
    async with tools_in_memory(address, era, extensions=[SHOWS_CARDS], **asks) as tools:
        invoice = await tools.submit()
        await tools("approve_invoice", invoice_id=invoice["id"])
        assert len(asked) == 1
        await tools.until(invoice, "completed")


async def test_only_a_host_that_loads_no_card_falls_back(
    host: Tools, address: str, worker: Worker
) -> None:
    # In this era each request is its own session, so the whole process falls back.
    async with impatient(address, ERAS[1]) as never_loading:
        invoice, of_another = await never_loading.submit(), await host.submit()

        async def approve(host: Tools, invoice: dict[str, Any]) -> str:
            return await host("approve_invoice", invoice_id=invoice["id"])

        started = time.monotonic()
        assert "Nothing is approved" in await approve(host, of_another)
        assert "Nothing is approved" in await approve(never_loading, invoice)

        async def has_fallen_back() -> bool:
            return (await approve(never_loading, invoice)).startswith("Sent approval signal")

        await eventually(has_fallen_back)
        assert time.monotonic() - started > 1
        await never_loading.until(invoice, "completed")
        assert "Nothing is approved" in await approve(host, of_another)
        assert (await host.status(of_another))["state"] == "waiting"


async def test_a_server_that_requires_cards_never_falls_back(
    address: str, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("approval.card.monotonic", lambda: now)
    monkeypatch.setenv("INVOICE_APPROVAL_CARD", "required")
    for name, value in vars(ApprovalCards()).items():
        if not name.startswith("_"):  # as when a server starts
            monkeypatch.setattr(invoice_server.cards, name, value)
    async with tools_in_memory(address, ERAS[1], extensions=[SHOWS_CARDS]) as host:
        invoice = await host.submit()
        for _ in range(2):
            text = await host("approve_invoice", invoice_id=invoice["id"])
            assert "Nothing is approved" in text
            now += 2 * LOADING_SECONDS
        assert (await host.status(invoice))["state"] == "waiting"


async def test_only_an_answer_with_a_card_starts_the_cards_clock(
    address: str, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("approval.card.monotonic", lambda: now)
    monkeypatch.setattr(invoice_server.cards, "first_shown", None)
    monkeypatch.setattr(invoice_server.cards, "has_loaded", False)
    async with tools_in_memory(address, extensions=[SHOWS_CARDS]) as host:
        rejected, invoice = await host.submit(), await host.submit()
        await host("reject_invoice", invoice_id=rejected["id"])
        await host.until(rejected, "rejected")

        async def approve(name: str) -> str:
            return await host("approve_invoice", invoice_id=name)

        for name in ("no-such-invoice", rejected["id"]):
            with pytest.raises(Refused):
                await approve(name)
        with monkeypatch.context() as patch:
            patch.setattr(invoice_server, "TOOL_SECONDS", 0)
            with pytest.raises(Refused, match="didn't answer in time"):
                await approve(invoice["id"])
        now += 2 * LOADING_SECONDS
        assert "Nothing is approved" in await approve(invoice["id"])
        now += LOADING_SECONDS - 1
        assert "Nothing is approved" in await approve(invoice["id"])
        now += 1
        assert (await approve(invoice["id"])).startswith("Sent approval signal")


async def test_off_leaves_the_decision_to_the_hosts_dialog(
    address: str, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_server.cards, "setting", "off")
    async with tools_in_memory(address, extensions=[SHOWS_CARDS]) as host:
        assert not APP_TOOLS & set(await listed(host.client))
        invoice = await host.submit()
        await host("approve_invoice", invoice_id=invoice["id"])
        await host.until(invoice, "completed")


@pytest.mark.parametrize(
    ("setting", "told"),
    [("required", "this host neither shows cards nor asks"), ("always", "'always', but must be")],
)
async def test_a_setting_that_forbids_the_dialog_is_reported(
    setting: str, told: str, tools_here: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_server.cards, "setting", setting)
    invoice = await tools_here.submit()
    with pytest.raises(Refused, match=told):
        await tools_here("approve_invoice", invoice_id=invoice["id"])
    assert (await tools_here.status(invoice))["state"] == "waiting"
