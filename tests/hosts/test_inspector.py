"""The MCP Inspector: its strict check of the schemas, and the card on its page."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.async_api import FrameLocator, Page, expect

from node_tools import node_command
from support import (
    CALLS,
    ROOT,
    Desk,
    Namespace,
    Worker,
    environment,
    eventually,
    free_port,
    paid,
)


def inspector_command() -> str:
    return node_command("@modelcontextprotocol/inspector@2", "mcp-inspector")


def test_tools_pass_the_strict_check() -> None:
    # In one era, because `test_schemas.py` checks that the tools are the same in both.
    arguments = [sys.executable, "invoice_server.py", "--method", "tools/list"]
    checked = subprocess.run(
        [inspector_command(), "--cli", *arguments, "--strict"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert checked.returncode == 0, checked.stderr
    assert len(json.loads(checked.stdout)["tools"]) == len(CALLS)


@pytest.fixture
async def desk(careful: Worker) -> Desk:
    return Desk(await Namespace(careful.address).connect())


@pytest.mark.slow
async def test_in_the_inspector_only_the_persons_click_pays(
    page: Page, desk: Desk, careful: Worker
) -> None:
    invoice = await desk.submit()
    # This tab shows every tool, as if a model could call all of them.
    approved = await call_in_inspector(page, "approve_invoice", invoice_id=invoice.id)
    assert "Nothing is approved or paid yet" in approved
    assert "$7,000.00" in await call_in_inspector(page, "invoice_card", invoice_id=invoice.id)
    forged = {"invoice_id": invoice.id, "approve": True, "seal": "0" * 64}
    assert "out of date" in await call_in_inspector(page, "decide_on_card", **forged)

    card = await open_card(page, invoice.id)
    approve = card.get_by_role("button", name="Approve and pay $7,000.00")
    await expect(approve).to_be_enabled(timeout=30_000)
    await card.locator("#approve").evaluate("button => button.click()")
    assert (await desk.status(invoice)).state == "waiting"

    await approve.click()
    await card.get_by_text("Paid: 2 of 2 lines").wait_for()
    assert len(paid(careful.data, invoice)) == 2


@pytest.mark.slow
async def test_in_the_inspector_the_second_person_sees_the_first_and_the_day(
    page: Page, desk: Desk
) -> None:
    day = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}"
    invoice = await desk.submit(currency="EUR", pay_on=day)
    await desk.once(invoice, lambda status: status.required_approvals)
    first = {"by": "ann@desk1", "reason": "as agreed"}
    await desk.handle(invoice).signal("approve_invoice", first)
    await desk.once(invoice, lambda status: status.first_approval)
    card = await open_card(page, invoice.id)
    await card.get_by_text("First approved by ann@desk1 on ").wait_for(timeout=30_000)
    assert "reason: “as agreed”. A second person" in await card.locator("#approvals").inner_text()
    assert f"Payment date: {day}" in await card.locator("#payment_date").inner_text()

    await card.get_by_role("button", name="Approve and pay EUR 7,000.00").click()
    await card.get_by_text("Approved, not paid yet").wait_for()
    assert (await desk.status(invoice)).state == "scheduled"
    await desk.client.cancel(invoice.id)


async def open_card(page: Page, invoice_id: str) -> FrameLocator:
    await page.get_by_text("Apps", exact=True).first.click()
    app = page.get_by_role("button").filter(
        has_text="Approve and pay an invoice", has_not_text="approve_invoice"
    )
    await app.click()
    field = page.get_by_role("textbox", name="invoice_id", exact=True)
    await field.filter(visible=True).last.fill(invoice_id)
    await page.get_by_role("button", name="Open App").click()
    return page.frame_locator("iframe").frame_locator("iframe")


@pytest.fixture(scope="module", params=["legacy", "modern"])
async def connected(request: pytest.FixtureRequest, one_page: Page, inspector: str) -> Page:
    """The Inspector's page, on which the server is connected in one era."""
    await one_page.goto(inspector)
    await one_page.get_by_role("switch", name=request.param).press(" ")
    return one_page


@pytest.fixture
async def page(connected: Page) -> AsyncIterator[Page]:
    """The page without the card of an earlier test."""
    yield connected
    back = connected.get_by_role("button", name="Back to Input")
    if await back.is_visible():
        await back.click()


@pytest.fixture(scope="module")
async def inspector(
    careful: Worker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    """The address of an MCP Inspector's page, in which the server can be connected in either era.

    The Inspector can also ask, and then no card is offered. So that capability is removed.
    """
    folder, port = tmp_path_factory.mktemp("inspector"), free_port()
    env = environment(careful.address)
    servers = {
        era: {
            "command": sys.executable,
            "args": [str(ROOT / "tests" / "processes" / "without_elicitation.py")],
            "env": {name: value for name, value in env.items() if "TEMPORAL" in name},
            "protocolEra": era,
        }
        for era in ("legacy", "modern")
    }
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
        *(inspector_command(), "--web", "--config", str(folder / "mcp.json")),
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


async def call_in_inspector(page: Page, tool: str, **arguments: Any) -> str:
    """Calls a tool in the Inspector's own tab. Returns the text of the answer."""
    await page.get_by_text("Tools", exact=True).first.click()
    screen = page.get_by_test_id("tools-screen")
    await screen.get_by_role("button", name=tool).click()
    for name, value in arguments.items():
        if value is True:
            await screen.get_by_role("checkbox", name=name).check()
        else:
            await screen.get_by_role("textbox", name=name, exact=True).fill(value)
    await screen.get_by_role("button", name="Execute Tool").click()
    await screen.get_by_text("Results", exact=True).wait_for()
    return await screen.inner_text()
