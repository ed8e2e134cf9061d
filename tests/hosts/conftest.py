"""A Chromium for the tests of the card, and a worker that requires two approvals."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, Page, async_playwright

from support import Worker

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The system's Chromium, because the package would have to download its own."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not path:
        pytest.skip("no Chromium on PATH")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@asynccontextmanager
async def a_page(browser: Browser) -> AsyncIterator[Page]:
    page = await browser.new_page(device_scale_factor=2)
    page.on("console", lambda message: print(f"page: {message.text}"))
    page.on("pageerror", lambda error: print(f"page: {error}"))
    yield page
    await page.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with a_page(browser) as page:
        yield page


@pytest.fixture(scope="module")
async def one_page(browser: Browser) -> AsyncIterator[Page]:
    """A page for a whole file: each further one takes half a second of processor time."""
    async with a_page(browser) as page:
        yield page


@pytest.fixture(scope="module")
async def careful(
    new_namespace: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Worker]:
    """A worker in a namespace of its own. Two people must approve above 1,000 euros, and whatever
    is in a currency without a limit. No invoice in dollars reaches theirs.
    """
    address, data = new_namespace(), tmp_path_factory.mktemp("data")
    limits = "EUR=1000,USD=9999999999999"
    async with Worker(address, data, INVOICE_TWO_PEOPLE_OVER=limits) as worker:
        yield worker
