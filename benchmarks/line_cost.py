"""Measures the cost of a line in invoices of 10, 100 and 500 lines: time, events, history bytes.

Measures from the approval to the end, without pauses between lines, and compares our workflow with
the tutorial's. Sizes and workflows take turns.

    uv run benchmarks/line_cost.py [--rounds 5]
"""

import asyncio
from argparse import ArgumentParser
from collections import defaultdict
from statistics import median
from time import perf_counter

from temporalio.client import Client

from common import BARE_WORKER, OUR_WORKER, print_table, running, start
from support import an_invoice

SIZES = {10: 10, 100: 1, 500: 1}
"""Lines in an invoice, and how many such invoices a round pays, one after another."""
OURS = ("InvoiceWorkflow", "invoice-task-queue")
BARE = ("BareWorkflow", "bare-task-queue")


async def main(rounds: int) -> None:
    costs: dict[int, list[list[float]]] = defaultdict(list)
    bare: dict[int, list[list[float]]] = defaultdict(list)
    async with running(BARE_WORKER, OUR_WORKER) as (client, _):
        for workflow in (OURS, BARE):
            await pay(client, 10, *workflow)  # to warm up
        for _ in range(rounds):
            for lines, invoices in SIZES.items():
                for _ in range(invoices):
                    costs[lines].append(await pay(client, lines, *OURS))
                    bare[lines].append(await pay(client, lines, *BARE))
    rows: list[list[object]] = []
    for lines in SIZES:
        seconds, events, size = map(median, zip(*costs[lines], strict=True))
        first = rows[0][1] if rows else seconds * 1000
        assert isinstance(first, float)
        to_bare = seconds / median(cost[0] for cost in bare[lines])
        rows.append([lines, seconds * 1000, seconds * 1000 / first, to_bare, events, size])
    print_table(
        [
            "lines",
            "ms per line",
            "to 10 lines",
            "to a bare line",
            "events per line",
            "bytes per line",
        ],
        rows,
    )
    print("\nGoal: at most 1.2 times the time per line in 10 lines.")


async def pay(client: Client, lines: int, workflow: str, task_queue: str) -> list[float]:
    """The seconds, history events and history bytes per line."""
    invoice = an_invoice(
        lines=[{"item": f"Item {n}", "amount": f"{n}.50"} for n in range(1, lines + 1)]
    )
    handle = await start(client, invoice, workflow, task_queue)
    await handle.query("get_status")
    begin = perf_counter()
    await handle.signal("approve_invoice")
    assert await handle.result() == "COMPLETED"
    seconds = perf_counter() - begin
    info = (await handle.describe()).raw_description.workflow_execution_info
    return [figure / lines for figure in (seconds, info.history_length, info.history_size_bytes)]


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(main(**vars(parser.parse_args())))
