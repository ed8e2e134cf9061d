"""Whole lives of invoices a second, through one worker: submitted, approved, two lines paid.

Without pacing, against a bare workflow of the tutorial's shape, on one service, in batches that
take turns. Also with the calls of our tools instead of the bare start and signal: they find out
whether a worker runs and what became of the decision.

    uv run benchmarks/whole_lives.py [--rounds 40] [--invoices 20]
"""

import asyncio
import random
from argparse import ArgumentParser
from collections import defaultdict
from statistics import median, quantiles
from time import perf_counter

from temporalio.client import Client

from common import BARE_WORKER, OUR_WORKER, print_table, running, start
from invoice_client import InvoiceClient
from invoices.invoice import Invoice
from support import an_invoice


async def bare(client: Client) -> None:
    handle = await start(client, an_invoice(), "BareWorkflow", "bare-task-queue")
    await handle.signal("approve_invoice")
    assert await handle.result() == "COMPLETED"


async def ours(client: Client) -> None:
    handle = await start(client, an_invoice())
    await handle.signal("approve_invoice")
    assert await handle.result() == "COMPLETED"


async def ours_by_tools(client: Client) -> None:
    invoice = Invoice(**an_invoice())
    submitted = await InvoiceClient(client).submit(invoice)
    await InvoiceClient(client).decide(invoice.id, approve=True)
    handle = client.get_workflow_handle(submitted.workflow_id)
    assert await handle.result() == "COMPLETED"


LIVES = {"bare": bare, "ours": ours, "ours, calls of our tools": ours_by_tools}


async def main(rounds: int, invoices: int) -> None:
    rates: dict[str, list[float]] = defaultdict(list)
    async with running(BARE_WORKER, OUR_WORKER) as (client, _):
        for life in LIVES.values():
            await asyncio.gather(*(life(client) for _ in range(5)))  # to warm up
        for _ in range(rounds):
            for name in random.sample(list(LIVES), len(LIVES)):
                begin = perf_counter()
                await asyncio.gather(*(LIVES[name](client) for _ in range(invoices)))
                rates[name].append(invoices / (perf_counter() - begin))
    rows = []
    for name in LIVES:
        ratios = [a / b for a, b in zip(rates[name], rates["bare"], strict=True)]
        low, middle, high = quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        rows.append([name, median(rates[name]), middle, f"{low:.2f} to {high:.2f}"])
    print_table(["workflow", "lives a second", "to bare", "middle half of the rounds"], rows)
    print("\nTo reach: 0.85 for ours.")


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--invoices", type=int, default=20, help="in a batch, all at once")
    asyncio.run(main(**vars(parser.parse_args())))
