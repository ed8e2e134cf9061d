"""Measures each tool call, and compares it with the Temporal calls that it needs.

The floor is the time of raw Temporal calls from this process, plus the time of an empty FastMCP
tool over stdio: a start for `process_invoice`, a start and a query for the same after a pause, a
signal and a query for a decision, and a query for the status. Our client submits the invoices that
are decided on. `process_invoice` is measured twice: soon after other calls, when it assumes that a
worker runs, and after a pause, when it waits for a worker to have processed the invoice.

    uv run benchmarks/tool_calls.py [--rounds 100]
"""

import asyncio
import random
from argparse import ArgumentParser
from collections import defaultdict
from time import perf_counter
from typing import Any

from temporalio.client import Client, WorkflowHandle

from common import (
    EMPTY_SERVER,
    OUR_WORKER,
    TUTORIAL_SERVER,
    address,
    call_tool,
    ms,
    print_table,
    running,
    start,
)
from invoice_client import InvoiceClient
from invoice_runs import RECENT_SECONDS
from invoices.invoice import Invoice
from raw_client import RawClient
from support import an_invoice

AFTER_PAUSE = "process_invoice, after a pause"
GOALS = {
    "process_invoice": "1.20",
    AFTER_PAUSE: "1.30",
    "approve_invoice": "0.65",
    "reject_invoice": "0.65",
    "get_invoice_status": "the tutorial's",
}
# The raw calls that our tool is compared with, those that the tutorial's tool makes, our tool, and
# the tutorial's tool.
WAYS = ["raw", "plain", "ours", "tutorial"]


async def main(rounds: int) -> None:
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    nothing: list[float] = []
    async with (
        running(OUR_WORKER) as (client, _),
        RawClient(script=EMPTY_SERVER) as empty,
        RawClient(address(client)) as ours,
        RawClient(address(client), script=TUTORIAL_SERVER) as tutorial,
    ):
        servers = {"ours": ours, "tutorial": tutorial}
        for number in range(-2, rounds):
            begin = perf_counter()
            await call_tool(empty, "nothing")
            nothing.append(perf_counter() - begin)
            for call in GOALS:
                if call == AFTER_PAUSE:
                    if number % 5:  # because it takes so long
                        continue
                    await asyncio.sleep(RECENT_SECONDS + 1)
                for way in random.sample(WAYS, len(WAYS)):
                    seconds = await measure(client, servers, call, way)
                    if number >= 0:  # the first rounds are to warm up
                        times[call, way].append(seconds)
    for name, raw in (("ours", "raw"), ("tutorial", "plain")):
        rows = []
        for call, goal in GOALS.items():
            bare, tool = ms(times[call, raw]), ms(times[call, name])
            ratio = tool / (bare + ms(nothing))
            rows.append([call, bare, ms(nothing), tool, ratio, goal if name == "ours" else ""])
        print_table(
            [name, "raw calls, ms", "empty tool, ms", "tool, ms", "to the floor", "goal"], rows
        )


async def measure(client: Client, servers: dict[str, RawClient], call: str, way: str) -> float:
    """Times one call, on a new invoice, and waits until the worker is idle again."""
    tool = call.partition(",")[0]
    # The long pause makes sure that no payment runs at the same time.
    invoice = an_invoice(payment_interval_seconds=3600)
    handle = client.get_workflow_handle(f"invoice-{invoice['id']}")
    if tool != "process_invoice":
        await InvoiceClient(client).submit(Invoice(**invoice))
        await until_idle(handle)

    begin = perf_counter()
    if way in servers:
        arguments: dict[str, Any] = {"invoice_id": invoice["id"]}
        if tool == "process_invoice":
            arguments = {"invoice_data": invoice}
        elif tool == "approve_invoice" and way == "ours":
            arguments["total"] = "7000.00 USD"
        await call_tool(servers[way], tool, **arguments)
    else:
        await make_bare_calls(client, invoice, call, way)
    seconds = perf_counter() - begin

    await until_idle(handle)
    if not (await handle.describe()).close_time:
        await handle.terminate()
    return seconds


async def until_idle(handle: WorkflowHandle[Any, Any]) -> None:
    """Until the worker has no workflow task, which would delay the next call."""
    while await handle.query("get_status") == "Processing":
        await asyncio.sleep(0.01)


async def make_bare_calls(client: Client, invoice: dict[str, Any], call: str, way: str) -> None:
    """Makes the Temporal calls of the floor (`raw`), or those of the tutorial's tool (`plain`)."""
    handle = client.get_workflow_handle(f"invoice-{invoice['id']}")
    if call in ("process_invoice", AFTER_PAUSE):
        await start(client, invoice)
        if call == AFTER_PAUSE and way == "raw":
            await handle.query("get_status")
    elif call == "get_invoice_status":
        await handle.query("get_status" if way == "plain" else "get_progress")
    else:
        await handle.signal(call)
        if way == "raw":
            await handle.query("get_progress")


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    asyncio.run(main(**vars(parser.parse_args())))
