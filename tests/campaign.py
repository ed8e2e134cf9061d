"""A fault campaign: many invoices at once, while everything is killed again and again.

    uv run tests/campaign.py [--ledger sqlite|postgresql] [--gateway simulated|stripe]
                             [--invoices 300] [--seed N]

Users submit and decide invoices through MCP servers; worker, Temporal Service and MCP servers are
killed (SIGKILL) at random moments and started again on the same database and ledger. On PostgreSQL
two workers share the ledger, and its server and its connections are killed too. Stripe is the
tests' stand-in, which drops, holds and refuses calls and whose clock jumps by a day now and then. A
call that fails because something is down is made again, as a user would. In the end every
workflow, its memo, the ledger and Stripe's charges are compared with what was asked for: nothing
lost, nothing paid twice, nothing paid without approval. Exit code 1 and the data folder say what
went wrong.

A seed fixes the invoices and the plan of the kills; what they hit depends on the machine too.
"""

import argparse
import asyncio
import os
import random
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Hashable
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent.parent))

import psycopg
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus

from invoices.invoice import Invoice, workflow_id
from invoices.status import APPROVAL_TIMEOUT, COMPLETED, REJECTED
from payments.stripe_gateway import minor_units
from postgres import PostgreSQL, programs
from raw_client import RawClient
from stripe_stand_in import KEY_LIFE_HOURS, Fault, FaultKind, Step, StripeStandIn
from support import PROCESSES, Service, Worker, connect, eventually

USERS = 12
HOSTS = 3
DEADLINE_SECONDS = 2
PATIENCE_SECONDS = 600
"""Of a user. After timeouts Temporal waits longer and longer before it tries a workflow again."""
DECLINE_OVER = 100_000
"""Dollars or euros."""
PROGRESS_SECONDS = 15
ACTIVITY_SECONDS = 30
"""After which Temporal tries a payment again whose worker was killed."""

Course = Literal["approve", "reject", "deadline", "race", "submit twice", "resubmit", "decline"]
COURSES: dict[Course, int] = {
    "approve": 6,
    "reject": 3,
    "deadline": 2,
    "race": 3,
    "submit twice": 2,
    "resubmit": 2,
    "decline": 2,
}
"""How often each is taken, of twenty."""

STEPS: list[Step] = ["create", "confirm", "retrieve"]
FAULT_KINDS: list[FaultKind] = [
    "drop before",
    "drop after",
    "hold before",
    "hold after",
    409,
    429,
    500,
]

Part = tuple[Literal["MCP server", "service", "worker", "PostgreSQL", "connections"], int]
"""What is killed: its kind, and which of that kind."""


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
    users: int
    service: Service
    workers: list[Worker]
    hosts: list[RawClient]
    cases: list[Case]
    database: PostgreSQL | None
    """Without it the ledger is in SQLite."""
    stripe: StripeStandIn | None
    """Without it the gateway is the simulated one."""
    kills: Counter[str] = field(default_factory=Counter)
    decided: int = 0
    repeated: int = 0
    tried_again: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0

    @property
    def faults(self) -> Counter[str]:
        """What has befallen calls of Stripe."""
        laid = self.stripe.faults if self.stripe else []
        return Counter(f"{fault.step}: {fault.kind}" for fault in laid if fault.reached.is_set())

    async def call(self, case: Case, host: int, tool: str, **arguments: Any) -> Answer:
        """Makes a call until it has an answer that says more than that something is down."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    result = await self.hosts[host].call(tool, **arguments)
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
        async def answered() -> Answer | None:
            answer = await self.call(case, host, "process_invoice", invoice_data=case.invoice)
            # A worker may tell that a run has ended shortly before the service has it on record.
            return None if answer.refused and "is in use by" in answer.words else answer

        answer = await eventually(answered, PATIENCE_SECONDS)
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
            if answer.content.get("worker_answers") is not False or not opened(answer):
                case.told.add(approve)
        elif case.course == "race" and "can't be" in answer.words:
            case.told.add(not approve)
        elif case.course == "decline" and "can't be" in answer.words:
            pass  # the same call was made before, without an answer, and the line was declined
        else:
            case.problems.append(f"{tool} refused: {answer.words}")

    async def until(self, case: Case, host: int, state: str) -> None:
        async def reached() -> bool:
            answer = await self.call(case, host, "get_invoice_status", invoice_id=case.name)
            return answer.content.get("state") == state

        await eventually(reached, PATIENCE_SECONDS)


def opened(answer: Answer) -> bool:
    return answer.content["state"] in ("waiting", "paying")


def a_case(chance: random.Random, number: int) -> Case:
    course = chance.choices(list(COURSES), list(COURSES.values()))[0]
    invoice: dict[str, Any] = {
        "id": f"C-{number}",
        "currency": chance.choice(["USD", "EUR"]),
        "customer": "cus_A",
        "payment_method": "pm_visa",
        "lines": [
            {"item": f"Item {number}.{line}", "amount": cents(chance)}
            for line in range(1, chance.randint(1, 6) + 1)
        ],
        "payment_interval_seconds": 0,
    }
    if course == "deadline":
        invoice["approval_timeout_days"] = DEADLINE_SECONDS / 86400
    if course == "decline":  # by Stripe for its card, by the simulated gateway for its last line
        invoice["payment_method"] = "pm_declined"
        invoice["lines"][-1]["amount"] = f"{2 * DECLINE_OVER}.00"
    return Case(course, invoice)


def cents(chance: random.Random) -> str:
    amount = chance.randint(50, 100 * DECLINE_OVER)  # Stripe takes no less than half a dollar
    return f"{amount // 100}.{amount % 100:02}"


async def use(campaign: Campaign, case: Case, chance: random.Random) -> None:
    """What the users of one invoice do; some time passes between their calls."""
    one, other = chance.sample(range(len(campaign.hosts)), 2)
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
            await campaign.until(case, other, "rejected")
            case.told.clear()
            case.invoice["lines"][0]["amount"] = cents(chance)
            await campaign.submit(case, other)
            await campaign.decide(case, one, approve=True)
        case "decline":
            await campaign.decide(case, one, approve=True)
            await campaign.until(case, other, "failed")
            case.told.clear()
            case.invoice["payment_method"] = "pm_visa"
            case.invoice["lines"][-1]["amount"] = cents(chance)
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
            campaign.decided += 1

    await asyncio.gather(*(user() for _ in range(campaign.users)))


async def kill_at_random(campaign: Campaign, chance: random.Random, over: asyncio.Event) -> None:
    """Kills one or more parts at once and starts them again, time after time until it's over."""
    parts: list[Part] = [("service", 0), *(("MCP server", n) for n in range(len(campaign.hosts)))]
    parts += [("worker", n) for n in range(len(campaign.workers))] * 3
    waves: list[list[Part]] = [[("worker", 0)], [("service", 0)], [("MCP server", 0)]]
    if campaign.database:
        parts += [("PostgreSQL", 0), ("connections", 0)]
        waves += [[("PostgreSQL", 0)], [("connections", 0)]]
    recovery = 0.0
    while waves or not over.is_set():  # each kind once, however short it is
        # On a slow machine a start takes long: everything is up for half of the time at least.
        await asyncio.sleep(chance.uniform(0.3, 4) + recovery)
        began = time.monotonic()
        wave = waves.pop() if waves else chance.sample(parts, chance.choice([1, 1, 1, 2, 3]))
        seconds = {part: chance.uniform(0, 2) for part in wave}
        await asyncio.gather(*(kill(campaign, part, s) for part, s in seconds.items()))
        recovery = time.monotonic() - began


async def kill(campaign: Campaign, part: Part, seconds: float) -> None:
    """Kills a part, and starts it again after some seconds."""
    campaign.kills[part[0]] += 1
    match part:
        case "service", _:
            campaign.service.kill()
            await asyncio.sleep(seconds)
            await campaign.service.start()
        case "worker", number:
            worker = campaign.workers[number]
            worker.kill()
            await asyncio.sleep(seconds)
            await eventually(lambda: is_started(worker), 120)
        case "MCP server", number:
            host = campaign.hosts[number]
            await host.kill()
            await asyncio.sleep(seconds)
            await host.start()
        case "PostgreSQL", _:
            assert campaign.database
            campaign.database.kill()
            await asyncio.sleep(seconds)
            await campaign.database.start()
        case "connections", _:
            assert campaign.database
            with suppress(psycopg.OperationalError):  # the server is down too
                await asyncio.to_thread(campaign.database.end_connections)


async def is_started(worker: Worker) -> bool:
    try:
        await worker.start()
    except AssertionError:  # the service or the database is down too, and so the worker has ended
        return False
    return True


async def lay_faults(stripe: StripeStandIn, chance: random.Random, over: asyncio.Event) -> None:
    """Lays faults into the way of calls, and lets a day pass now and then, until it's over."""
    loop = asyncio.get_running_loop()
    while not over.is_set():
        fault = stripe.lay(Fault(chance.choice(STEPS), chance.choice(FAULT_KINDS)))
        # Some are held for longer than the gateway waits, and done after it has tried again.
        loop.call_later(chance.uniform(1, 15), fault.release.set)
        if chance.random() < 0.1:
            stripe.hours += KEY_LIFE_HOURS + 1
        await asyncio.sleep(chance.uniform(0.2, 1))
        if not fault.reached.is_set():  # or few calls would find a fault each, and never succeed
            stripe.faults.remove(fault)
    for fault in stripe.faults:
        fault.release.set()


async def check(campaign: Campaign) -> None:
    """Waits until every workflow is closed, and compares all with what was asked for."""
    client = await connect(campaign.service.address)
    invoices: list[Invoice] = []
    # Killed payments are tried again after their timeout, refused ones after a minute at most.
    bound = 6 * ACTIVITY_SECONDS + len(campaign.cases)
    end = time.monotonic() + bound
    for case in campaign.cases:
        left = max(1.0, end - time.monotonic())
        campaign.problems += await check_case(campaign, client, case, invoices, left)
    lines = [
        (f"{workflow_id(invoice.id)}/line-{number}", line, invoice)
        for invoice in invoices
        for number, line in enumerate(invoice.lines, start=1)
    ]
    ledger = ledger_rows(campaign)
    campaign.rows = len(ledger)
    campaign.problems += differences(
        "the ledger",
        ledger,
        [
            (key, "paid", line.item, str(line.amount), invoice.currency)
            for key, line, invoice in lines
        ],
    )
    if campaign.stripe:
        campaign.problems += differences(
            "Stripe",
            [
                (
                    charge["metadata"]["key"],
                    charge["amount"],
                    charge["currency"],
                    charge["customer"],
                    charge["payment_method"],
                )
                for charge in campaign.stripe.charges
            ],
            [
                (
                    key,
                    minor_units(line.amount, invoice.currency),
                    invoice.currency.lower(),
                    invoice.customer,
                    invoice.payment_method,
                )
                for key, line, invoice in lines
            ],
        )


def ledger_rows(campaign: Campaign) -> list[Hashable]:
    """Every attempt that wasn't declined; in the end each is paid, and none merely begun."""
    query = (
        "SELECT idempotency_key, state, item, amount, currency FROM payments"
        " WHERE state <> 'declined'"
    )
    if campaign.database:
        with psycopg.connect(campaign.database.url()) as connection:
            return [*connection.execute(query)]
    with closing(sqlite3.connect(campaign.workers[0].data / "payments.db")) as ledger:
        return [*ledger.execute(query)]


def differences(where: str, found: list[Hashable], expected: list[Hashable]) -> list[str]:
    """What is there too often, and what is missing."""
    too_many = Counter(found) - Counter(expected)
    missing = Counter(expected) - Counter(found)
    return [
        *(f"{where} has, more often than it should: {row}" for row in too_many.elements()),
        *(f"{where} lacks: {row}" for row in missing.elements()),
    ]


async def check_case(
    campaign: Campaign,
    client: Client,
    case: Case,
    paid: list[Invoice],
    bound: float,
) -> list[str]:
    """The discrepancies of one invoice; puts it into `paid` if it is to be paid."""
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
        paid.append(invoice)
    campaign.outcomes[case.course, status] += 1
    return [f"{case.name} ({case.course}): {problem}" for problem in problems]


async def run(
    directory: Path,
    invoices: int,
    seed: int,
    ledger: str = "sqlite",
    gateway: str = "simulated",
    users: int = USERS,
    hosts: int = HOSTS,
) -> Campaign:
    """Runs a campaign with its data in `directory`; `problems` has the discrepancies found."""
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        database = PostgreSQL() if ledger == "postgresql" else None
        if database:
            stack.callback(database.remove)
            await database.start()
        stripe = stack.enter_context(StripeStandIn()) if gateway == "stripe" else None
        service = Service(directory)
        stack.callback(service.kill)
        await service.start()
        campaign = Campaign(
            seed=seed,
            users=users,
            service=service,
            workers=make_workers(service, directory, database, stripe),
            hosts=[
                RawClient(service.address, log=directory / f"server-{n}.log") for n in range(hosts)
            ],
            cases=[a_case(chance, number) for number in range(1, invoices + 1)],
            database=database,
            stripe=stripe,
        )
        for worker in campaign.workers:
            stack.callback(worker.kill)
            await worker.start()
        progress = asyncio.create_task(print_progress(campaign))
        stack.callback(progress.cancel)
        await use_and_kill(campaign, chance)
        await check(campaign)
        campaign.seconds = time.monotonic() - campaign.began
    return campaign


async def use_and_kill(campaign: Campaign, chance: random.Random) -> None:
    """Lets users at it while everything is killed; in the end all runs again."""
    over = asyncio.Event()
    async with AsyncExitStack() as stack:
        for host in campaign.hosts:
            await stack.enter_async_context(host)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill_at_random(campaign, chance, over))
            if campaign.stripe:
                tasks.create_task(lay_faults(campaign.stripe, chance, over))
            await all_users(campaign)
            over.set()


def make_workers(
    service: Service, directory: Path, database: PostgreSQL | None, stripe: StripeStandIn | None
) -> list[Worker]:
    """One; or two with folders of their own that share a database."""
    settings = {"INVOICE_DECLINE_OVER": str(DECLINE_OVER)}
    if database:
        settings["PAYMENT_LEDGER_URL"] = database.url()
    if stripe:
        settings["PAYMENT_GATEWAY"] = "stripe"
        settings["STRIPE_API_KEY"] = "sk_test_ok"
        settings["STRIPE_API_BASE"] = stripe.url
    workers = []
    for number in range(2 if database else 1):
        data = directory / f"worker-{number}"
        data.mkdir()
        script = PROCESSES / "hesitant_worker.py"
        workers.append(Worker(service.address, data, script, **settings))
    return workers


async def print_progress(campaign: Campaign) -> None:
    while True:
        print(
            f"{time.monotonic() - campaign.began:5.0f} s: {campaign.decided} invoices decided,"
            f" {sum(campaign.outcomes.values())} compared, {campaign.kills.total()} kills,"
            f" {campaign.faults.total()} faults, {campaign.repeated} calls repeated",
            flush=True,
        )
        await asyncio.sleep(PROGRESS_SECONDS)


def table(campaign: Campaign) -> str:
    """What happened, in lines for a person."""
    kills, faults = (
        ", ".join(f"{what} {number}" for what, number in sorted(counted.items())) or "none"
        for counted in (campaign.kills, campaign.faults)
    )
    lines = [f"{'course':<14}{'end':<40}{'invoices':>8}"]
    lines += [
        f"{course:<14}{status:<40}{number:>8}"
        for (course, status), number in sorted(campaign.outcomes.items())
    ]
    lines += [
        "",
        f"kills            {kills}",
        f"faults of Stripe {faults}",
        f"calls repeated   {campaign.repeated}",
        f"payments retried {campaign.tried_again}",
        f"ledger rows      {campaign.rows}",
        f"seconds          {campaign.seconds:.0f}",
        f"discrepancies    {len(campaign.problems)}",
    ]
    return "\n".join(lines + [f"  {problem}" for problem in campaign.problems])


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs invoices while everything is killed.")
    parser.add_argument("--ledger", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--gateway", choices=["simulated", "stripe"], default="simulated")
    parser.add_argument("--invoices", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    if arguments.ledger == "postgresql" and programs() is None:
        parser.error("no PostgreSQL server here: apt-get install postgresql")
    print(" ".join(f"{name}: {value}" for name, value in vars(arguments).items()), flush=True)
    directory = Path(mkdtemp(prefix="campaign-"))
    campaign = asyncio.run(run(directory, **vars(arguments)))
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
