"""The card in Chromium: what a person sees and what a click does."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client as McpClient
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from mcp.client.extension import advertise

import invoice_server
from approval.card import card_html
from invoice_client import InvoiceClient
from node_tools import INSPECTOR, PLAYWRIGHT, chromium, npm_exec
from support import (
    ROOT,
    Namespace,
    Tools,
    Worker,
    an_invoice,
    environment,
    eventually,
    free_port,
    mcp,
    paid,
    payments,
    submitted,
    tools_in_memory,
)
from temporal_service.connection import whoami

CARD = card_html(invoice_server.VERSION)
HOST = (ROOT / "tests" / "processes" / "host.html").read_text("utf-8")
CARD_FRAME = "page.frameLocator('iframe[title=card]')"
SHOWS_CARDS = advertise(UI_EXTENSION_ID, {"mimeTypes": [UI_MIME_TYPE]})


class Browser:
    """A page in Chromium, driven by lines of JavaScript with playwright's `page`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.tools: Tools | None = None
        """What a page's `call` calls."""
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read())

    async def __call__(self, js: str, **variables: Any) -> Any:
        """Runs the body of an async function of `page` and the variables; its value."""
        names = "".join(f"const {name} = {json.dumps(value)};" for name, value in variables.items())
        number = str(len(self._waiting) + 1)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._write({"id": number, "js": names + js})
        message = await asyncio.wait_for(answer, 90)
        assert "error" not in message, message["error"]
        return message["value"]

    def _write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        assert self.process.stdout
        while line := await self.process.stdout.readline():
            message = json.loads(line)
            if "call" in message:
                task = asyncio.create_task(self._call(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._waiting[message["id"]].set_result(message)

    async def _call(self, message: dict[str, Any]) -> None:
        assert self.tools
        result = await self.tools.client.call_tool_mcp(message["call"], message["parameters"])
        value = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        self._write({"id": message["id"], "value": value})


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    command = [*npm_exec(PLAYWRIGHT), "node", str(ROOT / "tests/processes/browser.cjs"), chromium()]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
        env={**os.environ},
    )
    assert process.stdout
    assert process.stdin
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 60) or "{}")
    assert "ready" in ready
    yield Browser(process)
    process.stdin.close()
    await asyncio.wait_for(process.wait(), 20)


class Card:
    """The card of one invoice in the tests' own host."""

    def __init__(self, browser: Browser, invoice: dict[str, Any]) -> None:
        self.browser = browser
        self.invoice = invoice

    async def open(self, *departures: str, reason: str | None = None, **how: Any) -> "Card":
        tools = self.browser.tools
        assert tools
        args = {"invoice_id": self.invoice["id"], **({"reason": reason} if reason else {})}
        result = await tools.client.call_tool_mcp("approve_invoice", args)
        options = {
            "html": CARD,
            "args": args,
            "departures": departures,
            "result": result.model_dump(mode="json", by_alias=True, exclude_none=True),
            **how,
        }
        await self.browser(
            "await page.setContent(host); await page.evaluate(o => openCard(o), options);",
            host=HOST,
            options=options,
        )
        return self

    async def text(self) -> str:
        text: str = await self.browser(f"return {CARD_FRAME}.locator('main').innerText();")
        return text

    async def buttons(self) -> list[str]:
        names: list[str] = await self.browser(
            f"return {CARD_FRAME}.getByRole('button').allInnerTexts();"
        )
        return names

    async def calls(self) -> list[dict[str, Any]]:
        """The tools that the card has called, in order."""
        return [m["params"] for m in await self._messages() if m.get("method") == "tools/call"]

    async def told_to_the_model(self) -> str:
        messages = [m for m in await self._messages() if m["method"] == "ui/update-model-context"]
        text: str = messages[-1]["params"]["content"][0]["text"]
        return text

    async def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = await self.browser("return page.evaluate(() => messages);")
        return messages

    async def sees(self, words: str, seconds: float = 30) -> str:
        """The card's text, once it has these words."""
        await self.browser(
            f"await {CARD_FRAME}.locator('main', {{ hasText: words }}).waitFor({{ timeout }});",
            words=words,
            timeout=seconds * 1000,
        )
        return await self.text()

    async def click(self, name: str) -> None:
        await self.browser(
            f"await {CARD_FRAME}.getByRole('button', {{ name }}).click();", name=name
        )


@pytest.fixture(scope="module")
async def connected(address: str, worker: Worker) -> AsyncIterator[Tools]:
    """The tools of a server that knows its host to show cards."""
    # A host of these tests that loads no card must not make the server fall back for the others.
    required = {"INVOICE_APPROVAL_CARD": "required"}
    async with mcp(address, extensions=[SHOWS_CARDS], env=required) as client:
        yield Tools(client)


@pytest.fixture
def host(browser: Browser, connected: Tools) -> Tools:
    """The same, called by the cards in the browser too."""
    browser.tools = connected
    return connected


async def opened(browser: Browser, host: Tools, *departures: str, **fields: Any) -> Card:
    invoice = an_invoice(**fields)
    await host("process_invoice", invoice_data=invoice)
    return await Card(browser, invoice).open(*departures)


def amounts(worker: Worker, invoice: dict[str, Any]) -> list[str]:
    """What was paid of an invoice, by the ledger."""
    keys = paid(worker.data, invoice)
    return [payments(worker.data)[key][1] for key in keys]


async def test_the_persons_click_pays_what_the_card_shows(
    browser: Browser, host: Tools, worker: Worker
) -> None:
    card = await opened(browser, host, customer="Acme Corporation")
    text = await card.sees("Approve and pay $7,000.00")
    for shown in (card.invoice["id"], "Acme Corporation", "$5,000.00", "$2,000.00", "Decide by"):
        assert shown in text
    assert not paid(worker.data, card.invoice)
    await card.click("Approve and pay $7,000.00")
    assert f"Approved by {whoami()}" in await card.sees("Paid: 2 of 2 lines")
    assert amounts(worker, card.invoice) == ["5000.00", "2000.00"]
    assert f"approved invoice {card.invoice['id']} on the card" in await card.told_to_the_model()


async def test_the_card_follows_the_payments(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host, payment_interval_seconds=1)
    await card.sees("Approve and pay")
    await card.click("Approve and pay")
    await card.sees("Approved, being paid")
    await card.sees("Paid: 2 of 2 lines")
    assert not await card.buttons()


async def test_a_rejection_on_the_card_keeps_its_reason(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host)
    await card.sees("Approve and pay")
    await card.click("Reject…")
    await browser(f"await {CARD_FRAME}.getByRole('textbox').fill('wrong hours');")
    await card.click("Reject invoice")
    assert "reason: “wrong hours”" in await card.sees("Rejected by")
    assert (await host.status(card.invoice))["state"] == "rejected"


NOTE = f"{CARD_FRAME}.getByRole('textbox', {{ name: 'Reason that will be kept' }})"


async def test_the_reason_on_the_card_is_the_one_that_is_kept(
    browser: Browser, host: Tools
) -> None:
    invoice = await submitted(host)
    hidden = "as agreed\u3164\u2800\n in May\u202e"
    card = await Card(browser, invoice).open(reason=hidden)
    await card.sees("Reason that will be kept with an approval")
    shown = await browser(f"return {NOTE}.inputValue();")
    assert shown == "as agreed in May\ufffd"
    await card.click("Approve and pay")
    await card.sees("Paid: 2 of 2 lines")
    assert (await host.status(invoice))["decision"]["reason"] == shown


@pytest.mark.parametrize("text", ["they were here on Monday", ""])
async def test_the_person_may_change_the_reason(text: str, browser: Browser, host: Tools) -> None:
    invoice = await submitted(host)
    card = await Card(browser, invoice).open(reason="the person said so")
    await card.sees("Reason that will be kept with an approval")
    await browser(f"await {NOTE}.fill(text);", text=text)
    await card.click("Approve and pay")
    await card.sees("Paid: 2 of 2 lines")
    assert (await host.status(invoice))["decision"].get("reason", "") == text


async def test_a_reason_to_approve_is_none_to_reject(browser: Browser, host: Tools) -> None:
    invoice = await submitted(host)
    card = await Card(browser, invoice).open(reason="the person said so")
    await card.sees("Reason that will be kept with an approval")
    await card.click("Reject…")
    await card.click("Reject invoice")
    await card.sees("Rejected by")
    assert "reason" not in (await host.status(invoice))["decision"]


async def test_a_long_reason_leaves_the_buttons_in_sight(browser: Browser, host: Tools) -> None:
    lines = [{"item": f"Week {week}", "amount": "1.00"} for week in range(1, 101)]
    card = await Card(browser, await submitted(host, lines=lines)).open(reason="as agreed " * 100)
    await card.sees("Reason that will be kept with an approval")
    box = "await page.locator('iframe').boundingBox()"
    button = f"await {CARD_FRAME}.getByRole('button', {{ name: 'Approve' }}).boundingBox()"
    frame, approve = await browser(f"return [{box}, {button}];")
    assert frame["height"] < 560
    assert approve["y"] + approve["height"] < frame["y"] + frame["height"]


async def test_a_scripts_click_does_nothing(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host)
    await card.sees("Approve and pay")
    await browser(
        f"const card = {CARD_FRAME};"
        "await card.getByRole('button', { name: 'Approve', disabled: false }).waitFor();"
        "await card.locator('body').evaluate(() => {"
        "  for (const id of ['approve', 'confirm']) {"
        "    document.getElementById(id).click();"
        "    document.getElementById(id).dispatchEvent(new MouseEvent('click', { bubbles: true }));"
        "  }"
        "});"
    )
    assert [call["name"] for call in await card.calls()] == ["invoice_card"]
    assert "Approve and pay" in await card.text()
    assert (await host.status(card.invoice))["state"] == "waiting"


async def test_the_keyboard_decides_only_from_a_button(
    browser: Browser, host: Tools, worker: Worker
) -> None:
    card = await opened(browser, host)
    await card.sees("Approve and pay")
    await browser("await page.keyboard.press('Enter'); await page.keyboard.press('Space');")
    assert [call["name"] for call in await card.calls()] == ["invoice_card"]
    await browser(
        f"const approve = {CARD_FRAME}.getByRole('button', {{ name: 'Approve', disabled: false }});"
        "await approve.waitFor();"
        "for (let n = 0; n < 4 && !await approve.evaluate(e => e === document.activeElement); n++)"
        "  await page.keyboard.press('Tab');"
        "await page.keyboard.press('Enter');"
    )
    await card.sees("Paid: 2 of 2 lines")
    focused = await browser(
        f"return {CARD_FRAME}.locator('body').evaluate(() => document.activeElement.id);"
    )
    assert focused == "message"


async def test_a_screen_reader_is_told_everything(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host)
    await card.sees("Approve and pay")
    tree = await browser(f"return {CARD_FRAME}.locator('body').ariaSnapshot();")
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


async def test_hostile_text_stays_text(browser: Browser, host: Tools) -> None:
    item = "<img src=x onerror=parent.postMessage(1,'*')> \u202e</table><script>alert(1)</script>"
    card = await opened(
        browser, host, lines=[{"item": item, "amount": "1.00", "description": item}], customer=item
    )
    text = await card.sees("Approve and pay $1.00")
    assert "‹img" in text
    assert "\u202e" not in text
    elements = "img, td script, th script"
    assert await browser(f"return {CARD_FRAME}.locator('{elements}').count();") == 0


async def test_a_click_on_what_was_replaced_decides_nothing(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host)
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
    browser: Browser, host: Tools, address: str, worker: Worker
) -> None:
    card = await opened(browser, host)
    await card.sees("Approve and pay")
    async with tools_in_memory(address, extensions=[SHOWS_CARDS]) as restarted:
        browser.tools = restarted
        await card.click("Approve and pay")
        await card.sees("server was restarted")
        assert (await host.status(card.invoice))["state"] == "waiting"
        await card.click("Load again")
        await card.sees("Approve and pay")
        await card.click("Approve and pay")
        await card.sees("Paid: 2 of 2 lines")
    assert len(paid(worker.data, card.invoice)) == 2


async def test_a_click_after_another_decision_is_told_that(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host)
    await card.sees("Approve and pay")
    await host("reject_invoice", invoice_id=card.invoice["id"], reason="elsewhere")
    await card.click("Approve and pay")
    assert f"Rejected by {whoami()}" in await card.sees("can't be approved now")
    await card.click("Load again")
    await card.sees("reason: “elsewhere”")
    assert not await card.buttons()


@pytest.mark.slow
async def test_a_click_without_a_worker_is_kept(
    browser: Browser, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_server, "_client", InvoiceClient(await namespace.connect()))
    async with McpClient(invoice_server.mcp, extensions=[SHOWS_CARDS]) as client:
        browser.tools = Tools(client)
        card = await opened(browser, browser.tools)
        await card.sees("Approve and pay")
        await card.click("Approve and pay")
        assert "Approved" in await card.sees("the decision is kept")
        assert not await card.buttons()
        worker = await Worker(namespace.address, tmp_path).start()
        try:
            await card.sees("Paid: 2 of 2 lines")
        finally:
            worker.kill()


async def test_a_long_invoice_scrolls_within_the_card(browser: Browser, host: Tools) -> None:
    lines = [{"item": f"Week {week}", "amount": "1.00"} for week in range(1, 501)]
    card = await opened(browser, host, lines=lines)
    await card.sees("To pay, 500 lines")
    box = "await page.locator('iframe').boundingBox()"
    button = f"await {CARD_FRAME}.getByRole('button', {{ name: 'Approve' }}).boundingBox()"
    frame, approve = await browser(f"return [{box}, {button}];")
    assert frame["height"] < 500
    assert approve["y"] + approve["height"] < frame["y"] + frame["height"]


async def test_a_narrow_card_needs_no_scrolling_sideways(browser: Browser, host: Tools) -> None:
    await browser("await page.setViewportSize({ width: 280, height: 800 });")
    card = await opened(
        browser, host, lines=[{"item": "W" * 200, "amount": "9999999999.99"}], customer="C" * 200
    )
    await card.sees("Approve and pay")
    width = await browser(
        f"return {CARD_FRAME}.locator('html').evaluate(e => [e.scrollWidth, e.clientWidth,"
        " lines.scrollWidth - lines.clientWidth]);"
    )
    await browser("await page.setViewportSize({ width: 1280, height: 800 });")
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
    context: dict[str, Any], color: str, browser: Browser, host: Tools
) -> None:
    invoice = an_invoice()
    await host("process_invoice", invoice_data=invoice)
    card = await Card(browser, invoice).open(context=context)
    await card.sees("Approve and pay")
    background = await browser(
        f"return {CARD_FRAME}.locator('body').evaluate(e => getComputedStyle(e).backgroundColor);"
    )
    assert background == color


async def test_a_host_that_passes_on_only_text_still_shows_the_card(
    browser: Browser, host: Tools, worker: Worker
) -> None:
    card = await opened(browser, host, "bare-result")
    await card.sees("Approve and pay")
    await card.click("Approve and pay")
    await card.sees("Paid: 2 of 2 lines")


async def test_a_host_that_keeps_the_seal_back_is_told_of(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host, "no-meta")
    assert "$7,000.00" in await card.sees("nothing can be decided here")
    assert await card.buttons() == ["Load again"]


async def test_a_host_that_refuses_calls_is_told_of(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host, "refuses")
    await card.sees("The host refused: Not allowed")
    assert await card.buttons() == ["Load again"]


@pytest.mark.slow
async def test_a_silent_host_does_not_leave_the_card_loading(browser: Browser, host: Tools) -> None:
    card = await opened(browser, host, "silent")
    assert "Loading" not in await card.sees("hasn’t said which invoice")
    assert await card.buttons() == ["Load again"]


async def test_messages_from_other_frames_are_ignored(browser: Browser, host: Tools) -> None:
    invoice = an_invoice()
    await host("process_invoice", invoice_data=invoice)
    card = await Card(browser, invoice).open("bare-result", args=None)
    message = {
        "jsonrpc": "2.0",
        "method": "ui/notifications/tool-input",
        "params": {"arguments": {"invoice_id": "forged"}},
    }
    await browser(
        "await page.waitForFunction(() => messages.some("
        "  m => m.method === 'ui/notifications/initialized'));"
        "await page.evaluate(message => new Promise(done => {"
        "  window.addEventListener('message', e => e.data === 'sent' && done());"
        "  const other = document.createElement('iframe');"
        "  other.srcdoc = `<script>parent.frames[0].postMessage(${JSON.stringify(message)}, '*');"
        "parent.postMessage('sent', '*')</` + 'script>';"
        "  document.body.append(other);"
        "}), message);"
        "await page.evaluate(message => postToCard(message), real);",
        message=message,
        real={**message, "params": {"arguments": {"invoice_id": invoice["id"]}}},
    )
    await card.sees("Approve and pay")
    assert [call["arguments"]["invoice_id"] for call in await card.calls()] == [invoice["id"]]


@pytest.mark.slow
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_in_the_inspector_only_the_persons_click_pays(
    era: str, browser: Browser, inspector: str, host: Tools, worker: Worker
) -> None:
    invoice = an_invoice()
    await host("process_invoice", invoice_data=invoice)
    await browser(
        "await page.goto(url);"
        "await page.getByRole('switch', { name: era }).press(' ');"
        "await page.getByText('Tools', { exact: true }).first().click();",
        url=inspector,
        era=era,
    )
    # This tab has every tool, as if a model could call them all.
    approved = await call_in_inspector(browser, "approve_invoice", invoice_id=invoice["id"])
    assert "Nothing is approved or paid yet" in approved
    assert "$7,000.00" in await call_in_inspector(browser, "invoice_card", invoice_id=invoice["id"])
    forged = {"invoice_id": invoice["id"], "approve": True, "seal": "0" * 64}
    assert "out of date" in await call_in_inspector(browser, "decide_on_card", **forged)

    await browser(
        "await page.getByText('Apps', { exact: true }).first().click();"
        "await page.getByRole('button').filter({ hasText: 'Approve and pay an invoice',"
        " hasNotText: 'approve_invoice' }).click();"
        "const field = page.getByRole('textbox', { name: 'invoice_id', exact: true });"
        "await field.filter({ visible: true }).last().fill(id);"
        "await page.getByRole('button', { name: 'Open App' }).click();"
        f"await {INSPECTED_CARD}.getByRole('button', {{ name: 'Approve and pay $7,000.00',"
        " disabled: false }).waitFor();"
        f"await {INSPECTED_CARD}.locator('#approve').evaluate(button => button.click());",
        id=invoice["id"],
    )
    assert (await host.status(invoice))["state"] == "waiting"

    await browser(
        f"const card = {INSPECTED_CARD};"
        "await card.getByRole('button', { name: 'Approve and pay $7,000.00' }).click();"
        "await card.getByText('Paid: 2 of 2 lines').waitFor();"
    )
    assert amounts(worker, invoice) == ["5000.00", "2000.00"]


INSPECTED_CARD = "page.frameLocator('iframe').frameLocator('iframe')"


@pytest.fixture(scope="module")
async def inspector(
    address: str, worker: Worker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """The address of an MCP Inspector's page, with the server to be connected in either era.

    The Inspector can ask as well, and then no card is offered: so that is taken out on the way.
    """
    folder, port = tmp_path_factory.mktemp("inspector"), free_port()
    server = {
        "command": sys.executable,
        "args": [str(ROOT / "tests" / "processes" / "without_elicitation.py")],
        "env": {name: value for name, value in environment(address).items() if "TEMPORAL" in name},
    }
    servers = {era: {**server, "protocolEra": era} for era in ("legacy", "modern")}
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    settings = {
        "HOST": "127.0.0.1",
        "CLIENT_PORT": str(port),
        "MCP_SANDBOX_PORT": str(free_port()),
        "MCP_AUTO_OPEN_ENABLED": "false",
        "MCP_INSPECTOR_API_TOKEN": "token",
        "MCP_INSPECTOR_SECRET_STORE": "memory",
    }
    process = await asyncio.create_subprocess_exec(
        *npm_exec(INSPECTOR),
        *("mcp-inspector", "--web", "--config", str(folder / "mcp.json")),
        env={**os.environ, **settings},
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )

    async def listening() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await eventually(listening, 60)
        yield f"http://127.0.0.1:{port}/?MCP_INSPECTOR_API_TOKEN=token"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        await process.wait()


async def call_in_inspector(browser: Browser, tool: str, **arguments: Any) -> str:
    """Calls a tool by name in the Inspector's own tab; the text of the answer."""
    text: str = await browser(
        "await page.getByText('Tools', { exact: true }).first().click();"
        "const screen = page.getByTestId('tools-screen');"
        "await screen.getByRole('button', { name: tool }).click();"
        "for (const [name, value] of Object.entries(given)) {"
        "  if (value === true) await screen.getByRole('checkbox', { name }).check();"
        "  else await screen.getByRole('textbox', { name, exact: true }).fill(value);"
        "}"
        "await screen.getByRole('button', { name: 'Execute Tool' }).click();"
        "await screen.getByText('Results', { exact: true }).waitFor();"
        "return screen.innerText();",
        tool=tool,
        given=arguments,
    )
    return text
