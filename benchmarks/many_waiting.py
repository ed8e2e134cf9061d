"""Measures the worker's memory, and the time to list invoices and to get one's status.

Calls two services in turn: one with 100 waiting invoices and one with 10,000.

    uv run benchmarks/many_waiting.py [--invoices 10000] [--rounds 50]
"""

import asyncio
import random
import subprocess
import sys
from argparse import ArgumentParser
from collections import defaultdict
from pathlib import Path
from time import perf_counter

from temporalio.client import Client

from common import OUR_WORKER, address, call_tool, ms, print_table, running
from invoice_client import InvoiceClient
from invoices.invoice import Invoice
from raw_client import RawClient
from support import an_invoice

FEW = 100


async def main(invoices: int, rounds: int) -> None:
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    memory: list[tuple[str, float]] = []
    async with running(OUR_WORKER) as (few, _), running(OUR_WORKER) as (many, [worker]):
        assert worker.process
        pid = worker.process.pid
        ids: dict[int, list[str]] = {FEW: await submit_all(few, FEW), invoices: []}
        for goal in sorted({0, FEW, invoices // 10, invoices // 5, invoices // 2, invoices}):
            ids[invoices] += await submit_all(many, goal - len(ids[invoices]))
            memory.append((f"{goal:,}", resident_mib(pid)))
        async with RawClient(address(few)) as a, RawClient(address(many)) as b:
            servers = {FEW: a, invoices: b}
            for server in servers.values():
                await call_tool(server, "list_invoices")
            for _ in range(rounds):
                for count in random.sample(list(servers), 2):
                    begin = perf_counter()
                    await call_tool(servers[count], "list_invoices", status="waiting")
                    listed = perf_counter()
                    id = random.choice(ids[count])
                    await call_tool(servers[count], "get_invoice_status", invoice_id=id)
                    times["list_invoices", count].append(listed - begin)
                    times["get_invoice_status", count].append(perf_counter() - listed)
        memory.append(("after the calls", resident_mib(pid)))
    print_table(["waiting invoices", "worker's memory, MiB"], memory)
    rows = []
    for tool in ("list_invoices", "get_invoice_status"):
        small, large = ms(times[tool, FEW]), ms(times[tool, invoices])
        rows.append([tool, small, large, large / small])
    print_table(["tool", f"ms at {FEW}", f"ms at {invoices:,}", "ratio"], rows)
    print(
        "\nGoal: a ratio of at most 1.2. list_invoices has none: it compares up to 1,000 deadlines."
    )


async def submit_all(client: Client, count: int) -> list[str]:
    """Submits invoices. Returns their ids once all of them wait for a decision."""
    ids: list[str] = []

    async def submit_some() -> None:
        while len(ids) < count:
            invoice = Invoice(**an_invoice())
            ids.append(invoice.id)
            submitted = await InvoiceClient(client).submit(invoice)
            await client.get_workflow_handle(submitted.workflow_id).query("get_status")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(submit_some())
    return ids


def resident_mib(pid: int) -> float:
    """The resident memory of a process."""
    if sys.platform == "linux":
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024
    if sys.platform == "win32":
        command = ["powershell", "-Command", f"(Get-Process -Id {pid}).WorkingSet64 / 1KB"]
    else:
        command = ["ps", "-o", "rss=", "-p", str(pid)]
    return float(subprocess.check_output(command, text=True)) / 1024


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--invoices", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=50)
    asyncio.run(main(**vars(parser.parse_args())))
