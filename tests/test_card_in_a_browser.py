"""The card in Chromium: what a person sees and what a click does."""

import asyncio
import json
import os
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from mcp.client.extension import advertise

from conftest import ERAS
from node_tools import PLAYWRIGHT, chromium, npm_exec
from support import ROOT, Tools, Worker, an_invoice, mcp, paid

CARD = (ROOT / "approval" / "card.html").read_text("utf-8")
HOST = (ROOT / "tests" / "processes" / "host.html").read_text("utf-8")
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
        message = await asyncio.wait_for(answer, 40)
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

    async def open(self, *departures: str, **how: Any) -> "Card":
        tools = self.browser.tools
        assert tools
        args = {"invoice_id": self.invoice["id"]}
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
        text: str = await self.browser(
            "return page.frameLocator('iframe').locator('main').innerText()"
        )
        return text

    async def sees(self, words: str, seconds: float = 15) -> str:
        """The card's text, once it has these words."""
        await self.browser(
            "await page.frameLocator('iframe').locator('main', { hasText: words })"
            ".waitFor({ timeout });",
            words=words,
            timeout=seconds * 1000,
        )
        return await self.text()

    async def click(self, name: str) -> None:
        await self.browser(
            "await page.frameLocator('iframe').getByRole('button', { name }).click();", name=name
        )

    async def picture(self, path: Path) -> None:
        await self.browser("await page.locator('iframe').screenshot({ path });", path=str(path))


@pytest.fixture(scope="module", params=ERAS)
async def host(
    request: pytest.FixtureRequest, browser: Browser, address: str, worker: Worker
) -> AsyncIterator[Tools]:
    """The tools in a host that shows cards."""
    async with mcp(address, request.param, extensions=[SHOWS_CARDS]) as client:
        browser.tools = Tools(client)
        yield browser.tools


async def opened(browser: Browser, host: Tools, *departures: str, **fields: Any) -> Card:
    invoice = an_invoice(**fields)
    await host("process_invoice", invoice_data=invoice)
    return await Card(browser, invoice).open(*departures)


async def test_the_persons_click_pays_what_the_card_shows(
    browser: Browser, host: Tools, worker: Worker
) -> None:
    card = await opened(browser, host)
    text = await card.sees("Approve and pay $7,000.00")
    assert card.invoice["id"] in text
    assert "$5,000.00" in text
    await card.click("Approve and pay $7,000.00")
    assert "Approved by" in await card.sees("Paid: 2 of 2 lines")
    assert len(paid(worker.data, card.invoice)) == 2
