"""A fault campaign: many invoices at once, while everything is killed again and again.

    uv run tests/campaign.py [--invoices 300] [--seed N]

Users submit and decide invoices through MCP servers; worker, Temporal Service and MCP servers are
killed (SIGKILL) at random moments and started again on the same database and ledger. A call that
fails because something is down is made again, as a user would. In the end every workflow, its memo
and the ledger are compared with what was asked for: nothing lost, nothing paid twice, nothing paid
without approval. Exit code 1 and the data folder say what went wrong.

A seed fixes the invoices and the plan of the kills; what they hit depends on the machine too.
"""

import argparse
import asyncio
import os
import random
import shutil
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent.parent))

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus

from invoices.invoice import Invoice, workflow_id
from invoices.status import APPROVAL_TIMEOUT, COMPLETED, REJECTED
from raw_client import RawClient
from support import PROCESSES, Service, Worker, connect, eventually, payments

USERS = 12
HOSTS = 3
DEADLINE_SECONDS = 2
PATIENCE_SECONDS = 600
"""Of a user. After timeouts Temporal waits longer and longer before it tries a workflow again."""
ACTIVITY_SECONDS = 30
"""After which Temporal tries a payment again whose worker was killed."""

Course = Literal["approve", "reject", "deadline", "race", "submit twice", "resubmit"]
COURSES: dict[Course, int] = {
    "approve": 8,
    "reject": 3,
    "deadline": 2,
    "race": 3,
    "submit twice": 2,
    "resubmit": 2,
}
"""How often each is taken, of twenty."""


@dataclass(frozen=True)
class Answer:
    """What a tool said."""

    words: str
    refused: bool
    content: dict[str, Any]

    @property
    def to_be_repeated(self) -> bool:
        """The words by which a user knows that the same call is to be made again."""
        return self.refused and "ake the same call again" in self.words


@dataclass
class Case:
    """One invoice and what its users asked for and were told."""

    course: Course
    invoice: dict[str, Any]
    """As submitted last."""
    told: set[bool] = field(default_factory=set)
    """The decisions that a tool has said to stand."""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.invoice["id"])


@dataclass
class Campaign:
    """The running parts, and what happened so far."""

    seed: int
    directory: Path
    service: Service
    worker: Worker
    hosts: list[RawClient]
    cases: list[Case]
    kills: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    tried_again: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0

    async def call(self, case: Case, host: int, tool: str, **arguments: Any) -> Answer:
        """Makes a call until it has an answer that says more than that something is down."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    result = await self.hosts[host % HOSTS].call(tool, **arguments)
                    answer = Answer(
                        words=result["content"][0]["text"],
                        refused=result["isError"],
                        content=result.get("structuredContent") or {},
                    )
                    if not answer.to_be_repeated:
                        return answer
                except ConnectionError:
                    pass
                self.repeated += 1
                await asyncio.sleep(0.3)

    async def submit(self, case: Case, host: int) -> None:
        answer = await self.call(case, host, "process_invoice", invoice_data=case.invoice)
        if answer.refused:
            case.problems.append(f"submission refused: {answer.words}")

    async def decide(self, case: Case, host: int, approve: bool) -> None:
        tool, arguments = "reject_invoice", {"invoice_id": case.name}
        if approve:  # the total, as a model is told to pass it
            tool = "approve_invoice"
            arguments["total"] = str(Invoice.model_validate(case.invoice).total)
        answer = await self.call(case, host, tool, **arguments)
        if not answer.refused:
            # Without a worker the tool says only that it was sent.
            if answer.content["worker_answers"] is not False or not opened(answer):
                case.told.add(approve)
        elif case.course == "race" and "can't be" in answer.words:
            case.told.add(not approve)
        else:
            case.problems.append(f"{tool} refused: {answer.words}")

    async def until_rejected(self, case: Case, host: int) -> None:
        async def rejected() -> bool:
            answer = await self.call(case, host, "get_invoice_status", invoice_id=case.name)
            return answer.content.get("state") == "rejected"

        await eventually(rejected, PATIENCE_SECONDS)


def opened(answer: Answer) -> bool:
    return answer.content["state"] in ("waiting", "paying")


def a_case(chance: random.Random, number: int) -> Case:
    course = chance.choices(list(COURSES), list(COURSES.values()))[0]
    invoice: dict[str, Any] = {
        "id": f"C-{number}",
        "currency": chance.choice(["USD", "EUR"]),
        "lines": [
            {"item": f"Item {number}.{line}", "amount": cents(chance)}
            for line in range(1, chance.randint(1, 6) + 1)
        ],
        "payment_interval_seconds": 0,
    }
    if course == "deadline":
        invoice["approval_timeout_days"] = DEADLINE_SECONDS / 86400
    return Case(course, invoice)


def cents(chance: random.Random) -> str:
    amount = chance.randint(1, 10**7)
    return f"{amount // 100}.{amount % 100:02}"


async def use(campaign: Campaign, case: Case, chance: random.Random) -> None:
    """What the users of one invoice do; some time passes between their calls."""
    one, other = chance.sample(range(HOSTS), 2)
    pause = chance.uniform(0, 1.5)
    if case.course == "submit twice":
        await asyncio.gather(campaign.submit(case, one), campaign.submit(case, other))
    else:
        await campaign.submit(case, one)
    await asyncio.sleep(pause)
    match case.course:
        case "reject":
            await campaign.decide(case, one, approve=False)
        case "race":
            await asyncio.gather(
                campaign.decide(case, one, approve=True),
                campaign.decide(case, other, approve=False),
            )
        case "resubmit":
            await campaign.decide(case, one, approve=False)
            await campaign.until_rejected(case, other)
            case.told.clear()
            case.invoice["lines"][0]["amount"] = cents(chance)
            await campaign.submit(case, other)
            await campaign.decide(case, one, approve=True)
        case "approve" | "submit twice":
            await campaign.decide(case, other, approve=True)


async def all_users(campaign: Campaign) -> None:
    queue = iter(campaign.cases)

    async def user() -> None:
        for case in queue:
            try:
                await use(campaign, case, random.Random(f"{campaign.seed}/{case.name}"))
            except (TimeoutError, KeyError) as error:
                case.problems.append(f"the course was not finished: {error!r}")

    await asyncio.gather(*(user() for _ in range(USERS)))


async def kill_at_random(campaign: Campaign, chance: random.Random, over: asyncio.Event) -> None:
    """Kills one or more parts at once and starts them again, time after time until it's over."""

    async def kill(part: str | int, seconds: float) -> None:
        campaign.kills["MCP server" if isinstance(part, int) else part] += 1
        if part == "service":
            campaign.service.kill()
            await asyncio.sleep(seconds)
            await campaign.service.start()
        elif part == "worker":
            campaign.worker.kill()
            await asyncio.sleep(seconds)
            await eventually(worker_started, 120)
        else:
            host = campaign.hosts[int(part)]
            await host.kill()
            await asyncio.sleep(seconds)
            await host.start()

    async def worker_started() -> bool:
        try:
            await campaign.worker.start()
        except AssertionError:  # the service is down too, and so the worker has ended
            return False
        return True

    parts: list[str | int] = ["worker", "worker", "worker", "service", *range(HOSTS)]
    waves: list[list[str | int]] = [["worker"], ["service"], [0]]  # each kind, however short
    recovery = 0.0
    while waves or not over.is_set():
        # On a slow machine a start takes long: everything is up for half of the time at least.
        await asyncio.sleep(chance.uniform(0.3, 4) + recovery)
        began = time.monotonic()
        wave = waves.pop() if waves else chance.sample(parts, chance.choice([1, 1, 1, 2, 3]))
        seconds = {part: chance.uniform(0, 2) for part in wave}
        await asyncio.gather(*(kill(p, s) for p, s in seconds.items()))
        recovery = time.monotonic() - began


async def check(campaign: Campaign) -> None:
    """Waits until every workflow is closed, and compares all with what was asked for."""
    client = await connect(campaign.service.address)
    expected: dict[str, tuple[str, str, str]] = {}
    # Killed payments are tried again after their timeout, then the lines after them are paid.
    bound = 3 * ACTIVITY_SECONDS + len(campaign.cases)
    end = time.monotonic() + bound
    for case in campaign.cases:
        left = max(1.0, end - time.monotonic())
        campaign.problems += await check_case(campaign, client, case, expected, left)
    ledger = payments(campaign.directory)
    campaign.rows = len(ledger)
    campaign.problems += [
        f"{key}: the ledger has {ledger.get(key, 'nothing')}, expected {expected.get(key, 'none')}"
        for key in sorted(ledger.keys() | expected.keys())
        if ledger.get(key) != expected.get(key)
    ]


async def check_case(
    campaign: Campaign,
    client: Client,
    case: Case,
    expected: dict[str, tuple[str, str, str]],
    bound: float,
) -> list[str]:
    """The discrepancies of one invoice; puts its payments into `expected`."""
    handle = client.get_workflow_handle(workflow_id(case.name))
    problems = list(case.problems)

    async def closed() -> WorkflowExecution | None:
        execution = await handle.describe()
        return execution if execution.status != WorkflowExecutionStatus.RUNNING else None

    try:
        execution = await eventually(closed, bound)
    except TimeoutError:
        return [*problems, f"{case.name} ({case.course}): still open"]
    memo = await execution.memo()
    status, decision = memo["status"], memo.get("decision")
    approved = decision["approved"] if decision else None
    async for event in handle.fetch_history_events():
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            campaign.tried_again += event.activity_task_started_event_attributes.attempt > 1
    wanted: dict[Course, list[bool | None]] = {
        "reject": [False],
        "deadline": [None],
        "race": [True, False],
    }
    if approved not in wanted.get(case.course, [True]):
        problems.append(f"the decision is {decision}")
    if case.told - {approved}:
        problems.append(f"a user was told that {case.told} stands, but it is {approved}")
    if status != {True: COMPLETED, False: REJECTED, None: APPROVAL_TIMEOUT}[approved]:
        problems.append(f"the status is {status!r} after the decision {decision}")
    if execution.status != WorkflowExecutionStatus.COMPLETED:
        problems.append(f"the workflow is {execution.status}")
    elif await handle.result() != ("COMPLETED" if approved else "REJECTED"):
        problems.append(f"the result is {await handle.result()}")
    invoice = Invoice.model_validate(case.invoice)
    if memo["digest"] != invoice.digest:
        problems.append("the content is not what was submitted")
    if approved:
        for number, line in enumerate(invoice.lines, start=1):
            payment = (line.item, str(line.amount), invoice.currency)
            expected[f"{workflow_id(case.name)}/line-{number}"] = payment
    campaign.outcomes[case.course, status] += 1
    return [f"{case.name} ({case.course}): {problem}" for problem in problems]


async def run(directory: Path, invoices: int, seed: int) -> Campaign:
    """Runs a campaign with its data in `directory`; `problems` has the discrepancies found."""
    chance = random.Random(seed)
    service = Service(directory)
    campaign = Campaign(
        seed=seed,
        directory=directory,
        service=service,
        worker=Worker(service.address, directory, PROCESSES / "hesitant_worker.py"),
        hosts=[RawClient(service.address, log=directory / f"server-{n}.log") for n in range(HOSTS)],
        cases=[a_case(chance, number) for number in range(1, invoices + 1)],
    )
    began = time.monotonic()
    try:
        await service.start()
        await campaign.worker.start()
        async with AsyncExitStack() as stack:
            for host in campaign.hosts:
                await stack.enter_async_context(host)
            over = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(kill_at_random(campaign, chance, over))
                await all_users(campaign)
                over.set()
        await check(campaign)
    finally:
        campaign.worker.kill()
        service.kill()
    campaign.seconds = time.monotonic() - began
    return campaign


def table(campaign: Campaign) -> str:
    """What happened, in lines for a person."""
    kills = ", ".join(f"{part} {number}" for part, number in sorted(campaign.kills.items()))
    lines = [f"{'course':<14}{'end':<40}{'invoices':>8}"]
    lines += [
        f"{course:<14}{status:<40}{number:>8}"
        for (course, status), number in sorted(campaign.outcomes.items())
    ]
    lines += [
        "",
        f"kills            {kills}",
        f"calls repeated   {campaign.repeated}",
        f"payments retried {campaign.tried_again}",
        f"ledger rows      {campaign.rows}",
        f"seconds          {campaign.seconds:.0f}",
        f"discrepancies    {len(campaign.problems)}",
    ]
    return "\n".join(lines + [f"  {problem}" for problem in campaign.problems])


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs invoices while everything is killed.")
    parser.add_argument("--invoices", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.invoices} invoices", flush=True)
    directory = Path(mkdtemp(prefix="campaign-"))
    campaign = asyncio.run(run(directory, arguments.invoices, arguments.seed))
    print(table(campaign))
    if campaign.problems:
        print(f"The data is in {directory}")
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not sys.exit, for the reason that worker.py gives.
    os._exit(status)
