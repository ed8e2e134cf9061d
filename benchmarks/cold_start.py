"""Measures the time from starting the MCP server to its answers to `initialize` and `tools/list`.

Compares it with a FastMCP server that has one empty tool and doesn't use Temporal.

    uv run benchmarks/cold_start.py [--rounds 30]
"""

import asyncio
import random
from argparse import ArgumentParser
from collections import defaultdict
from pathlib import Path
from time import perf_counter

from common import EMPTY_SERVER, OUR_SERVER, TUTORIAL_SERVER, ms, print_table
from raw_client import RawClient

SERVERS = {"empty": EMPTY_SERVER, "ours": OUR_SERVER, "tutorial": TUTORIAL_SERVER}


async def main(rounds: int) -> None:
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
        first, second = ms(initialized[name]), ms(listed[name])
        return [name, first, first / ms(initialized["empty"]), second, second / ms(listed["empty"])]

    print_table(
        ["server", "initialize, ms", "to empty", "tools/list, ms", "to empty"], map(row, SERVERS)
    )
    print("\nGoal: at most 1.10 for ours.")


async def start_up(script: Path) -> tuple[float, float]:
    begin = perf_counter()
    async with RawClient(script=script) as server:
        initialized = perf_counter() - begin
        await server.request("tools/list")
        return initialized, perf_counter() - begin


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    asyncio.run(main(**vars(parser.parse_args())))
