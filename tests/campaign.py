"""A fault campaign: many invoices at once, while all processes are killed again and again.

    uv run tests/campaign.py [--ledger sqlite|postgresql] [--gateway simulated|stripe]
                             [--invoices 300] [--seed N]

Users submit and decide invoices through MCP servers. The worker, the Temporal Service and the MCP
servers are killed (SIGKILL) at random moments and started again on the same database and ledger.
With PostgreSQL, two workers share the ledger, and its server and its connections are killed too.
Stripe is the tests' stand-in. It drops, holds and refuses calls, and its clock jumps by a day now
and then. A call that fails because something is down is made again, as a user would do.

At the same time
- invoices are paid on a payment date, and only once two people have approved them;
- invoices are cancelled at the moment at which a line is paid, while the worker runs, ends or dies;
- a worker with another gateway runs for some time, beside the right workers or alone;
- another client starts unreadable runs, requests payments and notices itself, and sends nonsense;
- the web hook of all workers hangs, dribbles, never stops answering, refuses or hangs up;
- an operator looks at the list, the status of single invoices and the books.

At the end, every workflow, its memo, the ledger and Stripe's charges are compared with what was
requested: nothing is lost, paid twice or paid without approval, each invoice is paid through one
gateway, and a cancelled one reports as paid what the ledger has. The audit must agree, no log may
have a secret, and no worker may use too much memory. If something is wrong, the exit code is 1, and
the data folder is kept.

A seed determines the invoices and the planned kills. What these hit also depends on the machine.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import sqlite3
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import AsyncIterator, Collection, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil
import psycopg
from temporalio.api.common.v1 import WorkflowExecution as WorkflowExecutionName
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import ResetActivityRequest
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.service import RPCError

from foreign_client import (
    FORGED,
    POISONS,
    TROUBLES,
    approve_oddly,
    foreign_worker,
    insist,
    make_trouble,
    submit_poisoned,
)
from hanging_hook import MIB, HangingHook
from invoices.approvals import person_of
from invoices.invoice import Invoice, workflow_id
from invoices.status import (
    APPROVAL_TIMEOUT,
    CANCELLED,
    COMPLETED,
    OPEN_STATES,
    REJECTED,
    Decision,
)
from payments.stripe_gateway import minor_units
from postgres import PASSWORD, PostgreSQL, programs
from raw_client import RawClient
from stripe_stand_in import KEY_LIFE_HOURS, Fault, FaultKind, Step, StripeStandIn
from support import PROCESSES, ROOT, Service, Worker, eventually
from temporal_service.dev_server import listens
from temporal_service.payloads import first_data
from worker import NOTICES_AT_ONCE, PAYMENTS_AT_ONCE
from workflow import TASK_QUEUE

DEADLINE_SECONDS = 2
PATIENCE_SECONDS = 600
"""How long a user waits. After timeouts, Temporal waits ever longer to retry a workflow task."""
DECLINE_OVER = 100_000
"""In dollars or euros."""
PROGRESS_SECONDS = 15
ACTIVITY_SECONDS = 30
"""The time after which Temporal retries a payment whose worker was killed."""
MOMENT_SECONDS = 6
"""How long a cancellation waits for its line to be paid."""
TURN_SECONDS = 9
"""How long the right workers run, and then the other one alone, while users wait for both."""
MAX_WORKER_MIB = 500
"""The limit for a worker's memory. About 150 is usual."""
MAX_HANGING_SECONDS = 60
"""The limit for giving up a notice. A worker does after 10 s, but the machine may be busy."""

Course = Literal[
    "approve",
    "reject",
    "deadline",
    "race",
    "submit twice",
    "resubmit",
    "decline",
    "cancel",
    "cancel, resubmit",
    "poisoned",
    "on its day",
    "two people",
    "while notices hang",
]
COURSES: dict[Course, int] = {
    "approve": 5,
    "reject": 2,
    "deadline": 2,
    "race": 2,
    "submit twice": 1,
    "resubmit": 1,
    "decline": 2,
    "cancel": 3,
    "cancel, resubmit": 1,
    "poisoned": 1,
    "on its day": 2,
    "two people": 3,
}
"""How often each is chosen, out of twenty-five. The first invoices have each of them once."""

Moment = Literal["while it runs", "while it ends", "when it's killed"]
MOMENTS: dict[Moment, int] = {"while it runs": 2, "while it ends": 1, "when it's killed": 1}
"""What the worker does when an invoice is cancelled, and how often, out of four."""

TWO_PEOPLE_OVER = "GBP=0,*=9999999999"
"""Only for invoices in pounds, which only the course `two people` has."""
MAX_DAYS = 8 / 86400
"""How long after its submission an invoice is paid on its day, at most."""

KEYS = {"stripe test": "sk_test_ok", "stripe live": "sk_live_ok"}
OTHER_GATEWAY = {"simulated": "stripe test", "stripe test": "stripe live"}
"""The gateway of the other worker, by that of the right ones."""

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

Stretch = Literal["beside", "alone"]
Kind = Literal["MCP server", "service", "worker", "PostgreSQL", "connections"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Part = tuple[Kind, int]
"""What is killed: its kind, and its number among those of that kind."""


@dataclass(frozen=True)
class Scale:
    """How large a campaign is. By default it is the long one."""

    users: int = 12
    hosts: int = 3
    kinds: Collection[Kind] = KINDS
    """What is killed at random."""
    stretches: Sequence[Stretch] = ("beside", "alone")
    """How the worker with the other gateway runs: beside the right workers, or without them."""
    pace: float = 1
    """The factor for the pauses between faults, and for how long the other worker runs."""
    last_seconds: float = 60
    """How long faults continue after all invoices have begun, so that the last ones can end."""
    payments_at_once: int = PAYMENTS_AT_ONCE
    """How many lines a worker pays at once."""
    notices_hang: bool = True
    """Whether more notices than that hang at the beginning."""


LONG = Scale()


class Payer(Worker):
    """A worker. The lock makes sure that only one fault at a time affects it."""

    def __init__(self, gateway: str, address: str, data: Path, **env: str) -> None:
        if gateway in KEYS:
            env |= {"PAYMENT_GATEWAY": "stripe", "STRIPE_API_KEY": KEYS[gateway]}
        super().__init__(address, data, PROCESSES / "hesitant_worker.py", **env)
        self.gateway = gateway
        urls = [f"//{address}", env.get("PAYMENT_LEDGER_URL", "")]
        self.ports = [port for url in urls if (port := urlsplit(url).port)]
        """Those of the service and of the database."""
        self.lock = asyncio.Lock()
        self.is_up = False
        self.deaths: list[str] = []
        """A description of each time that it ended by itself."""

    @property
    def is_free(self) -> bool:
        return not self.lock.locked()

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        if self.is_up and self.process and self.process.poll():
            log = self.log.read_text()[-1000:]
            self.deaths.append(f"a worker ended by itself with {self.process.returncode}: {log}")
        super().kill()
        self.process = None
        self.is_up = False

    async def begin(self) -> None:
        """Starts it once everything that it needs is up."""

        async def is_started() -> bool:
            if not all([await listens(port) for port in self.ports]):
                return False
            try:
                await self.start()
            except AssertionError:  # one of them was killed meanwhile, so it has ended
                return False
            self.is_up = True
            return True

        try:
            await eventually(is_started, 120)
        except TimeoutError:
            raise RuntimeError(f"a worker doesn't start: {self.log.read_text()[-2000:]}") from None


@dataclass(frozen=True)
class Answer:
    """What a tool said."""

    words: str
    refused: bool
    content: dict[str, Any]

    @property
    def says_nothing(self) -> str | None:
        """The uninformative words in it: FastMCP's for an exception, or those of a cut error."""
        nothing = ("Error calling tool", "Failure exceeds size limit")
        return next((words for words in nothing if words in self.words), None)

    @property
    def to_be_repeated(self) -> bool:
        """Whether it tells the user to make the same call again."""
        return self.refused and "ake the same call again" in self.words


@dataclass
class Case:
    """One invoice and what its users asked for and were told."""

    course: Course
    invoice: dict[str, Any]
    """The content of the last submission."""
    told: set[bool] = field(default_factory=set)
    """The decisions that a tool has reported as final."""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.invoice["id"])


@dataclass(frozen=True)
class Paid:
    """What the end of a workflow says about what is paid."""

    invoice: Invoice
    lines: int
    """How many of the first lines are paid."""
    was_cancelled: bool
    gateway: str | None


@dataclass
class Campaign:
    """The running parts, and what happened so far."""

    seed: int
    scale: Scale
    service: Service
    client: Client
    """Another client of the service, as the Web UI is."""
    workers: list[Payer]
    other: Payer
    """The worker with another gateway."""
    hosts: list[RawClient]
    cases: list[Case]
    database: PostgreSQL | None
    """If None, the ledger is in SQLite."""
    stripe: StripeStandIn
    """Either all workers pay through it, or only the other one."""
    hook: HangingHook
    under_way: list[Case] = field(default_factory=list)
    """Those on which users work now."""
    unclosed: list[Case] = field(default_factory=list)
    """The one whose end is waited for after that."""
    kills: Counter[str] = field(default_factory=Counter)
    cancellations: Counter[str] = field(default_factory=Counter)
    together: int = 0
    """Payments whose result reached the workflow together with its cancellation."""
    left_begun: int = 0
    """Lines of cancelled invoices that are still `begun` in the ledger."""
    stretches: Counter[str] = field(default_factory=Counter)
    """How often the other worker was up."""
    providers: Counter[str] = field(default_factory=Counter)
    """Lines paid through each gateway."""
    troubles: Counter[str] = field(default_factory=Counter)
    audits: Counter[str] = field(default_factory=Counter)
    memory: int = 0
    """The most that a worker used, in bytes."""
    all_begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once users have begun all invoices."""
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
        """How often each fault happened to a call to Stripe."""
        laid = self.stripe.faults
        return Counter(f"{fault.step}: {fault.kind}" for fault in laid if fault.reached.is_set())

    @property
    def payers(self) -> list[Payer]:
        return [*self.workers, self.other]

    async def call(self, host: int, tool: str, **arguments: Any) -> Answer:
        """Repeats a call until the answer doesn't say to make it again."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    result = await self.hosts[host].call(tool, **arguments)
                    answer = Answer(
                        words=result["content"][0]["text"],
                        refused=result["isError"],
                        content=result.get("structuredContent") or {},
                    )
                    problem = f"{tool} {arguments}: {answer.says_nothing}"
                    if answer.says_nothing and problem not in self.problems:
                        self.problems.append(problem)
                    if not answer.to_be_repeated:
                        return answer
                except ConnectionError:
                    pass
                self.repeated += 1
                await asyncio.sleep(0.3)

    async def submit(self, case: Case, host: int) -> None:
        async def answered() -> Answer | None:
            answer = await self.call(host, "process_invoice", invoice_data=case.invoice)
            # A worker may report the end of a run shortly before the service has recorded it.
            ended = answer.content.get("outcome") == "already_in_process" and not opened(answer)
            return None if ended or (answer.refused and "is in use by" in answer.words) else answer

        answer = await eventually(answered, PATIENCE_SECONDS)
        if answer.refused:
            case.problems.append(f"submission refused: {answer.words}")

    async def decide(self, case: Case, host: int, approve: bool) -> None:
        tool, arguments = "reject_invoice", {"invoice_id": case.name}
        if approve:  # with the total, as models are told to pass it
            tool = "approve_invoice"
            invoice = Invoice.model_validate(case.invoice)
            arguments["total"] = f"{invoice.total} {invoice.currency}"
        answer = await self.call(host, tool, **arguments)
        # If the id had other content before, the person sees the content and must say yes again.
        if code := re.search("content_code “(.+?)”", answer.words):
            answer = await self.call(host, tool, **arguments, content_code=code[1])
        if not answer.refused:
            # Without a worker the tool says only that it was sent.
            is_first = "approved_first" in str(answer.content.get("outcome"))
            if is_first:  # nobody was told that it is paid
                pass
            elif answer.content.get("worker_answers") is not False or not opened(answer):
                case.told.add(approve)
        elif case.course == "race" and "can't be" in answer.words:
            case.told.add(not approve)
        elif case.course == "decline" and "can't be" in answer.words:
            pass  # the same call was made before, without an answer, and the line was declined
        else:
            case.problems.append(f"{tool} refused: {answer.words}")

    async def until(self, case: Case, host: int, *states: str) -> str:
        async def reached() -> str | None:
            answer = await self.call(host, "get_invoice_status", invoice_id=case.name)
            state = answer.content.get("state")
            return state if state in states else None

        return await eventually(reached, PATIENCE_SECONDS)


def opened(answer: Answer) -> bool:
    return answer.content["state"] in OPEN_STATES


def make_cases(chance: random.Random, number: int) -> list[Case]:
    courses = chance.sample(list(COURSES), len(COURSES))
    courses += chance.choices(list(COURSES), list(COURSES.values()), k=number)
    return [a_case(chance, n, course) for n, course in enumerate(courses[:number], start=1)]


def a_case(chance: random.Random, number: int, course: Course, prefix: str = "C") -> Case:
    invoice: dict[str, Any] = {
        "id": f"{prefix}-{number}",
        "currency": chance.choice(["USD", "EUR"]),
        "customer": "cus_A",
        "payment_method": "pm_visa",
        "lines": [
            {"item": f"Item {number}.{line}", "amount": cents(chance)}
            for line in range(1, chance.randint(1, 6) + 1)
        ],
        "payment_interval_seconds": 0,
    }
    if course == "two people":
        invoice["currency"] = "GBP"
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
    """Does what the users of one invoice do, with pauses between their calls."""
    one, other = chance.sample(range(len(campaign.hosts)), 2)
    pause = chance.uniform(0, 1.5)
    if case.course == "submit twice":
        await asyncio.gather(campaign.submit(case, one), campaign.submit(case, other))
    elif case.course == "poisoned":
        poison = chance.choice(list(POISONS))
        await submit_poisoned(campaign.client, Invoice.model_validate(case.invoice), poison)
        campaign.troubles[f"memo: {poison}"] += 1
    else:
        if case.course == "on its day":
            pay_on = datetime.now(UTC) + timedelta(days=chance.uniform(0, MAX_DAYS))
            case.invoice["pay_on"] = pay_on.strftime("%Y-%m-%dT%H:%M:%SZ")
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
        case "poisoned":
            await campaign.call(one, "get_invoice_status", invoice_id=case.name)
            await approve_oddly(campaign.client, case.name)
        case "cancel":
            await approve_and_cancel(campaign, case, one, chance)
        case "cancel, resubmit":
            await approve_and_cancel(campaign, case, one, chance)
            if await campaign.until(case, other, "cancelled", "completed") == "cancelled":
                case.told.clear()
                await campaign.submit(case, other)
                await campaign.decide(case, one, approve=True)
        case "two people":
            await approve_by_two(campaign, case, chance)
        case "approve" | "submit twice" | "on its day":
            await campaign.decide(case, other, approve=True)


async def approve_by_two(campaign: Campaign, case: Case, chance: random.Random) -> None:
    """One person approves again and again, on all of their hosts, before or after the other."""
    *own, others = range(len(campaign.hosts))  # the last host is another person's
    for host in chance.choice([[*own, others, own[0]], [others, *own]]):
        await campaign.decide(case, host, approve=True)
    case.told.clear()  # the last of them may have been told that its approval was kept
    await campaign.until(case, others, "paying", "completed")


async def approve_and_cancel(
    campaign: Campaign, case: Case, host: int, chance: random.Random
) -> None:
    """Cancels at the moment at which one of the lines is paid."""
    moment = chance.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    line = chance.randint(1, len(case.invoice["lines"]))
    key = f"{workflow_id(case.name)}/line-{line}"
    seconds = chance.uniform(0, 0.3)
    handle = campaign.client.get_workflow_handle(workflow_id(case.name))
    if moment == "while it runs":
        await campaign.decide(case, host, approve=True)
        await has_entry(campaign, key, *chance.choice([["begun", "paid"], ["paid"]]))
        await asyncio.sleep(seconds)
        await insist(handle.cancel)
    else:
        # The last result that a worker reports, and the cancellation, wait for the next worker, and
        # reach the workflow together.
        async with alone(campaign.payers):
            running = [payer for payer in campaign.payers if payer.runs]
            await campaign.decide(case, host, approve=True)
            if moment == "while it ends":
                await has_entry(campaign, key, "begun", "paid")
                ends = [asyncio.create_task(payer.end()) for payer in running]
                await has_entry(campaign, key, "paid")
                await asyncio.sleep(seconds)
            else:
                await has_entry(campaign, key, "paid")
                await asyncio.sleep(seconds / 10)
                ends = []
                for payer in running:
                    payer.kill()
                    campaign.kills["worker"] += 1
            await insist(handle.cancel)
            for payer in running:
                payer.kill()
            await asyncio.gather(*ends)
            for payer in running:
                await payer.begin()
    campaign.cancellations[moment] += 1


@asynccontextmanager
async def alone(payers: Sequence[Payer]) -> AsyncIterator[None]:
    """Protects some workers from other faults. Always pass them in the same order."""
    async with AsyncExitStack() as stack:
        for payer in payers:
            await stack.enter_async_context(payer.lock)
        yield


async def has_entry(
    campaign: Campaign, key: str, *states: str, bound: float = MOMENT_SECONDS
) -> None:
    """Waits until the ledger has a line in one of these states, but at most `bound` seconds."""
    query = f"SELECT state FROM payments WHERE idempotency_key = '{key}'"

    async def ledger_has_entry() -> bool:
        with suppress(sqlite3.OperationalError, psycopg.OperationalError):  # it is down
            return any(row[0] in states for row in await asyncio.to_thread(read, campaign, query))
        return False

    with suppress(TimeoutError):
        await eventually(ledger_has_entry, bound)


async def all_users(campaign: Campaign) -> None:
    queue = iter([case for case in campaign.cases if case.course in COURSES])

    async def user() -> None:
        for case in queue:
            campaign.under_way.append(case)
            try:
                await use(campaign, case, random.Random(f"{campaign.seed}/{case.name}"))
            except (TimeoutError, KeyError) as error:
                case.problems.append(f"the course was not finished: {error!r}")
            campaign.under_way.remove(case)
            campaign.decided += 1
        campaign.all_begun.set()

    await asyncio.gather(*(user() for _ in range(campaign.scale.users)))


async def pause(seconds: float, over: asyncio.Event) -> None:
    """Waits for some seconds, or until `over` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)


async def kill_at_random(campaign: Campaign, chance: random.Random, over: asyncio.Event) -> None:
    """Again and again, kills one or more parts at once and starts them again."""
    parts: list[Part] = [("service", 0), *(("MCP server", n) for n in range(len(campaign.hosts)))]
    parts += [("worker", n) for n in range(len(campaign.workers))] * 3
    if campaign.database:
        parts += [("PostgreSQL", 0), ("connections", 0)]
    parts = [part for part in parts if part[0] in campaign.scale.kinds]
    first: list[Part] = [(kind, 0) for kind in campaign.scale.kinds]
    waves = [[part] for part in first if part in parts]
    recovery = 0.0
    while waves or not over.is_set():  # each kind once, even in a short campaign
        # Starts take long on a slow machine, so leave everything running for as long as they took.
        await asyncio.sleep(chance.uniform(0.3, 4) * campaign.scale.pace + recovery)
        began = time.monotonic()
        free = [part for part in parts if part[0] != "worker" or campaign.workers[part[1]].is_free]
        wave = waves.pop() if waves else chance.sample(free, chance.choice([1, 1, 1, 2, 3]))
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
            async with worker.lock:
                worker.kill()
                await asyncio.sleep(seconds)
                await worker.begin()
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


async def change_gateways(campaign: Campaign, chance: random.Random, over: asyncio.Event) -> None:
    """Runs the other worker now and then, as if it was started with wrong settings."""
    stretches = list(campaign.scale.stretches)  # each once, even in a short campaign
    while stretches or not over.is_set():
        await asyncio.sleep(chance.uniform(0, 3) * campaign.scale.pace)
        stretch = stretches.pop() if stretches else chance.choice(campaign.scale.stretches)
        await run_the_other(campaign, stretch, chance.uniform(3, 9), over)


async def run_the_other(
    campaign: Campaign, stretch: Stretch, seconds: float, over: asyncio.Event
) -> None:
    """Runs the worker with the other gateway for some seconds, or until `over` is set."""
    away = campaign.workers if stretch == "alone" else []
    campaign.stretches[stretch] += 1
    async with alone([*away, campaign.other]):
        for worker in away:
            worker.kill()
            campaign.kills["worker"] += 1
        await campaign.other.begin()
        await try_again(campaign, campaign.under_way)
        await pause(seconds * campaign.scale.pace, over)
        campaign.other.kill()
        for worker in away:
            await worker.begin()
        await try_again(campaign, campaign.under_way)


async def try_again(campaign: Campaign, cases: Sequence[Case]) -> None:
    """Has payments tried again now, as an operator does once the right worker is back.

    Their next attempt may be a minute away, and would meet the wrong worker again.
    """
    for case in list(cases):
        with suppress(RPCError):  # no activity is pending
            await campaign.client.workflow_service.reset_activity(
                ResetActivityRequest(
                    namespace=campaign.client.namespace,
                    execution=WorkflowExecutionName(workflow_id=workflow_id(case.name)),
                    match_all=True,
                ),
                timeout=timedelta(seconds=5),
            )


async def poison(campaign: Campaign) -> None:
    """Starts a run with each kind of odd memo before any worker runs."""
    for number, kind in enumerate(POISONS, start=1):
        invoice = {**campaign.cases[0].invoice, "id": f"F-{number}", "approval_timeout_days": 5}
        await submit_poisoned(campaign.client, Invoice.model_validate(invoice), kind)
        campaign.troubles[f"memo: {kind}"] += 1


async def pay_while_notices_hang(campaign: Campaign) -> None:
    """Checks that a line is paid while more notices wait than a worker pays lines at once.

    Tries up to three times, because a busy machine may take so long that notices are given up.
    """
    hook = campaign.hook
    number = campaign.scale.payments_at_once + 3
    cases = [
        a_case(random.Random(n), n, "while notices hang", prefix="H") for n in range(1, number + 1)
    ]
    for case in cases:
        await campaign.client.start_workflow(
            "InvoiceWorkflow", case.invoice, id=workflow_id(case.name), task_queue=TASK_QUEUE
        )

    async def all_slots_are_taken() -> bool:
        return hook.hanging >= min(number, NOTICES_AT_ONCE) and hook.seconds_unchanged > 0.5

    for case in cases[:3]:
        await eventually(all_slots_are_taken, 60)
        given_up = hook.given_up
        campaign.cases.append(case)
        await approve_oddly(campaign.client, case.name)
        await has_entry(campaign, f"{workflow_id(case.name)}/line-1", "paid", bound=60)
        if hook.given_up == given_up:
            break
    else:
        campaign.problems.append(f"no line was paid before one of {hook.most} notices was given up")


async def be_foreign(campaign: Campaign, chance: random.Random, over: asyncio.Event) -> None:
    """Sends what another client may send, until `over` is set."""
    names = [case.name for case in campaign.cases]
    troubles = chance.sample(TROUBLES, len(TROUBLES))
    while troubles or not over.is_set():
        trouble = troubles.pop() if troubles else chance.choice(TROUBLES)
        number = campaign.troubles.total() + 1
        await make_trouble(campaign.client, trouble, number, names, chance)
        campaign.troubles[trouble] += 1
        await asyncio.sleep(chance.uniform(0.2, 3) * campaign.scale.pace)


async def watch(campaign: Campaign, chance: random.Random, over: asyncio.Event) -> None:
    """Looks at everything as an operator does, until `over` is set."""
    while not over.is_set():
        host = chance.randrange(len(campaign.hosts))
        state = chance.choice(["all", "waiting", "scheduled", "paying", "failed"])
        listed = await campaign.call(host, "list_invoices", status=state)
        if listed.refused:
            campaign.problems.append(f"list_invoices refused: {listed.words}")
        for name in (
            chance.choice(campaign.cases).name,
            f"F-{chance.randint(1, campaign.troubles.total() + 1)}",
        ):
            await campaign.call(host, "get_invoice_status", invoice_id=name)
        code, errors = await audited(campaign)
        campaign.audits["while all runs"] += 1
        if "Traceback" in errors or code not in (0, 1, 2):
            campaign.problems.append(f"the audit ended with {code}: {errors[-1000:]}")
        await pause(chance.uniform(3, 15), over)


async def audited(campaign: Campaign) -> tuple[int | None, str]:
    """The exit code of `audit.py`, and what it writes to standard error."""
    worker = campaign.workers[0]
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, str(ROOT / "audit.py")],
        env=worker.environment,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def measure(campaign: Campaign) -> None:
    """Measures the workers' memory, without end."""
    while True:
        for payer in campaign.payers:
            if payer.process:
                with suppress(psutil.NoSuchProcess):
                    memory = psutil.Process(payer.process.pid).memory_info().rss
                    campaign.memory = max(campaign.memory, memory)
        await asyncio.sleep(0.3)


async def lay_faults(campaign: Campaign, chance: random.Random, over: asyncio.Event) -> None:
    """Makes calls to Stripe fail, and lets a day pass now and then, until `over` is set."""
    stripe = campaign.stripe
    loop = asyncio.get_running_loop()
    stripe.lay(Fault("create", 500))  # for the first payment, even in a short campaign
    while not over.is_set():
        fault = stripe.lay(Fault(chance.choice(STEPS), chance.choice(FAULT_KINDS)))
        # Some are held for longer than the gateway waits, and take effect after its next attempt.
        loop.call_later(chance.uniform(1, 15), fault.release.set)
        if chance.random() < 0.1:
            stripe.hours += KEY_LIFE_HOURS + 1
        await asyncio.sleep(chance.uniform(0.2, 1))
        if not fault.reached.is_set():  # or else rare calls would never succeed
            stripe.faults.remove(fault)
        await asyncio.sleep(chance.uniform(0, 1))  # so that one payment alone can succeed too
    for fault in stripe.faults:
        fault.release.set()


async def check(campaign: Campaign) -> None:
    """Waits until every workflow is closed, and compares everything with what was requested."""
    await pay_the_rest(campaign)
    paid: list[Paid] = []
    for case in campaign.cases:
        campaign.problems += await check_case(campaign, case, paid)
    ledger = read(
        campaign,
        "SELECT idempotency_key, state, item, amount, currency, provider FROM payments"
        " WHERE state <> 'declined'",
    )
    lines = [
        (f"{workflow_id(run.invoice.id)}/line-{number}", line, run)
        for run in paid
        for number, line in enumerate(run.invoice.lines[: run.lines], start=1)
    ]
    # In a cancelled invoice, the line after the paid ones may have been left begun.
    left = {
        f"{workflow_id(run.invoice.id)}/line-{run.lines + 1}" for run in paid if run.was_cancelled
    }
    rows = [row for row in ledger if not (row[1] == "begun" and row[0] in left)]
    campaign.left_begun = len(ledger) - len(rows)
    campaign.rows = len(rows)
    campaign.problems += differences(
        "the ledger",
        [row[:5] for row in rows],
        [
            (key, "paid", line.item, str(line.amount), run.invoice.currency)
            for key, line, run in lines
        ],
    )
    campaign.problems += check_gateways(campaign, ledger, paid)
    providers = {row[0]: row[5] for row in ledger}
    campaign.problems += differences(
        "Stripe",
        [
            (
                charge["metadata"]["key"],
                charge["amount"],
                charge["currency"],
                charge["customer"],
                charge["payment_method"],
                "stripe live" if charge["livemode"] else "stripe test",
            )
            for charge in campaign.stripe.charges
        ],
        [
            (
                key,
                minor_units(line.amount, run.invoice.currency),
                run.invoice.currency.lower(),
                run.invoice.customer,
                run.invoice.payment_method,
                providers[key],
            )
            for key, line, run in lines
            if providers.get(key) in KEYS
        ],
    )
    code, errors = await audited(campaign)
    campaign.audits["in the end"] += 1
    if code != 0:
        problems = errors.splitlines()[:-1] or [errors]  # the last line is the summary
        campaign.problems += [f"the audit: {problem}" for problem in problems]
    campaign.problems += check_hook(campaign)
    campaign.problems += check_logs(campaign)
    campaign.problems += [death for payer in campaign.payers for death in payer.deaths]
    if campaign.memory > MAX_WORKER_MIB * MIB:
        campaign.problems.append(f"a worker took {campaign.memory // MIB} MiB of memory")


async def pay_the_rest(campaign: Campaign) -> None:
    """Runs the right workers, and then if need be the other one, until each workflow is closed."""
    left = campaign.cases
    for payers in (campaign.workers, [campaign.other]):
        if not left:
            break
        for payer in payers:
            if not payer.runs:
                payer.kill()
                await payer.begin()
        # Killed payments are retried after their timeout, refused ones after at most a minute.
        end = time.monotonic() + 6 * ACTIVITY_SECONDS + len(campaign.cases)
        waiting, left = left, []
        for case in waiting:
            campaign.unclosed = [case]
            await try_again(campaign, [case])
            seconds = max(1, end - time.monotonic())
            if not await is_closed(campaign, case, payers[0].gateway, seconds):
                left.append(case)  # those that are open even in the end are reported later
        # Anything paid later would be missing in the comparison.
        ends = await asyncio.gather(*(payer.end() for payer in payers), return_exceptions=True)
        campaign.problems += [f"a worker was asked to end: {end}" for end in ends if end != 0]


async def is_closed(campaign: Campaign, case: Case, gateway: str, bound: float) -> bool:
    """Waits until an invoice is closed, or is known to belong to another gateway (False)."""

    async def end() -> str | None:
        belongs_to = await gateway_of(campaign, case)
        return belongs_to if belongs_to not in ("unknown", gateway) else None

    with suppress(TimeoutError):
        return await eventually(end, bound) == "closed"
    return False


async def gateway_of(campaign: Campaign, case: Case) -> str:
    """The gateway to which an open invoice is bound, `closed` or `unknown`."""
    handle = campaign.client.get_workflow_handle(workflow_id(case.name))
    with suppress(RPCError):  # the service is busy
        if (await handle.describe()).status != WorkflowExecutionStatus.RUNNING:
            return "closed"
        history = [event async for event in handle.fetch_history_events()]
        return bound_to(history) or "unknown"
    return "unknown"


def bound_to(history: list[HistoryEvent]) -> str | None:
    """The gateway to which a run is bound, according to its history."""
    gateway = None
    for event in history:
        marker = event.marker_recorded_event_attributes.details.get("result")
        for result in [marker, event.activity_task_completed_event_attributes.result]:
            with suppress(ValueError, IndexError):
                answer = json.loads(result.payloads[0].data) if result else None
                gateway = answer.get("gateway", gateway) if isinstance(answer, dict) else gateway
    return gateway


def check_gateways(
    campaign: Campaign, ledger: list[tuple[Any, ...]], paid: list[Paid]
) -> list[str]:
    """Invoices that were paid through another gateway than the one they are bound to."""
    problems = []
    campaign.providers = Counter(row[5] for row in ledger if row[1] == "paid")
    for run in paid:
        prefix = f"{workflow_id(run.invoice.id)}/"
        providers = {row[5] for row in ledger if row[0].startswith(prefix)}
        if len(providers) > 1 or (run.gateway and providers - {run.gateway}):
            problems.append(
                f"{run.invoice.id}: belongs to {run.gateway}, and was paid through {providers}"
            )
    return problems


def check_hook(campaign: Campaign) -> list[str]:
    hook = campaign.hook
    forged = {str(notice) for notice in hook.posted if FORGED in str(notice)}
    problems = [f"a forged notice: {notice}" for notice in forged]
    if not hook.posted:
        problems.append("no notice was posted")
    if hook.longest > MAX_HANGING_SECONDS:
        problems.append(f"a notice hung for {hook.longest:.0f} s")
    return problems


def check_logs(campaign: Campaign) -> list[str]:
    secrets = [campaign.hook.secret, PASSWORD, *KEYS.values()]
    return [
        f"{log.name} has a secret: {secret}"
        for log in campaign.service.directory.glob("**/*.log")
        for secret in secrets
        if secret.encode() in log.read_bytes()
    ]


def read(campaign: Campaign, query: str) -> list[tuple[Any, ...]]:
    """Reads rows of the ledger."""
    if campaign.database:
        with psycopg.connect(campaign.database.url()) as connection:
            return [*connection.execute(query)]
    with closing(sqlite3.connect(campaign.workers[0].data / "payments.db")) as ledger:
        return [*ledger.execute(query)]


def differences(where: str, found: Sequence[Hashable], expected: Sequence[Hashable]) -> list[str]:
    """Describes which rows are there too often, and which are missing."""
    too_many = Counter(found) - Counter(expected)
    missing = Counter(expected) - Counter(found)
    return [
        *(f"{where} has, more often than it should: {row}" for row in too_many.elements()),
        *(f"{where} lacks: {row}" for row in missing.elements()),
    ]


async def check_case(campaign: Campaign, case: Case, paid: list[Paid]) -> list[str]:
    """Returns the discrepancies of one invoice. Adds it to `paid` if it was approved."""
    handle = campaign.client.get_workflow_handle(workflow_id(case.name))
    problems = list(case.problems)
    try:
        execution = await handle.describe()
        history = [event async for event in handle.fetch_history_events()]
    except RPCError as error:
        return [*problems, f"{case.name} ({case.course}): {error}"]
    invoice = Invoice.model_validate(case.invoice)
    memo = await execution.memo()
    status, decision = memo.get("status"), memo.get("decision")
    approved = decision["approved"] if decision else None
    if approved:
        lines = len(invoice.lines)
        was_cancelled = execution.status == WorkflowExecutionStatus.CANCELED
        if was_cancelled or execution.status == WorkflowExecutionStatus.RUNNING:
            lines = memo.get("paid_lines", 0)
        paid.append(Paid(invoice, lines, was_cancelled, bound_to(history)))
    if execution.status == WorkflowExecutionStatus.RUNNING:
        return [*problems, f"{case.name} ({case.course}): still open: {status!r}"]
    problems += check_history(campaign, history)
    problems += check_approvals(case, memo, history)
    expected: dict[Course, list[bool | None]] = {
        "reject": [False],
        "deadline": [None],
        "race": [True, False],
        # If both are sent while no worker runs, the cancellation counts first.
        "cancel": [True, None],
    }
    if approved not in expected.get(case.course, [True]):
        problems.append(f"the decision is {decision}")
    if case.told - {approved}:
        problems.append(f"a user was told that {case.told} stands, but it is {approved}")
    if memo.get("digest") != invoice.digest:
        problems.append("the content is not what was submitted")
    if case.course == "cancel" and execution.status == WorkflowExecutionStatus.CANCELED:
        if status != CANCELLED:
            problems.append(f"the status of a cancelled run is {status!r}")
        amount = sum((line.amount for line in invoice.lines[: memo["paid_lines"]]), Decimal(0))
        if Decimal(memo["paid_amount"]) != amount:
            problems.append(f"{memo['paid_lines']} lines are {memo['paid_amount']}")
    else:
        problems += check_end(execution, status, approved)
    campaign.outcomes[case.course, str(status)] += 1
    return [f"{case.name} ({case.course}): {problem}" for problem in problems]


def check_approvals(case: Case, memo: Mapping[str, Any], history: list[HistoryEvent]) -> list[str]:
    """Finds payments before the payment date, or before a second person's approval."""
    payments = [
        event.event_time.ToDatetime(UTC)
        for event in history
        if event.activity_task_scheduled_event_attributes.activity_type.name == "process_payment"
    ]
    problems: list[str] = []
    if not payments:  # which is reported elsewhere
        return problems
    if case.course == "on its day" and min(payments) < datetime.fromisoformat(
        case.invoice["pay_on"]
    ):
        problems.append(f"paid before its day, {case.invoice['pay_on']}: {min(payments)}")
    if case.course == "two people":
        first, second = memo.get("first_approval"), memo["decision"]
        people = {str(one["by"]).partition("@")[0] for one in (first, second) if one}
        if len(people) != 2:
            problems.append(f"approved by {people}, first {first}, then {second}")
        approvals: dict[str, datetime] = {}
        for event in history:
            signal = event.workflow_execution_signaled_event_attributes
            if signal.signal_name == "approve_invoice":
                at = event.event_time.ToDatetime(UTC)
                person = person_of(Decision.from_signal(True, first_data(signal.input), at).by)
                approvals.setdefault(person, at)
        approvals.pop("", None)  # of other clients
        if len(approvals) < 2 or min(payments) < max(approvals.values()):
            problems.append(f"paid on {min(payments)}, approved {approvals}")
    return problems


def check_end(execution: WorkflowExecution, status: object, approved: bool | None) -> list[str]:
    problems = []
    if status != {True: COMPLETED, False: REJECTED, None: APPROVAL_TIMEOUT}[approved]:
        problems.append(f"the status is {status!r} after the decision {approved}")
    if execution.status != WorkflowExecutionStatus.COMPLETED:
        problems.append(f"the workflow is {execution.status}")
    return problems


def check_history(campaign: Campaign, history: list[HistoryEvent]) -> list[str]:
    """Finds payments begun after a cancellation, and secrets."""
    problems = []
    secrets = [campaign.hook.secret, PASSWORD, *KEYS.values()]
    is_cancelled = has_completed = cancelled_now = False
    for event in history:
        match event.WhichOneof("attributes"):
            case "activity_task_started_event_attributes":
                attempt = event.activity_task_started_event_attributes.attempt
                campaign.tried_again += attempt > 1
            case "activity_task_scheduled_event_attributes" if is_cancelled:
                scheduled = event.activity_task_scheduled_event_attributes
                if scheduled.activity_type.name == "process_payment":
                    problems.append(f"{scheduled.activity_id} was begun after the cancellation")
            case "activity_task_completed_event_attributes":
                has_completed = True
            case "workflow_execution_cancel_requested_event_attributes":
                is_cancelled = cancelled_now = True
            case "workflow_task_completed_event_attributes":
                has_completed = cancelled_now = False
        if has_completed and cancelled_now:
            campaign.together += 1
            has_completed = cancelled_now = False
        if any(secret.encode() in event.SerializeToString() for secret in secrets):
            problems.append(f"its history has a secret in event {event.event_id}")
    return problems


async def run(
    directory: Path,
    invoices: int,
    seed: int,
    ledger: str = "sqlite",
    gateway: str = "simulated",
    scale: Scale = LONG,
) -> Campaign:
    """Runs a campaign with its data in `directory`. `problems` has the discrepancies found.

    No more faults begin once all users are done, or `last_seconds` after all invoices have begun.
    """
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        database = PostgreSQL() if ledger == "postgresql" else None
        if database:
            stack.callback(database.remove)
            await database.start()
        stripe = stack.enter_context(StripeStandIn())
        hook = await stack.enter_async_context(HangingHook(random.Random(f"{seed}/hook")))
        service = Service(directory)
        stack.callback(service.kill)
        client = await service.start()
        workers, other = make_workers(
            service, directory, database, stripe, hook, gateway, scale.payments_at_once
        )
        campaign = Campaign(
            seed=seed,
            scale=scale,
            service=service,
            client=client,
            workers=workers,
            other=other,
            hosts=make_hosts(service, directory, scale.hosts),
            cases=make_cases(chance, invoices),
            database=database,
            stripe=stripe,
            hook=hook,
        )
        for worker in campaign.payers:
            stack.callback(worker.kill)
        await poison(campaign)
        await workers[0].begin()
        if scale.notices_hang:
            await pay_while_notices_hang(campaign)
        hook.only_hangs = False
        for worker in workers[1:]:
            await worker.begin()
        for side in (print_progress(campaign), measure(campaign)):
            stack.callback(asyncio.create_task(side).cancel)
        async with foreign_worker(client):
            await use_and_kill(campaign)
            await check(campaign)
        campaign.seconds = time.monotonic() - campaign.began
    return campaign


async def use_and_kill(campaign: Campaign) -> None:
    """Runs the users and the faults until the users are done. At the end everything is up."""
    over, done = asyncio.Event(), asyncio.Event()
    async with AsyncExitStack() as stack:
        for host in campaign.hosts:
            await stack.enter_async_context(host)
        async with asyncio.TaskGroup() as tasks:
            users = tasks.create_task(all_users(campaign))
            users.add_done_callback(lambda _: over.set())
            users.add_done_callback(lambda _: done.set())
            async with asyncio.TaskGroup() as faults:
                for fault in (kill_at_random, lay_faults, change_gateways, be_foreign, watch):
                    # With its own random numbers, so that the plan doesn't depend on the order.
                    own = random.Random(f"{campaign.seed}/{fault.__name__}")
                    faults.create_task(fault(campaign, own, over))
                await campaign.all_begun.wait()
                await pause(campaign.scale.last_seconds, over)
                over.set()
            while not done.is_set():
                await pause(TURN_SECONDS * campaign.scale.pace, done)
                # Some users may wait for invoices that belong to the other gateway. Beside the
                # right workers, that would get only some of the attempts, which are a minute apart.
                if campaign.other.gateway in [
                    await gateway_of(campaign, case) for case in list(campaign.under_way)
                ]:
                    await run_the_other(campaign, "alone", TURN_SECONDS, done)


def make_hosts(service: Service, directory: Path, number: int) -> list[RawClient]:
    """The last one is another person's."""
    scripts = [*[ROOT / "invoice_server.py"] * (number - 1), PROCESSES / "other_person.py"]
    return [
        RawClient(
            service.address,
            script=script,
            log=directory / f"server-{n}.log",
            PYTHONPATH=str(ROOT),
        )
        for n, script in enumerate(scripts)
    ]


def make_workers(
    service: Service,
    directory: Path,
    database: PostgreSQL | None,
    stripe: StripeStandIn,
    hook: HangingHook,
    gateway: str,
    payments_at_once: int,
) -> tuple[list[Payer], Payer]:
    """One worker, or two that share a database; and the worker with the other gateway.

    That one has the folder of the first worker, as after a restart with wrong settings.
    """
    settings = {
        "INVOICE_DECLINE_OVER": str(DECLINE_OVER),
        "INVOICE_NOTIFY_URL": hook.url,
        "INVOICE_TWO_PEOPLE_OVER": TWO_PEOPLE_OVER,
        "STRIPE_API_BASE": stripe.url,
        "PAYMENTS_AT_ONCE": str(payments_at_once),
    }
    if database:
        settings["PAYMENT_LEDGER_URL"] = database.url()
    right = "stripe test" if gateway == "stripe" else gateway
    folders = [directory / f"worker-{number}" for number in range(2 if database else 1)]
    for folder in folders:
        folder.mkdir()
    workers = [Payer(right, service.address, folder, **settings) for folder in folders]
    return workers, Payer(OTHER_GATEWAY[right], service.address, folders[0], **settings)


async def print_progress(campaign: Campaign) -> None:
    while True:
        waits = [f"{case.name} {case.course}" for case in campaign.under_way or campaign.unclosed]
        print(
            f"{time.monotonic() - campaign.began:5.0f} s: {campaign.decided} invoices decided,"
            f" {sum(campaign.outcomes.values())} compared, {campaign.kills.total()} kills,"
            f" {campaign.faults.total()} faults, {campaign.repeated} calls repeated"
            f"; waits for: {', '.join(waits) or 'none'}",
            flush=True,
        )
        await asyncio.sleep(PROGRESS_SECONDS)


def table(campaign: Campaign) -> str:
    """Describes what happened."""

    def listed(counted: Counter[str]) -> str:
        return ", ".join(f"{what} {number}" for what, number in sorted(counted.items())) or "none"

    hook = campaign.hook
    lines = [f"{'course':<20}{'end':<40}{'invoices':>8}"]
    lines += [
        f"{course:<20}{status:<40}{number:>8}"
        for (course, status), number in sorted(campaign.outcomes.items())
    ]
    lines += [
        "",
        f"kills            {listed(campaign.kills)}",
        f"cancelled        {listed(campaign.cancellations)};"
        f" together with a payment's end {campaign.together},"
        f" lines left begun {campaign.left_begun}",
        f"other gateway    {listed(campaign.stretches)}",
        f"lines paid by    {listed(campaign.providers)}",
        f"other clients    {listed(campaign.troubles)}",
        f"faults of Stripe {listed(campaign.faults)}",
        f"the hook         {listed(hook.conduct)}; at once {hook.most}",
        f"audits           {listed(campaign.audits)}",
        f"a worker's MiB   {campaign.memory // MIB}",
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
