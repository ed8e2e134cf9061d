"""Measures how many invoices per second two workers complete, compared with one.

Batches take turns on two services, one with one worker and one with two. The result depends on the
machine: if the service uses all of its processors, a second worker doesn't help.

    uv run benchmarks/two_workers.py [--rounds 10] [--invoices 40]
"""

import asyncio
import random
from argparse import ArgumentParser
from statistics import median
from time import perf_counter

from common import OUR_WORKER, print_table, running
from end_to_end import ours


async def main(rounds: int, invoices: int) -> None:
    rates: dict[int, list[float]] = {1: [], 2: []}
    async with running(OUR_WORKER) as (one, _), running(OUR_WORKER, OUR_WORKER) as (two, _):
        clients = {1: one, 2: two}
        for client in clients.values():
            await asyncio.gather(*(ours(client) for _ in range(10)))  # to warm up
        for _ in range(rounds):
            for workers in random.sample(list(clients), 2):
                begin = perf_counter()
                await asyncio.gather(*(ours(clients[workers]) for _ in range(invoices)))
                rates[workers].append(invoices / (perf_counter() - begin))
    first = median(rates[1])
    print_table(
        ["workers", "invoices per second", "to one"],
        [[workers, median(rate), median(rate) / first] for workers, rate in rates.items()],
    )


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--invoices", type=int, default=40, help="how many in a batch, all at once")
    asyncio.run(main(**vars(parser.parse_args())))
