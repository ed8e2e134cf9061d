"""Decisions that a worker reads after the deadline: the Temporal Service's time counts."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowHandle

import activities
import invoice_runs
from invoices.invoice import Invoice
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from support import Desk, Namespace, an_invoice, paid, workflows_only
from worker_here import worker_here

ENDS = ("completed", "rejected", "timed_out", "cancelled")
TIMEOUT = timedelta(seconds=3)
HOUR = timedelta(hours=1)


@dataclass
class Sent:
    """A signal, and the time of its sending relative to the deadline, according to its sender."""

    approve: bool
    clock: timedelta | None = None

    async def to(self, handle: WorkflowHandle[Any, Any], deadline: datetime) -> None:
        signal = "approve_invoice" if self.approve else "reject_invoice"
        if self.clock is None:
            await handle.signal(signal)
        else:
            # All have the same request id, as if somebody who has seen the first forged the others.
            sent_at = (deadline + self.clock).isoformat()
            await handle.signal(signal, {"request": "seen", "sent_at": sent_at})


@dataclass
class Case:
    in_time: list[Sent] = field(default_factory=list)
    late: list[Sent] = field(default_factory=list)
    state: str = "timed_out"


SECOND = timedelta(seconds=1)
CASES = {
    "in time by a clock an hour slow": Case([Sent(True, -HOUR)], state="completed"),
    "in time by a clock an hour fast": Case([Sent(True, HOUR)], state="completed"),
    "in time without a word": Case([Sent(True)], state="completed"),
    "late by a slow clock": Case(late=[Sent(True, -SECOND)]),
    "late without a word": Case(late=[Sent(True)]),
    "late, with a rejection": Case(late=[Sent(True, -SECOND), Sent(False, -2 * SECOND)]),
    "rejected in time, approved late": Case(
        [Sent(False, -SECOND)], [Sent(True, -3 * SECOND)], "rejected"
    ),
    "approved in time, rejected late": Case(
        [Sent(True, HOUR)], [Sent(False, -3 * SECOND)], "completed"
    ),
    "both in time, the first counts": Case([Sent(False, HOUR), Sent(True, -HOUR)], [], "rejected"),
    "nobody": Case(),
}


async def test_a_decision_read_late_counts_if_the_service_received_it_in_time(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    submissions = await asyncio.gather(*(submitted(desk) for _ in CASES))
    invoices = dict(zip(CASES, submissions, strict=True))
    deadlines = {name: await deadline_of(desk, invoices[name]) for name in CASES}

    async def send(part: str) -> None:
        for name, case in CASES.items():
            handle = desk.handle(invoices[name])
            for signal in getattr(case, part):
                await signal.to(handle, deadlines[name])

    await send("in_time")
    assert datetime.now(UTC) < min(deadlines.values())
    await until(max(deadlines.values()))
    await send("late")
    async with worker_here(namespace.address, tmp_path):
        statuses = {name: await desk.until(invoices[name], *ENDS, bound=30) for name in CASES}
    assert {name: status.state for name, status in statuses.items()} == {
        name: case.state for name, case in CASES.items()
    }
    for name, status in statuses.items():
        lines = paid(tmp_path, invoices[name])
        assert len(lines) == (2 if status.state == "completed" else 0)
        if status.state in ("completed", "rejected"):
            assert status.decision
            assert deadlines[name] - TIMEOUT < status.decision.at < deadlines[name]


async def submitted(desk: Desk, **options: Any) -> Invoice:
    """Submits an invoice, without waiting for a worker as `InvoiceClient` does."""
    days = TIMEOUT / timedelta(days=1)
    invoice = Invoice.model_validate(an_invoice(approval_timeout_days=days))
    await desk.start(invoice, **options)
    return invoice


async def deadline_of(desk: Desk, invoice: Invoice) -> datetime:
    deadline = (await desk.client.runs.get_run(invoice.id)).status.deadline
    assert deadline
    return deadline


async def until(moment: datetime) -> None:
    await asyncio.sleep(max(0, (moment - datetime.now(UTC)).total_seconds()) + 0.01)


async def test_after_a_reset_a_decision_counts_by_when_it_was_first_received(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    async with worker_here(namespace.address, tmp_path):
        invoice = await submitted(desk)
        deadline = await deadline_of(desk, invoice)
        await desk.reject(invoice)
        before = await desk.until(invoice, *ENDS)
        assert before.decision
        await until(deadline)
        for _ in range(2):  # the second one is a reset of a reset
            await desk.reset(invoice)
            status = await desk.until(invoice, *ENDS)
            assert status.state == "rejected"
            assert status.decision
            assert status.decision.request == before.decision.request
            assert status.decision.at <= before.decision.at


async def test_after_a_reset_a_kept_decision_is_dated_by_when_it_was_first_received(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(await namespace.connect())
    async with worker_here(namespace.address, tmp_path):
        invoice = await submitted(desk)
        await desk.once(invoice, lambda status: status.paid_earlier_lines is not None)
    deadline = await deadline_of(desk, invoice)
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.5)  # no worker answers
    await desk.approve(invoice)
    kept = (await desk.status(invoice)).kept_decision
    assert kept
    await until(deadline)
    for _ in range(2):  # the second one is a reset of a reset
        await desk.reset(invoice)
        status = await desk.status(invoice)
        assert status.kept_decision == kept
        assert "It was made before the deadline, which has passed." in status.to_text()
        async with worker_here(namespace.address, tmp_path):
            await desk.until(invoice, "completed")


async def test_a_cancellation_counts_while_the_service_is_asked(
    namespace: Namespace, tmp_path: Path, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities, "open_payments", lambda: (SimulatedGateway(tmp_path), ledger))
    desk = Desk(await namespace.connect())
    # The worker learns of a cancellation when it extends its workflow task, at 4/5 of this.
    invoice = await submitted(desk, task_timeout=timedelta(seconds=2))
    handle = desk.handle(invoice)
    await handle.signal("approve_invoice")
    await until(await deadline_of(desk, invoice))

    asked = asyncio.Event()

    @activity.defn
    async def decision_in_time(deadline: str) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with workflows_only(desk.temporal, decision_in_time):
        async with asyncio.timeout(20):
            await asked.wait()
        await handle.cancel()
        assert (await desk.until(invoice, *ENDS)).state == "cancelled"
