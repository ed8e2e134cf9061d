"""Records the history of every course an invoice can take, for `test_replay.py` to replay.

    uv run tests/record_histories.py           # into tests/histories
    uv run tests/record_histories.py NAME      # into tests/histories/NAME, beside the older ones

It takes a minute or two, and starts its own Temporal Service and workers.
"""

import asyncio
import gzip
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError

from invoice_client import InvoiceClient
from invoices.answers import InvoiceStatus
from invoices.invoice import Invoice, workflow_id
from invoices.refusals import InvoiceError
from invoices.status import AWAITING_APPROVAL
from payments.gateway import GatewayUnavailable, Payment
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from support import (
    Desk,
    Service,
    Worker,
    an_invoice,
    cancelled_with_the_outcome,
    eventually,
    payments_only,
    workflows_only,
)
from workflow import TASK_QUEUE

HISTORIES = Path(__file__).parent / "histories"
LIMIT = "9000.00"
TWO_PEOPLE_OVER = "EUR=1000,*=9999999999"
APPROVER, SECOND = "approver@example.com", "second@example.com"
ONE_ABOVE = [{"item": "Domain", "amount": "9.90"}, {"item": "Server", "amount": "9000.01"}]
DAYS = [{"item": f"Day {number}", "amount": "650.00"} for number in range(1, 501)]
STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
CANCEL_REQUESTED = PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED


class Person(InvoiceClient):
    """A client that decides under this name."""

    def __init__(self, client: Client, name: str) -> None:
        super().__init__(client)
        self._name = name

    @property
    def name(self) -> str:
        return self._name


class Steps:
    """What can happen to an invoice. The invoice's id is the name of its course."""

    def __init__(self, client: Client, data: Path) -> None:
        self.client = client
        self.data = data
        self.asking: list[asyncio.Task[None]] = []

    def handle(self, name: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(workflow_id(name))

    async def submit(self, name: str, *, wait: bool = True, **fields: Any) -> None:
        invoice = Invoice.model_validate(an_invoice(id=name, **fields))
        await InvoiceClient(self.client).submit(invoice)
        if wait:  # otherwise the next step may come before the workflow is ready for it
            await self.until(name, lambda status: status.worker_answers)

    async def start(self, name: str, lines: object) -> None:
        """Submits as the tutorial's client does, without a memo, a currency or pauses."""
        invoice = {"id": name, "lines": lines}
        await self.client.start_workflow(
            "InvoiceWorkflow", invoice, id=workflow_id(name), task_queue=TASK_QUEUE
        )

    async def decide(self, name: str, approve: bool = True, by: str = APPROVER) -> None:
        person = Person(self.client, by)
        await person.decide(name, approve=approve, reason="Hours checked")

    async def until(self, name: str, reached: Callable[[InvoiceStatus], object]) -> None:
        async def has_reached() -> bool:
            return bool(reached(await InvoiceClient(self.client).get_status(name)))

        await eventually(has_reached, 120)

    async def until_payment(self, name: str, state: PendingActivityState.ValueType) -> None:
        async def is_in_state() -> bool:
            description = (await self.handle(name).describe()).raw_description
            return any(payment.state == state for payment in description.pending_activities)

        await eventually(is_in_state)


Course = Callable[[Steps, str], Awaitable[None]]


async def approved_before_a_worker_ran(do: Steps, name: str) -> None:
    await do.submit(name, wait=False)
    await do.decide(name)


async def cancelled_before_a_worker_ran(do: Steps, name: str) -> None:
    await approved_before_a_worker_ran(do, name)
    await do.handle(name).cancel(reason="Ordered twice")


async def approved_after_the_deadline(do: Steps, name: str) -> None:
    await do.submit(name, wait=False, approval_timeout_days=1 / 24 / 3600)
    await do.until(name, lambda status: status.is_past_deadline)
    await do.handle(name).signal("approve_invoice")


async def approved_in_time_but_read_late(do: Steps, name: str) -> None:
    await do.submit(name, wait=False, approval_timeout_days=15 / 24 / 3600)
    await do.decide(name)
    await do.until(name, lambda status: status.is_past_deadline)


def approved(**fields: Any) -> Course:
    async def course(do: Steps, name: str) -> None:
        await do.submit(name, **fields)
        await do.decide(name)

    return course


def rejected(**fields: Any) -> Course:
    async def course(do: Steps, name: str) -> None:
        await do.submit(name, **fields)
        await do.decide(name, approve=False)

    return course


async def timed_out(do: Steps, name: str) -> None:
    await do.submit(name, wait=False, approval_timeout_days=1 / 24 / 3600)


async def approved_then_rejected(do: Steps, name: str) -> None:
    await do.submit(name, payment_interval_seconds=1)
    await do.decide(name)
    await do.handle(name).signal("reject_invoice")


async def tutorials_client(do: Steps, name: str) -> None:
    await do.start(name, [{"item": "Design", "amount": 2000.00, "description": "UI/UX design"}])
    await do.until(name, lambda status: status.worker_answers)
    await do.handle(name).signal("approve_invoice")


async def invalid(do: Steps, name: str) -> None:
    await do.start(name, lines=5)


async def cancelled_while_waiting(do: Steps, name: str) -> None:
    await do.submit(name)
    await do.handle(name).cancel()


async def cancelled_between_payments(do: Steps, name: str) -> None:
    await do.submit(name, payment_interval_seconds=3)
    await do.decide(name)
    await do.until(name, lambda status: status.paid_lines == 1)
    await do.handle(name).cancel()


async def cancelled_during_a_payment(do: Steps, name: str) -> None:
    await do.submit(name)
    with closing(sqlite3.connect(do.data / "payments.db", isolation_level=None)) as ledger:
        ledger.execute("BEGIN IMMEDIATE")  # the payment waits for the ledger
        await do.decide(name)
        await do.until_payment(name, STARTED)
        await do.handle(name).cancel()
        await do.until_payment(name, CANCEL_REQUESTED)


async def gateway_outage(do: Steps, name: str) -> None:
    await do.submit(name)
    (do.data / "gateway-down").touch()
    await do.decide(name)
    await do.until(name, lambda status: status.retry)
    (do.data / "gateway-down").unlink()


async def ledger_away_at_the_start(do: Steps, name: str) -> None:
    ledger, away = do.data / "payments.db", do.data / "away.db"
    ledger.rename(away)
    await do.submit(name)
    await do.until(name, lambda status: status.status == AWAITING_APPROVAL)
    await do.decide(name)
    await do.until(name, lambda status: status.retry)
    away.rename(ledger)


async def paid_line_changed(do: Steps, name: str) -> None:
    with suppress(InvoiceError):  # it fails at its start
        await do.submit(name, wait=False, lines=[{"item": "Domain", "amount": "8.90"}])


async def cancelled_in_an_outage(do: Steps, name: str) -> None:
    await do.submit(name)
    (do.data / "gateway-down").touch()
    await do.decide(name)
    await do.until(name, lambda status: status.retry)
    await do.handle(name).cancel()
    await do.until(name, lambda status: not status.is_open)
    (do.data / "gateway-down").unlink()


def cancelled_as_line_1_was_paid(**fields: Any) -> Course:
    async def course(do: Steps, name: str) -> None:
        gateway = SimulatedGateway(do.data)
        with (
            closing(SQLiteLedger(do.data / "payments.db")) as ledger,
            patch("activities.open_payments", return_value=(gateway, ledger)),
        ):
            await cancelled_with_the_outcome(Desk(do.client), id=name, **fields)

    return course


class LosingAnswers(SimulatedGateway):
    """A gateway that pays, but doesn't say so until `stop` asks."""

    def pay(self, reference: str, payment: Payment) -> None:
        raise GatewayUnavailable("no answer")

    def stop(self, reference: str) -> bool:
        return True


async def cancelled_without_an_answer(do: Steps, name: str) -> None:
    gateway = LosingAnswers(do.data)
    with (
        closing(SQLiteLedger(do.data / "payments.db")) as ledger,
        patch("activities.open_payments", return_value=(gateway, ledger)),
    ):
        async with workflows_only(do.client), payments_only(do.client):
            await do.submit(name)
            await do.decide(name)
            await do.until(name, lambda status: status.retry)
            await do.handle(name).cancel()
            await do.until(name, lambda status: not status.is_open)


async def paid_on_its_day(do: Steps, name: str) -> None:
    pay_on = datetime.now(UTC) + timedelta(seconds=6)
    await do.submit(name, pay_on=pay_on.strftime("%Y-%m-%dT%H:%M:%SZ"))
    await do.decide(name)
    await do.until(name, lambda status: status.state == "scheduled")


async def cancelled_before_its_day(do: Steps, name: str) -> None:
    await do.submit(name, pay_on=f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}")
    await do.decide(name)
    await do.until(name, lambda status: status.state == "scheduled")
    await do.handle(name).cancel()


def approved_by_the_first(second: bool | None = None, **fields: Any) -> Course:
    """Of two people. The second approves, rejects or does nothing."""

    async def course(do: Steps, name: str) -> None:
        await do.submit(name, currency="EUR", **fields)
        await do.decide(name)
        await do.until(name, lambda status: status.first_approval)
        if second is not None:
            await do.decide(name, second, SECOND)

    return course


async def status_asked_before_a_worker_ran(do: Steps, name: str) -> None:
    """A query that waits splits what follows the ledger's answer from it, into the next task."""
    await do.submit(name, wait=False, currency="EUR")
    await do.handle(name).signal("approve_invoice", {"by": APPROVER})

    async def ask() -> None:
        while True:
            with suppress(RPCError):
                await do.handle(name).query("get_status")
                return

    do.asking.append(asyncio.create_task(ask()))


async def two_approved_in_time_but_read_late(do: Steps, name: str) -> None:
    await do.submit(name, wait=False, currency="EUR", approval_timeout_days=15 / 24 / 3600)
    for by in (APPROVER, SECOND):
        await do.handle(name).signal("approve_invoice", {"by": by})
    await do.until(name, lambda status: status.is_past_deadline)


WITHOUT_A_WORKER: dict[str, Course] = {
    "approved-before-a-worker-ran": approved_before_a_worker_ran,
    "cancelled-before-a-worker-ran": cancelled_before_a_worker_ran,
    "approved-after-the-deadline": approved_after_the_deadline,
    "approved-in-time-but-read-late": approved_in_time_but_read_late,
    "two-approved-in-time-but-read-late": two_approved_in_time_but_read_late,
    "status-asked-before-a-worker-ran": status_asked_before_a_worker_ran,
}
# Except for "declined", the first run is declined after its first line, and the second is recorded.
PAID_IN_PART = ["resubmitted", "paid-in-part-then-rejected", "paid-line-changed"]
WITH_A_LIMIT = dict.fromkeys(["declined", *PAID_IN_PART], approved(lines=ONE_ABOVE))
TOGETHER: dict[str, Course] = {
    "completed": approved(),
    "paced": approved(payment_interval_seconds=1),
    "500-lines": approved(lines=DAYS),
    "resubmitted": approved(lines=ONE_ABOVE),
    "paid-in-part-then-rejected": rejected(lines=ONE_ABOVE),
    "paid-line-changed": paid_line_changed,
    "rejected": rejected(),
    "timed-out": timed_out,
    "approved-then-rejected": approved_then_rejected,
    "tutorials-client": tutorials_client,
    "invalid": invalid,
    "cancelled-while-waiting": cancelled_while_waiting,
    "cancelled-between-payments": cancelled_between_payments,
    "paid-on-its-day": paid_on_its_day,
    "cancelled-before-its-day": cancelled_before_its_day,
    "approved-by-two": approved_by_the_first(True),
    "rejected-by-the-second": approved_by_the_first(False),
    "without-a-second": approved_by_the_first(approval_timeout_days=8 / 24 / 3600),
}
ALONE: dict[str, Course] = {
    "cancelled-during-a-payment": cancelled_during_a_payment,
    "gateway-outage": gateway_outage,
    "ledger-away-at-the-start": ledger_away_at_the_start,
    "cancelled-in-an-outage": cancelled_in_an_outage,
}
WITH_WORKERS_OF_THEIR_OWN: dict[str, Course] = {
    "cancelled-as-a-line-was-paid": cancelled_as_line_1_was_paid(),
    "cancelled-as-the-last-line-was-paid": cancelled_as_line_1_was_paid(lines=ONE_ABOVE[:1]),
    "cancelled-without-an-answer": cancelled_without_an_answer,
}
COURSES = WITHOUT_A_WORKER | WITH_A_LIMIT | TOGETHER | ALONE | WITH_WORKERS_OF_THEIR_OWN


async def take_all(do: Steps, service: Service) -> None:
    """Takes an invoice through each course."""

    async def take(courses: dict[str, Course]) -> None:
        await asyncio.gather(*(course(do, name) for name, course in courses.items()))

    async def finish(courses: dict[str, Course]) -> None:
        for name in courses:
            await do.until(name, lambda status: not status.is_open)

    await take(WITHOUT_A_WORKER)
    async with worker(service, LIMIT):
        await take(WITH_A_LIMIT)
        await finish(WITH_A_LIMIT)
    async with worker(service):
        await take(TOGETHER)
        await asyncio.gather(*do.asking)
        await do.decide("status-asked-before-a-worker-ran", by=SECOND)
        await finish(WITHOUT_A_WORKER | TOGETHER)
        for name, course in ALONE.items():
            await take({name: course})
            await finish({name: course})
    for name, course in WITH_WORKERS_OF_THEIR_OWN.items():
        await course(do, name)
    async with worker(service):
        await finish(WITH_WORKERS_OF_THEIR_OWN)


@asynccontextmanager
async def worker(service: Service, limit: str = "") -> AsyncIterator[None]:
    settings = {"INVOICE_DECLINE_OVER": limit, "INVOICE_TWO_PEOPLE_OVER": TWO_PEOPLE_OVER}
    worker = Worker(service.address, service.directory, **settings)
    try:
        await worker.start()
        yield
    finally:
        worker.kill()


def anonymous(value: Any) -> Any:
    """Removes the names of machines, processes and paths, which don't matter for a replay."""
    if isinstance(value, list):
        return [anonymous(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("kind") == "TASK_QUEUE_KIND_STICKY":
        return {**value, "name": "sticky"}
    machine = "identity", "stackTrace", "workerVersion", "binaryChecksum"
    return {key: anonymous(item) for key, item in value.items() if key not in machine}


def write(file: Path, history: dict[str, Any]) -> None:
    text = json.dumps(history, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if len(text) < 100_000:
        file.write_text(text, encoding="utf-8")
    else:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        service = Service(Path(directory))
        try:
            do = Steps(await service.start(), service.directory)
            await take_all(do, service)
            for name in COURSES:
                history = (await do.handle(name).fetch_history()).to_json_dict()
                write(folder / f"{name}.json", anonymous(history))
        finally:
            service.kill()


if __name__ == "__main__":
    with patch("invoice_client.whoami", return_value=APPROVER):
        asyncio.run(main(HISTORIES.joinpath(*sys.argv[1:2])))
