"""Measures how many invoices one worker completes per second.

Each invoice is submitted, approved, and paid in two lines, without pauses between them. Batches of
three kinds take turns on one service: the tutorial's workflow (`bare`), our workflow, and our
workflow with the calls that our tools make, which also find out whether a worker runs and what the
outcome of the decision is.

    uv run benchmarks/end_to_end.py [--rounds 40] [--invoices 20]
"""

import asyncio
import random
from argparse import ArgumentParser
from collections import defaultdict
from functools import cache
from statistics import median, quantiles
from time import perf_counter

import psutil
from temporalio.client import Client

from common import BARE_WORKER, OUR_WORKER, ms, print_table, running, start
from invoice_client import InvoiceClient
from invoices.invoice import Invoice
from invoices.refusals import NamedTotal
from support import Worker, an_invoice

invoice_client = cache(InvoiceClient)
"""One `InvoiceClient` for each Temporal client, as in the MCP server."""


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
    invoices = invoice_client(client)
    submitted = await invoices.submit(invoice)
    await invoices.decide(
        invoice.id, approve=True, total=NamedTotal(invoice.total, invoice.currency)
    )
    handle = client.get_workflow_handle(submitted.workflow_id)
    assert await handle.result() == "COMPLETED"


WAYS = {"bare": bare, "ours": ours, "ours, calls of our tools": ours_by_tools}


async def main(rounds: int, invoices: int) -> None:
    rates: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    async with running(BARE_WORKER, OUR_WORKER) as (client, workers):
        for way in WAYS.values():
            await asyncio.gather(*(way(client) for _ in range(5)))  # to warm up
        for _ in range(rounds):
            for name in random.sample(list(WAYS), len(WAYS)):
                worker = workers[0 if name == "bare" else 1]
                begin, begin_cpu = perf_counter(), processor_time(worker)
                await asyncio.gather(*(WAYS[name](client) for _ in range(invoices)))
                rates[name].append(invoices / (perf_counter() - begin))
                costs[name].append((processor_time(worker) - begin_cpu) / invoices)
    rows = []
    for name in WAYS:
        ratios = [a / b for a, b in zip(rates[name], rates["bare"], strict=True)]
        low, middle, high = quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        cost = ms(costs[name])
        middle_half = f"{low:.2f} to {high:.2f}"
        rows.append(
            [name, median(rates[name]), middle, middle_half, cost, cost / ms(costs["bare"])]
        )
    header = ["workflow", "invoices per second", "to bare", "middle half of the rounds"]
    print_table([*header, "worker's processor time, ms", "to bare"], rows)
    print("\nGoal: at least 0.85 for ours, 0.82 by our tools.")


def processor_time(worker: Worker) -> float:
    assert worker.process
    times = psutil.Process(worker.process.pid).cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--invoices", type=int, default=20, help="how many in a batch, all at once")
    asyncio.run(main(**vars(parser.parse_args())))
