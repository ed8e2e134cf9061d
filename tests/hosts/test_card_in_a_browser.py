"""The card in Chromium: what a person sees and what a click does."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest
from fastmcp import Client as McpClient
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from mcp.client.extension import advertise
from playwright.async_api import Page, expect

import invoice_server
from approval.card import card_html
from invoice_client import InvoiceClient
from support import (
    ROOT,
    Desk,
    Namespace,
    Tools,
    Worker,
    an_invoice,
    eventually,
    mcp,
    paid,
    payments,
    tools_in_memory,
)
from temporal_service.connection import whoami

CARD = card_html(invoice_server.VERSION)
HOST = (ROOT / "tests" / "processes" / "host.html").read_text("utf-8")
SHOWS_CARDS = advertise(UI_EXTENSION_ID, {"mimeTypes": [UI_MIME_TYPE]})


def hastened(card: str, **times: tuple[float, float]) -> str:
    """The card with other times, each given as it is and as it shall be."""
    for name, (before, after) in times.items():
        assert card.count(f"{name} = {before}") == 1
        card = card.replace(f"{name} = {before}", f"{name} = {after}")
    return card


QUICK_CARD = hastened(CARD, ARM_MILLISECONDS=(600, 60), nextDelay=(1000, 100))
"""The card with a shorter time before a click counts, and before it asks again."""


class Card:
    """The card of one invoice in the tests' own host, whose calls go to `host`."""

    def __init__(self, page: Page, host: Tools, invoice: dict[str, Any]) -> None:
        self.page = page
        self.host = host
        self.invoice = invoice
        self.frame = page.frame_locator("iframe[title=card]")
        self.approve = self.frame.get_by_role("button", name="Approve")
        self.reason = self.frame.get_by_role("textbox", name="Reason that will be kept")

    async def open(self, *departures: str, reason: str | None = None, **how: Any) -> Self:
        args = {"invoice_id": self.invoice["id"], **({"reason": reason} if reason else {})}
        result = await self._call("approve_invoice", args)
        call = f"call{uuid4().hex}"  # the cards of all tests are in one page
        await self.page.expose_function(call, self._call)
        await self.page.set_content(HOST)
        options = {"html": QUICK_CARD, "args": args, "departures": departures, "result": result}
        options |= {"call": call, **how}
        await self.page.evaluate("o => openCard(o)", options)
        return self

    async def _call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        result = await self.host.client.call_tool_mcp(tool, arguments)
        return result.model_dump(mode="json", by_alias=True, exclude_none=True)

    async def text(self) -> str:
        return await self.frame.locator("main").inner_text()

    async def buttons(self) -> list[str]:
        return await self.frame.get_by_role("button").all_inner_texts()

    async def height_with_buttons_in_sight(self) -> float:
        """The height once the host has given the card the height that it asked for."""

        async def height() -> float | None:
            frame = await self.page.locator("iframe").bounding_box()
            approve = await self.approve.bounding_box()
            assert frame
            assert approve
            is_in_sight = approve["y"] + approve["height"] < frame["y"] + frame["height"]
            return frame["height"] if is_in_sight else None

        return await eventually(height)

    async def calls(self) -> list[dict[str, Any]]:
        """The tools that the card has called, in order."""
        return [m["params"] for m in await self._messages() if m.get("method") == "tools/call"]

    async def told_to_the_model(self) -> str:
        messages = [m for m in await self._messages() if m["method"] == "ui/update-model-context"]
        text: str = messages[-1]["params"]["content"][0]["text"]
        return text

    async def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = await self.page.evaluate("messages")
        return messages

    async def sees(self, words: str) -> str:
        """Waits for these words on the card, and returns its text."""
        await self.frame.locator("main", has_text=words).wait_for()
        return await self.text()

    async def click(self, name: str) -> None:
        await self.frame.get_by_role("button", name=name).click()


@pytest.fixture
async def page(one_page: Page) -> AsyncIterator[Page]:
    """An empty document for each test."""
    await one_page.set_viewport_size({"width": 1280, "height": 720})
    yield one_page
    await one_page.goto("about:blank")


@pytest.fixture(scope="module")
async def host(careful: Worker) -> AsyncIterator[Tools]:
    """The tools of a server that knows that its host shows cards."""
    # A test's host that doesn't load a card must not make the server fall back for the others.
    required = {"INVOICE_APPROVAL_CARD": "required"}
    async with mcp(careful.address, extensions=[SHOWS_CARDS], env=required) as client:
        yield Tools(client)


async def opened(page: Page, host: Tools, *departures: str, **fields: Any) -> Card:
    invoice = an_invoice(**fields)
    await host("process_invoice", invoice_data=invoice)
    return await Card(page, host, invoice).open(*departures)


def amounts(worker: Worker, invoice: dict[str, Any]) -> list[str]:
    """The amounts of an invoice that were paid, according to the ledger."""
    keys = paid(worker.data, invoice)
    return [payments(worker.data)[key][1] for key in keys]


async def test_the_persons_click_pays_what_the_card_shows(
    page: Page, host: Tools, careful: Worker
) -> None:
    invoice = await host.submit(customer="Acme Corporation", supplier="Northwind Web Ltd")
    card = await Card(page, host, invoice).open(html=CARD)
    text = await card.sees("Approve and pay $7,000.00")
    for shown in (
        card.invoice["id"],
        "Northwind Web",
        "Acme Corporation",
        "$5,000.00",
        "$2,000.00",
        "Decide by",
    ):
        assert shown in text
    assert not paid(careful.data, card.invoice)
    await card.click("Approve and pay $7,000.00")
    assert f"Approved by {whoami()}" in await card.sees("Paid: 2 of 2 lines")
    assert amounts(careful, card.invoice) == ["5000.00", "2000.00"]
    assert f"approved invoice {card.invoice['id']} on the card" in await card.told_to_the_model()


async def test_the_card_follows_the_payments(page: Page, host: Tools) -> None:
    card = await opened(page, host, payment_interval_seconds=1)
    await card.sees("Approve and pay")
    await card.click("Approve and pay")
    await card.sees("Approved, being paid")
    await card.sees("Paid: 2 of 2 lines")
    assert not await card.buttons()


async def test_a_rejection_on_the_card_keeps_its_reason(page: Page, host: Tools) -> None:
    card = await opened(page, host)
    await card.sees("Approve and pay")
    await card.click("Reject…")
    await card.frame.get_by_role("textbox").fill("wrong hours")
    await card.click("Reject invoice")
    assert "reason: “wrong hours”" in await card.sees("Rejected by")
    assert (await host.status(card.invoice))["state"] == "rejected"


async def test_the_reason_on_the_card_is_the_one_that_is_kept(page: Page, host: Tools) -> None:
    invoice = await host.submit()
    hidden = "as agreed\u3164\u2800\n in May\u202e"
    card = await Card(page, host, invoice).open(reason=hidden)
    await card.sees("Reason that will be kept with an approval")
    shown = await card.reason.input_value()
    assert shown == "as agreed in May\ufffd"
    await card.click("Approve and pay")
    await card.sees("Paid: 2 of 2 lines")
    assert (await host.status(invoice))["decision"]["reason"] == shown


@pytest.mark.parametrize("text", ["they were here on Monday", ""])
async def test_the_person_may_change_the_reason(text: str, page: Page, host: Tools) -> None:
    invoice = await host.submit()
    card = await Card(page, host, invoice).open(reason="the person said so")
    await card.sees("Reason that will be kept with an approval")
    await card.reason.fill(text)
    await card.click("Approve and pay")
    await card.sees("Paid: 2 of 2 lines")
    assert (await host.status(invoice))["decision"].get("reason", "") == text


async def test_a_reason_to_approve_is_not_used_to_reject(page: Page, host: Tools) -> None:
    invoice = await host.submit()
    card = await Card(page, host, invoice).open(reason="the person said so")
    await card.sees("Reason that will be kept with an approval")
    await card.click("Reject…")
    await card.click("Reject invoice")
    await card.sees("Rejected by")
    assert "reason" not in (await host.status(invoice))["decision"]


async def test_a_long_reason_leaves_the_buttons_in_sight(page: Page, host: Tools) -> None:
    lines = [{"item": f"Week {week}", "amount": "1.00"} for week in range(1, 101)]
    card = await Card(page, host, await host.submit(lines=lines)).open(reason="as agreed " * 100)
    await card.sees("Reason that will be kept with an approval")
    assert await card.height_with_buttons_in_sight() < 560


async def test_a_scripts_click_does_nothing(page: Page, host: Tools) -> None:
    card = await opened(page, host)
    await card.sees("Approve and pay")
    await expect(card.approve).to_be_enabled()
    await card.frame.locator("body").evaluate(
        """() => {
            for (const id of ["approve", "confirm"]) {
                const button = document.getElementById(id);
                button.click();
                button.dispatchEvent(new MouseEvent("click", { bubbles: true }));
            }
        }"""
    )
    assert [call["name"] for call in await card.calls()] == ["invoice_card"]
    assert "Approve and pay" in await card.text()
    assert (await host.status(card.invoice))["state"] == "waiting"


async def test_the_keyboard_decides_only_from_a_button(
    page: Page, host: Tools, careful: Worker
) -> None:
    card = await opened(page, host)
    await card.sees("Approve and pay")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Space")
    assert [call["name"] for call in await card.calls()] == ["invoice_card"]
    await expect(card.approve).to_be_enabled()
    for _ in range(4):
        if await card.approve.evaluate("e => e === document.activeElement"):
            break
        await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await card.sees("Paid: 2 of 2 lines")
    focused = await card.frame.locator("body").evaluate("() => document.activeElement.id")
    assert focused == "message"


async def test_a_screen_reader_is_told_everything(page: Page, host: Tools) -> None:
    card = await opened(page, host)
    await card.sees("Approve and pay")
    tree = await card.frame.locator("body").aria_snapshot()
    for part in (
        f'heading "Invoice {card.invoice["id"]}"',
        'region "Lines: 2"',
        'rowheader "Web Development Frontend work"',
        'cell "$5,000.00"',
        "status",
        'button "Approve and pay $7,000.00"',
        'button "Reject…"',
    ):
        assert part in tree


async def test_hostile_text_stays_text(page: Page, host: Tools) -> None:
    item = "<img src=x onerror=parent.postMessage(1,'*')> \u202e</table><script>alert(1)</script>"
    card = await opened(
        page, host, lines=[{"item": item, "amount": "1.00", "description": item}], customer=item
    )
    text = await card.sees("Approve and pay $1.00")
    assert "‹img" in text
    assert "\u202e" not in text
    assert await card.frame.locator("img, td script, th script").count() == 0


async def test_a_click_on_what_was_replaced_decides_nothing(page: Page, host: Tools) -> None:
    card = await opened(page, host)
    await card.sees("Approve and pay $7,000.00")
    await host("reject_invoice", invoice_id=card.invoice["id"])
    other = {**card.invoice, "lines": [{"item": "Other", "amount": "9000.00"}]}
    await host("process_invoice", invoice_data=other)
    await card.click("Approve and pay $7,000.00")
    await card.sees("out of date")
    assert await card.buttons() == ["Load again"]
    assert (await host.status(card.invoice))["state"] == "waiting"
    await card.click("Load again")
    await card.sees("Approve and pay $9,000.00")


async def test_a_card_of_an_earlier_process_is_out_of_date(
    page: Page, host: Tools, careful: Worker
) -> None:
    card = await opened(page, host)
    await card.sees("Approve and pay")
    async with tools_in_memory(careful.address, extensions=[SHOWS_CARDS]) as restarted:
        card.host = restarted
        await card.click("Approve and pay")
        await card.sees("server was restarted")
        assert (await host.status(card.invoice))["state"] == "waiting"
        await card.click("Load again")
        await card.sees("Approve and pay")
        await card.click("Approve and pay")
        await card.sees("Paid: 2 of 2 lines")
    assert len(paid(careful.data, card.invoice)) == 2


async def test_a_click_after_another_decision_is_told_that(page: Page, host: Tools) -> None:
    card = await opened(page, host)
    await card.sees("Approve and pay")
    await host("reject_invoice", invoice_id=card.invoice["id"], reason="elsewhere")
    await card.click("Approve and pay")
    assert f"Rejected by {whoami()}" in await card.sees("can't be approved now")
    await card.click("Load again")
    await card.sees("reason: “elsewhere”")
    assert not await card.buttons()


@pytest.mark.slow
async def test_a_click_without_a_worker_is_kept(
    page: Page, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_server, "shared_client", InvoiceClient(await namespace.connect()))
    async with McpClient(invoice_server.mcp, extensions=[SHOWS_CARDS]) as client:
        card = await opened(page, Tools(client))
        await card.sees("Approve and pay")
        await card.click("Approve and pay")
        assert "Approved" in await card.sees("A decision is kept")
        assert not await card.buttons()
        async with Worker(namespace.address, tmp_path):
            await card.sees("Paid: 2 of 2 lines")


async def test_a_long_invoice_scrolls_within_the_card(page: Page, host: Tools) -> None:
    lines = [{"item": f"Week {week}", "amount": "1.00"} for week in range(1, 501)]
    card = await opened(page, host, lines=lines)
    await card.sees("To pay, 500 lines")
    assert await card.height_with_buttons_in_sight() < 500


async def test_a_narrow_card_needs_no_scrolling_sideways(page: Page, host: Tools) -> None:
    await page.set_viewport_size({"width": 280, "height": 800})
    card = await opened(
        page, host, lines=[{"item": "W" * 200, "amount": "9999999999.99"}], customer="C" * 200
    )
    await card.sees("Approve and pay")
    width = await card.frame.locator("html").evaluate(
        "e => [e.scrollWidth, e.clientWidth, lines.scrollWidth - lines.clientWidth]"
    )
    assert width == [280, 280, 0]


@pytest.mark.parametrize(
    ("context", "color"),
    [
        ({"theme": "light"}, "rgb(255, 255, 255)"),
        ({"theme": "dark"}, "rgb(38, 38, 36)"),
        (
            {"styles": {"variables": {"--color-background-primary": "rgb(1, 2, 3)"}}},
            "rgb(1, 2, 3)",
        ),
    ],
)
async def test_the_card_looks_like_its_host(
    context: dict[str, Any], color: str, page: Page, host: Tools
) -> None:
    invoice = an_invoice()
    await host("process_invoice", invoice_data=invoice)
    card = await Card(page, host, invoice).open(context=context)
    await card.sees("Approve and pay")
    body = card.frame.locator("body")
    background = await body.evaluate("e => getComputedStyle(e).backgroundColor")
    assert background == color


async def test_a_host_that_passes_on_only_text_still_shows_the_card(
    page: Page, host: Tools, careful: Worker
) -> None:
    card = await opened(page, host, "bare-result")
    await card.sees("Approve and pay")
    await card.click("Approve and pay")
    await card.sees("Paid: 2 of 2 lines")


async def test_a_host_that_withholds_the_seal_is_reported(page: Page, host: Tools) -> None:
    card = await opened(page, host, "no-meta")
    assert "$7,000.00" in await card.sees("decide here")
    assert await card.buttons() == ["Load again"]


async def test_a_host_that_refuses_calls_is_reported(page: Page, host: Tools) -> None:
    card = await opened(page, host, "refuses")
    await card.sees("The host refused: Not allowed")
    assert await card.buttons() == ["Load again"]


async def test_a_silent_host_does_not_leave_the_card_loading(page: Page, host: Tools) -> None:
    impatient = hastened(CARD, INPUT_SECONDS=(10, 0.5))
    card = await Card(page, host, await host.submit()).open("silent", html=impatient)
    assert "Loading" not in await card.sees("hasn’t said which invoice")
    assert await card.buttons() == ["Load again"]


async def test_messages_from_other_frames_are_ignored(page: Page, host: Tools) -> None:
    invoice = an_invoice()
    await host("process_invoice", invoice_data=invoice)
    card = await Card(page, host, invoice).open("bare-result", args=None)
    message = {
        "jsonrpc": "2.0",
        "method": "ui/notifications/tool-input",
        "params": {"arguments": {"invoice_id": "forged"}},
    }
    await page.wait_for_function(
        "() => messages.some(m => m.method === 'ui/notifications/initialized')"
    )
    await page.evaluate(
        """message => new Promise(done => {
            window.addEventListener("message", e => e.data === "sent" && done());
            const other = document.createElement("iframe");
            other.srcdoc = `<script>
                parent.frames[0].postMessage(${JSON.stringify(message)}, "*");
                parent.postMessage("sent", "*");
            </` + "script>";
            document.body.append(other);
        })""",
        message,
    )
    real = {**message, "params": {"arguments": {"invoice_id": invoice["id"]}}}
    await page.evaluate("message => postToCard(message)", real)
    await card.sees("Approve and pay")
    assert [call["arguments"]["invoice_id"] for call in await card.calls()] == [invoice["id"]]


async def test_the_first_of_two_people_is_told_that_a_second_must_approve(
    page: Page, host: Tools, careful: Worker
) -> None:
    card = await opened(page, host, currency="EUR")
    assert "Two different people must approve it." in await card.sees("as the first of two")
    await card.click("Approve EUR 7,000.00 as the first of two")
    text = await card.sees("Approved by you; needs a second person")
    assert f"First approved by {whoami()}" in text
    assert await card.buttons() == []
    assert "A second person must approve it too" in await card.told_to_the_model()
    assert not paid(careful.data, card.invoice)

    desk = Desk(await Namespace(careful.address).connect())
    await desk.handle(card.invoice).signal("approve_invoice", {"by": "ann@desk1"})
    assert "Approved by ann@desk1" in await card.sees("Paid: 2 of 2 lines")


async def test_the_second_of_two_people_sees_who_approved_first_and_why(
    page: Page, host: Tools, careful: Worker
) -> None:
    invoice = await host.submit(currency="EUR")
    await host.until(invoice, "waiting")
    desk = Desk(await Namespace(careful.address).connect())
    first = {"by": "ann@desk1", "reason": "as agreed <b>"}
    await desk.handle(invoice).signal("approve_invoice", first)
    await desk.once(invoice, lambda status: status.first_approval)
    card = await Card(page, host, invoice).open()
    text = await card.sees("First approved by ann@desk1 on ")
    assert "reason: “as agreed ‹b›”. A second person must approve it too." in text
    await card.click("Approve and pay EUR 7,000.00")
    await card.sees("Paid: 2 of 2 lines")
    assert len(paid(careful.data, invoice)) == 2


async def test_the_card_shows_the_payment_date(page: Page, host: Tools, careful: Worker) -> None:
    day = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}"
    card = await opened(page, host, pay_on=day)
    assert f"Payment date: {day} (in 29 days" in await card.sees("Approve and pay")
    await card.click("Approve and pay $7,000.00")
    assert f"Payment date: {day}" in await card.sees("Approved, not paid yet")
    assert not paid(careful.data, card.invoice)
    await host("cancel_invoice", invoice_id=card.invoice["id"])
