"""The time of each tool call, against the Temporal calls it can't do without.

The floor is those calls by a client in this process, plus a FastMCP tool over stdio that does
nothing. What is decided on was submitted by our client. `process_invoice` is measured twice: right
after other calls, when it takes for granted that a worker runs, and after a pause, when it asks.
The second has no goal: asking is what it adds to the floor.

    uv run benchmarks/tool_calls.py [--rounds 100]
"""

import asyncio
import random
from argparse import ArgumentParser
from collections import defaultdict
from time import perf_counter
from typing import Any

from temporalio.client import Client

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
from invoice_client import RECENT_SECONDS, InvoiceClient
from invoices.invoice import Invoice
from raw_client import RawClient
from support import an_invoice

AFTER_PAUSE = "process_invoice, after a pause"
TO_REACH = {
    "process_invoice": "1.15",
    AFTER_PAUSE: "",
    "approve_invoice": "1.15",
    "reject_invoice": "1.15",
    "get_invoice_status": "1.20",
}
# In these ways: the raw calls that our tool makes, those that the tutorial's tool makes, and both
# tools themselves.
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
            for call in TO_REACH:
                if call == AFTER_PAUSE:
                    if number % 5:  # as it takes so long
                        continue
                    await asyncio.sleep(RECENT_SECONDS + 1)
                for way in random.sample(WAYS, len(WAYS)):
                    seconds = await measure(client, servers, call, way)
                    if number >= 0:  # the first are to warm up
                        times[call, way].append(seconds)
    for name, raw in (("ours", "raw"), ("tutorial", "plain")):
        rows = []
        for call, goal in TO_REACH.items():
            bare, tool = ms(times[call, raw]), ms(times[call, name])
            ratio = tool / (bare + ms(nothing))
            rows.append([call, bare, ms(nothing), tool, ratio, goal if name == "ours" else ""])
        print_table(
            [name, "raw calls, ms", "empty tool, ms", "tool, ms", "to the floor", "to reach"], rows
        )


async def measure(client: Client, servers: dict[str, RawClient], call: str, way: str) -> float:
    """Makes one call, on an invoice of its own; leaves the worker with nothing to do."""
    tool = call.partition(",")[0]
    # Nothing is paid meanwhile, as with the two seconds that invoices have by default.
    invoice = an_invoice(payment_interval_seconds=3600)
    handle = client.get_workflow_handle(f"invoice-{invoice['id']}")
    if tool != "process_invoice":
        await InvoiceClient(client).submit(Invoice(**invoice))

    begin = perf_counter()
    if way in servers:
        arguments: dict[str, Any] = {"invoice_id": invoice["id"]}
        if tool == "process_invoice":
            arguments = {"invoice_data": invoice}
        elif tool == "approve_invoice" and way == "ours":
            arguments["total"] = "7000.00 USD"
        await call_tool(servers[way], tool, **arguments)
    else:
        await make_bare_calls(client, invoice, tool, way)
    seconds = perf_counter() - begin

    # The worker is idle again before the next call, which would wait for its workflow task.
    while await handle.query("get_status") == "Processing":
        await asyncio.sleep(0.01)
    if not (await handle.describe()).close_time:
        await handle.terminate()
    return seconds


async def make_bare_calls(client: Client, invoice: dict[str, Any], tool: str, way: str) -> None:
    """The calls that a tool makes: ours (`raw`), or the tutorial's (`plain`)."""
    handle = client.get_workflow_handle(f"invoice-{invoice['id']}")
    if tool == "process_invoice":
        await start(client, invoice)
        if way == "raw":
            await handle.describe()
    elif way == "plain":
        await (handle.query("get_status") if tool == "get_invoice_status" else handle.signal(tool))
    elif tool == "get_invoice_status":
        await asyncio.gather(handle.describe(), handle.query("get_progress"))
    else:
        await handle.describe()
        await handle.signal(tool)
        await handle.query("get_progress")


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    asyncio.run(main(**vars(parser.parse_args())))
