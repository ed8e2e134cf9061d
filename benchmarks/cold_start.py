"""Measures the time from starting the MCP server to its answers to `initialize` and `tools/list`,
and from starting the worker to its line "Worker started" on a service that is running.

Compares the server with a FastMCP server that has one empty tool and doesn't use Temporal, and the
worker with the tutorial's.

    uv run benchmarks/cold_start.py [--rounds 30]
"""

import asyncio
import random
import sys
from argparse import ArgumentParser
from collections import defaultdict
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryDirectory
from time import perf_counter

from common import (
    EMPTY_SERVER,
    OUR_SERVER,
    OUR_WORKER,
    ROOT,
    TUTORIAL_SERVER,
    TUTORIAL_WORKER,
    address,
    ms,
    print_table,
    running,
)
from raw_client import RawClient
from support import STARTED, environment

SERVERS = {"empty": EMPTY_SERVER, "ours": OUR_SERVER, "tutorial": TUTORIAL_SERVER}
WORKERS = {"tutorial": TUTORIAL_WORKER, "ours": OUR_WORKER}


async def main(rounds: int) -> None:
    await compare_servers(rounds)
    await compare_workers(rounds)


async def compare_servers(rounds: int) -> None:
    initialized: dict[str, list[float]] = defaultdict(list)
    listed: dict[str, list[float]] = defaultdict(list)
    for script in SERVERS.values():
        await start_up(script)  # compiles modules that aren't compiled yet
    for _ in range(rounds):
        for name in random.sample(list(SERVERS), len(SERVERS)):
            first, second = await start_up(SERVERS[name])
            initialized[name].append(first)
            listed[name].append(second)

    def row(name: str) -> list[object]:
        to_empty = ratio(initialized, name, "empty"), ratio(listed, name, "empty")
        return [name, ms(initialized[name]), to_empty[0], ms(listed[name]), to_empty[1]]

    print_table(
        ["server", "initialize, ms", "to empty", "tools/list, ms", "to empty"], map(row, SERVERS)
    )
    print("\nGoal: at most 1.00 and 0.95 for ours.")


async def compare_workers(rounds: int) -> None:
    seconds: dict[str, list[float]] = defaultdict(list)
    async with running() as (client, _):
        with TemporaryDirectory() as data:
            env = environment(address(client), INVOICE_DATA_DIR=data, PYTHONPATH=str(ROOT))
            for script in WORKERS.values():
                await start_worker(script, env)  # creates the ledger
            for _ in range(rounds):
                for name in random.sample(list(WORKERS), len(WORKERS)):
                    seconds[name].append(await start_worker(WORKERS[name], env))

    def row(name: str) -> list[object]:
        return [name, ms(seconds[name]), ratio(seconds, name, "tutorial")]

    print_table(["worker", '"Worker started", ms', "to the tutorial's"], map(row, WORKERS))
    print("\nGoal: at most 1.40 for ours.")


def ratio(seconds: dict[str, list[float]], name: str, floor: str) -> float:
    """The median of the rounds' ratios, which another load in some of them hardly changes."""
    return median(a / b for a, b in zip(seconds[name], seconds[floor], strict=True))


async def start_up(script: Path) -> tuple[float, float]:
    begin = perf_counter()
    async with RawClient(script=script) as server:
        initialized = perf_counter() - begin
        await server.request("tools/list")
        return initialized, perf_counter() - begin


async def start_worker(script: Path, env: dict[str, str]) -> float:
    begin = perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=env, stdout=PIPE, stderr=DEVNULL
    )
    assert process.stdout
    line = await process.stdout.readline()
    seconds = perf_counter() - begin
    process.kill()
    await process.communicate()
    assert line.decode().strip() == STARTED
    return seconds


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    asyncio.run(main(**vars(parser.parse_args())))
