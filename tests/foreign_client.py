"""What another client of the Temporal Service starts and sends, by mistake or on purpose."""

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from invoices.invoice import Invoice, workflow_id
from invoices.status import RunProgress
from support import eventually
from temporal_service.payloads import json_payload
from workflow import TASK_QUEUE

FOREIGN_QUEUE = "foreign-task-queue"
FORGED = "forged by another client"
LINE = {"item": FORGED, "amount": "666.00", "customer": "cus_A", "payment_method": "pm_visa"}
UNREADABLE = Payload(metadata={"encoding": b"\xff\xfe"}, data=b"\xff")
BROKEN = Payload(metadata={"encoding": b"json/plain"}, data=b'\xff{"')


def _wrong_types(invoice: Invoice) -> dict[str, Any]:
    return {
        **RunProgress.of(invoice).to_memo(),
        **{"status": 5, "state": [], "paid_lines": "many", "total": "NaN", "digest": None},
        **{"line_count": -1, "submitted_at": 1e99, "approval_timeout_days": "inf", "ledger": 7},
    }


def _forged(invoice: Invoice) -> dict[str, Any]:
    """Claims that all but a dollar was paid earlier, and that a person has approved."""
    progress = RunProgress.of(invoice).to_memo()
    decision = {"approved": True, "at": "2026-01-01T00:00:00Z", "by": FORGED}
    claims = {
        **{"state": "paying", "status": "Processing payments", "decision": decision},
        **{"paid_lines": len(invoice.lines), "paid_amount": str(invoice.total)},
        **{"paid_earlier_lines": 1, "paid_earlier_amount": str(invoice.total - 1)},
    }
    return progress | claims


POISONS: dict[str, Callable[[Invoice], dict[str, Any]]] = {
    "unknown encoding": lambda i: dict.fromkeys([*RunProgress.of(i).to_memo(), "x"], UNREADABLE),
    "broken JSON": lambda i: dict.fromkeys([*RunProgress.of(i).to_memo(), "x"], BROKEN),
    "wrong types": _wrong_types,
    "forged": _forged,
}
"""Memos for runs that are otherwise valid invoices."""

TROUBLES = [
    "no invoice",
    "payment by another workflow",
    "payment on its own",
    "unknown workflow type",
    "forged notice",
    "odd notice",
    "odd signal",
]


@workflow.defn(sandboxed=False)
class ForeignWorkflow:
    """Has our worker pay a line, from a workflow on its own task queue."""

    @workflow.run
    async def run(self) -> str:
        paid: str = await workflow.execute_activity(
            "process_payment",
            LINE,
            task_queue=TASK_QUEUE,
            activity_id="line-1",
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_attempts=3),
        )
        return paid


def foreign_worker(client: Client) -> Worker:
    return Worker(client, task_queue=FOREIGN_QUEUE, workflows=[ForeignWorkflow])


async def insist(call: Callable[[], Awaitable[object]], bound: float = 120) -> bool:
    """Repeats a call until the service answers. False if the call's target doesn't exist."""

    async def answered() -> str | None:
        try:
            await call()
        except WorkflowAlreadyStartedError:  # by an earlier call, whose answer was lost
            pass
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return "unknown"
            if error.status not in _UNAVAILABLE:
                raise
            return None
        return "done"

    return await eventually(answered, bound) == "done"


_UNAVAILABLE = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.UNKNOWN,
    RPCStatusCode.INTERNAL,
    RPCStatusCode.ABORTED,
)


async def submit_poisoned(client: Client, invoice: Invoice, poison: str) -> None:
    """Starts the workflow of an invoice with an untrustworthy memo."""
    await insist(
        lambda: client.start_workflow(
            "InvoiceWorkflow",
            json_payload(invoice.to_json()),
            id=workflow_id(invoice.id),
            task_queue=TASK_QUEUE,
            memo=POISONS[poison](invoice),
            static_summary=f"{FORGED} \u202e",
        )
    )


async def approve_oddly(client: Client, invoice_id: str) -> None:
    handle = client.get_workflow_handle(workflow_id(invoice_id))
    await insist(lambda: handle.signal("approve_invoice", RawValue(UNREADABLE)))


async def make_trouble(
    client: Client, trouble: str, number: int, invoice_ids: list[str], chance: random.Random
) -> None:
    """Does one of `TROUBLES`, which must not pay, report anything or stop other invoices."""
    name = f"invoice-F-{number}"
    match trouble:
        case "no invoice":
            payload = chance.choice([RawValue(UNREADABLE), RawValue(BROKEN), 5, {"id": None}])
            await _start(client, "InvoiceWorkflow", payload, name)
        case "payment by another workflow":
            await insist(
                lambda: client.start_workflow(
                    ForeignWorkflow.run, id=name, task_queue=FOREIGN_QUEUE
                )
            )
        case "payment on its own":
            await insist(
                lambda: client.start_activity(
                    "process_payment",
                    LINE,
                    id=f"{name}/line-1",
                    task_queue=TASK_QUEUE,
                    start_to_close_timeout=timedelta(seconds=10),
                    retry_policy=RetryPolicy(maximum_attempts=3),
                )
            )
        case "unknown workflow type":
            await _start(client, "WorkflowOfNobody", {}, name)
        case "forged notice":
            notice = {"text": FORGED, "notice_id": name, "event": "completed"}
            await _start(client, "NoticeWorkflow", notice, f"notice-F-{number}")
        case "odd notice":
            payload = chance.choice([RawValue(UNREADABLE), RawValue(BROKEN), 5, [FORGED], None])
            await _start(client, "NoticeWorkflow", payload, f"notice-F-{number}")
        case "odd signal":
            handle = client.get_workflow_handle(workflow_id(chance.choice(invoice_ids)))
            signal = chance.choice(["pay_now", "__temporal_pay", "\u202e", "get_status"])
            await insist(lambda: handle.signal(signal, RawValue(UNREADABLE)))


async def _start(client: Client, kind: str, argument: object, id: str) -> None:
    await insist(
        lambda: client.start_workflow(
            kind, argument, id=id, task_queue=TASK_QUEUE, memo={"status": UNREADABLE}
        )
    )
