"""What other clients of the Temporal Service write isn't trusted, and doesn't harm invoices."""

import asyncio
import csv
import io
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from mcp.client.extension import advertise
from temporalio.api.command.v1 import (
    Command,
    CompleteWorkflowExecutionCommandAttributes,
    ModifyWorkflowPropertiesCommandAttributes,
)
from temporalio.api.common.v1 import Memo, Payload, Payloads, WorkflowType
from temporalio.api.enums.v1 import CommandType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueRequest,
    RespondWorkflowTaskCompletedRequest,
    StartWorkflowExecutionRequest,
)
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.service import RPCError

import audit
import invoice_runs
from invoice_client import InvoiceClient
from invoice_runs import InvoiceRuns
from invoice_search import InvoiceSearch
from invoices.invoice import Invoice, workflow_id
from invoices.refusals import InvoiceError
from invoices.status import (
    NOT_KNOWN,
    REJECTED_OR_TIMED_OUT,
    UNKNOWN_RESULT,
    RunProgress,
    State,
)
from odd_payloads import ODD, payload
from support import (
    ROOT,
    Desk,
    Namespace,
    Refused,
    Worker,
    an_invoice,
    environment,
    eventually,
    paid,
    payments,
    tools_in_memory,
)
from worker_here import worker_here
from workflow import TASK_QUEUE

SHOWS_CARDS = advertise(UI_EXTENSION_ID, {"mimeTypes": [UI_MIME_TYPE]})


async def start(
    client: Client,
    id: str,
    *input: Payload,
    memo: dict[str, Payload] | None = None,
    search_attributes: dict[str, Payload] | None = None,
    type: str = "InvoiceWorkflow",
    task_queue: str = TASK_QUEUE,
) -> str:
    """Starts a workflow with exactly these payloads; returns its run id."""
    request = StartWorkflowExecutionRequest(
        namespace=client.namespace,
        workflow_id=id,
        workflow_type=WorkflowType(name=type),
        task_queue=TaskQueue(name=task_queue),
        request_id=uuid4().hex,
        input=Payloads(payloads=input),
    )
    for key, value in (memo or {}).items():
        request.memo.fields[key].CopyFrom(value)
    for key, value in (search_attributes or {}).items():
        request.search_attributes.indexed_fields[key].CopyFrom(value)
    return (await client.workflow_service.start_workflow_execution(request)).run_id


# A forged memo.


@pytest.fixture(scope="module")
async def idle(new_namespace: Callable[[], str]) -> Namespace:
    """A namespace for which no worker ever runs."""
    return Namespace(new_namespace())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """In the idle namespace, the client doesn't wait for a worker."""
    if "idle" in request.fixturenames:
        monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.2)


def forged(invoice: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**RunProgress.of(Invoice.model_validate(invoice)).to_memo(), **fields}


DECISION = {"approved": True, "at": "2026-01-01T00:00:00Z", "by": "boss@office"}
FORGERIES: dict[str, dict[str, Any]] = {
    "paid-earlier": {
        "paid_lines": 1,
        "paid_amount": "6999.00",
        "paid_earlier_lines": 1,
        "paid_earlier_amount": "6999.00",
    },
    "paying": {"state": "paying", "status": "Processing payments", "decision": DECISION},
    "completed": {"state": "completed", "status": "Completed", "paid_lines": 2},
    "rejected": {"state": "rejected", "status": "Rejected by approver"},
    "status": {"status": "Processing payments"},
    "decided": {"decision": DECISION},
    "amounts": {"total": "1.00", "line_count": 1, "currency": "JPY"},
    "long-ago": {"submitted_at": "2020-01-01T00:00:00Z", "approval_timeout_days": 1},
    "deadline": {"deadline": "2020-01-01T00:00:00Z"},
    "digest": {"digest": "0" * 64},
    "supplier": {"supplier": "Northwind Web Ltd", "due_date": "2026-12-31"},
    "lines": {"paid_earlier_lines": 1, "paid_lines": 1, "paid_earlier_numbers": "2"},
    "failure": {"failure": "PaymentConflict", "status": "Payment failed: x", "state": "failed"},
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
async def test_the_person_is_asked_about_the_real_content_whatever_the_memo_says(
    forgery: dict[str, Any], idle: Namespace
) -> None:
    asked: list[str] = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": False}

    invoice = an_invoice()
    client = await idle.connect()
    await Desk(client).start(invoice, memo=forged(invoice, **forgery))
    async with tools_in_memory(idle.address, elicitation_handler=person) as tools:
        with pytest.raises(Refused, match="did not clearly say yes"):
            await tools("approve_invoice", invoice_id=invoice["id"])
        first, second = asked[0].splitlines()[:2]
        assert first == f"Pay invoice {invoice['id']}: 2 lines, $7,000.00?"
        assert second == "Paid earlier: not known. To pay: at most $7,000.00."
        status = await tools.status(invoice)
        assert (status["state"], status["total"], status["paid_lines"]) == ("waiting", "7000.00", 0)
        assert "decision" not in status
        days = datetime.fromisoformat(status["deadline"]) - datetime.now(UTC)
        assert timedelta(days=4.9) < days <= timedelta(days=5)
        assert "Already in process" in await tools("process_invoice", invoice_data=invoice)
    history = await client.get_workflow_handle(workflow_id(invoice["id"])).fetch_history()
    assert not any(
        event.HasField("workflow_execution_signaled_event_attributes") for event in history.events
    )


@pytest.mark.parametrize("name", ["paying", "completed", "decided"])
async def test_a_forged_decision_does_not_count_where_nobody_is_asked(
    name: str, idle: Namespace
) -> None:
    invoice = an_invoice()
    await Desk(await idle.connect()).start(invoice, memo=forged(invoice, **FORGERIES[name]))
    async with tools_in_memory(idle.address) as tools:
        text = await tools("approve_invoice", invoice_id=invoice["id"], total="7000.00 USD")
    assert text.startswith("Sent approval signal")
    assert "the decision is kept" in text


async def test_a_forged_memo_is_not_listed(idle: Namespace) -> None:
    client = await idle.connect()
    one, other = an_invoice(), an_invoice()
    await Desk(client).start(one, memo=forged(one, **FORGERIES["completed"]))
    await Desk(client).start(other, memo=forged(other, **FORGERIES["paid-earlier"]))
    await client.get_workflow_handle(workflow_id(other["id"])).terminate()
    async with tools_in_memory(idle.address) as tools:

        async def line(invoice: dict[str, Any]) -> str | None:
            lines = (await tools("list_invoices")).splitlines()
            return next((line for line in lines if invoice["id"] in line), None)

        assert "Awaiting approval; 2 lines, $7,000.00" in await eventually(lambda: line(one))

        async def terminated() -> bool:
            return "Terminated" in (await line(other) or "")

        assert await eventually(terminated)
        assert "paid" not in str(await line(other))


async def test_a_forged_ledger_is_not_carried_on(idle: Namespace) -> None:
    client = await idle.connect()
    invoice = an_invoice()
    await Desk(client).start(invoice, memo=forged(invoice, ledger="evil"))
    handle = client.get_workflow_handle(workflow_id(invoice["id"]))
    await handle.terminate()
    await InvoiceClient(client).submit(Invoice.model_validate(invoice))
    assert "ledger" not in await (await handle.describe()).memo()


async def test_the_ledger_that_paid_is_carried_on_past_other_clients_runs(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await namespace.connect()
    desk = Desk(client)
    lines = [{"item": "Domain", "amount": "10.00"}, {"item": "Server", "amount": "500.00"}]
    ended, invalid, elsewhere = broken = [an_invoice(lines=lines) for _ in range(3)]
    directories = tmp_path / "own", tmp_path / "other"
    async with worker_here(namespace.address, directories[0], INVOICE_DECLINE_OVER="50"):
        for invoice in broken:
            await desk.client.submit(Invoice.model_validate(invoice))
            await desk.approve(invoice)
        for invoice in broken:
            await desk.until(invoice, "failed")
        ledger = (await desk.client.runs.get_run(ended["id"])).ledger
        assert ledger
        await desk.start({"id": invalid["id"]}, memo={})
        await desk.until(invalid, "failed")
    async with worker_here(namespace.address, directories[1]):
        await desk.start(elsewhere, memo={})
        await desk.until(elsewhere, "waiting")
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.2)  # nobody answers from here on
    await desk.start(ended, memo={})
    for invoice in (ended, elsewhere):
        await client.get_workflow_handle(workflow_id(invoice["id"])).terminate()
    for invoice in broken:
        # Through another client, because this one knows which runs it started itself.
        await InvoiceClient(client).submit(Invoice.model_validate(invoice))
        handle = client.get_workflow_handle(workflow_id(invoice["id"]))
        assert (await (await handle.describe()).memo()).get("ledger") == ledger


async def test_no_second_ledger_pays_after_another_clients_start(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    desk = Desk(client)
    lines = [{"item": "Domain", "amount": "10.00"}, {"item": "Server", "amount": "500.00"}]
    invoice = an_invoice(lines=lines)
    known = an_invoice(lines=lines)
    async with Worker(namespace.address, tmp_path / "own", INVOICE_DECLINE_OVER="50"):
        for one in (invoice, known):
            await desk.client.submit(Invoice.model_validate(one))
            await desk.approve(one)
            await desk.until(one, "failed")
        await desk.start(known)  # by the same ledger's worker
        await desk.until(known, "waiting")
        assert not (await desk.status(known)).earlier_ledger
        assert (await desk.approve(known)).outcome == "approved"
    told = "An earlier submission began to pay it from the payment ledger "
    async with (
        Worker(namespace.address, tmp_path / "other"),
        tools_in_memory(namespace.address) as tools,
        tools_in_memory(namespace.address, extensions=[SHOWS_CARDS]) as card,
        tools_in_memory(namespace.address, elicitation_handler=Mock()) as asking,
    ):
        await desk.start(invoice)
        await tools.until(invoice, "waiting")
        status = await tools.status(invoice)
        assert told in status["message"]
        assert "it isn't known whether any of it was paid" in status["message"]
        ledger = (await desk.client.runs.get_run(invoice["id"])).ledger
        assert status["earlier_ledger"] not in (None, ledger)
        assert told in await tools("process_invoice", invoice_data=invoice)
        for approve in (tools, card, asking):
            with pytest.raises(Refused, match=f"can't be approved. {told}.*Cancel this submission"):
                await approve("approve_invoice", invoice_id=invoice["id"], total="510.00")
        shown = await card.client.call_tool("invoice_card", {"invoice_id": invoice["id"]})
        assert shown.structured_content
        assert not shown.structured_content["can_be_decided"]
        run = await desk.client.runs.get_run(invoice["id"])
        with pytest.raises(InvoiceError, match=told):  # an older card of the same run
            await desk.approve(invoice, run_id=run.id)
        # The way out leads out.
        await tools("cancel_invoice", invoice_id=invoice["id"])
        await tools.until(invoice, "cancelled")
    async with Worker(namespace.address, tmp_path / "own"):
        await desk.client.submit(Invoice.model_validate(invoice))
        await desk.once(invoice, lambda status: status.paid_earlier_lines == 1)
        assert not (await desk.status(invoice)).earlier_ledger
        await desk.pay(invoice)
    assert not payments(tmp_path / "other")


async def test_an_invoice_with_one_submission_costs_no_search_for_earlier_ones(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def searched(*_: Any) -> None:
        raise AssertionError("earlier submissions were searched")

    async def person(*_: Any) -> dict[str, bool]:
        return {"approve": True}

    monkeypatch.setattr(InvoiceRuns, "latest_executions", searched)
    desk = Desk(await namespace.connect())
    async with (
        Worker(namespace.address, tmp_path),
        tools_in_memory(namespace.address, elicitation_handler=person) as tools,
    ):
        invoice = await desk.submit()  # as another process does
        await tools.until({"id": invoice.id}, "waiting")
        await tools("approve_invoice", invoice_id=invoice.id)
        await tools.until({"id": invoice.id}, "completed")


async def test_what_the_workflow_has_written_is_believed(
    namespace: Namespace, tmp_path: Path
) -> None:
    """Even if many signals came before it."""
    client = await namespace.connect()
    invoice = an_invoice(payment_interval_seconds=60)
    await Desk(client).start(invoice, memo=forged(invoice, **FORGERIES["paid-earlier"]))
    handle = client.get_workflow_handle(workflow_id(invoice["id"]))
    await asyncio.gather(*(handle.signal("no_such_signal") for _ in range(40)))
    async with worker_here(namespace.address, tmp_path):
        run = await InvoiceRuns(client).get_run(invoice["id"])

        async def memo_has_no_earlier_lines() -> bool:
            run = await InvoiceRuns(client).get_run(invoice["id"])
            return run.status.paid_earlier_lines == 0

        assert await eventually(memo_has_no_earlier_lines)
        assert run.status.paid_lines == 0
        approved = await Desk(client).approve(invoice)
        assert approved.outcome == "approved"

        async def paying() -> bool:
            run = await InvoiceRuns(client).get_run(invoice["id"])
            return run.status.state == "paying" and run.status.decision is not None

        assert await eventually(paying)


async def test_signals_before_the_first_memo_do_not_hide_the_state(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many signals as events are searched for the first memo, sent while no worker ran."""
    monkeypatch.setattr(invoice_runs, "MAX_EVENTS", 35)
    client = await namespace.connect()
    paying, timed_out = an_invoice(payment_interval_seconds=60), an_invoice()
    timed_out["approval_timeout_days"] = 2 / 86400
    for invoice in (paying, timed_out):
        handle = await Desk(client).start(invoice, memo=forged(invoice, **FORGERIES["completed"]))
        await asyncio.gather(*(handle.signal("no_such_signal") for _ in range(40)))

    async def is_told(invoice: dict[str, Any], state: State) -> bool:
        run = await InvoiceRuns(client).get_run(invoice["id"])
        listed = (await InvoiceSearch(InvoiceRuns(client)).list_invoices(state)).invoices
        return run.status.state == state and invoice["id"] in [one.invoice_id for one in listed]

    async with worker_here(namespace.address, tmp_path):
        await Desk(client).approve(paying)
        await eventually(lambda: is_told(paying, "paying"))
        await eventually(lambda: is_told(timed_out, "timed_out"))

        # If the last events don't show it either, it isn't known.
        async def only_signals(*_: object) -> list[object]:
            return []

        monkeypatch.setattr(InvoiceRuns, "_last_events", only_signals)
        for invoice, text in ((paying, NOT_KNOWN), (timed_out, REJECTED_OR_TIMED_OUT)):
            run = await InvoiceRuns(client).get_run(invoice["id"])
            assert (run.status.status, run.status.deadline) == (text, None)
        for state in ("paying", "waiting"):
            found = await InvoiceSearch(InvoiceRuns(client)).list_invoices(state)
            assert paying["id"] in [one.invoice_id for one in found.invoices]


async def test_a_run_with_the_content_of_another_invoice_is_not_an_invoice(idle: Namespace) -> None:
    asked: list[str] = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": True}

    client = await idle.connect()
    one, other = an_invoice(), an_invoice()
    content = payload(Invoice.model_validate(other).to_json())
    await start(client, one["id"], payload(Invoice.model_validate(one).to_json()))  # no prefix
    await start(client, workflow_id(one["id"]), content)
    async with tools_in_memory(idle.address, elicitation_handler=person) as tools:
        with pytest.raises(Refused, match="breaks the rules"):
            await tools("approve_invoice", invoice_id=one["id"])
        with pytest.raises(Refused, match="something that isn't an invoice"):
            await tools("process_invoice", invoice_data=one)
        text = await tools("get_invoice_status", invoice_id=one["id"])
        assert "status: Invalid invoice" in text

        async def lines() -> list[str]:
            text = await tools("list_invoices")
            return [line for line in text.splitlines() if one["id"] in line]

        async def listed() -> bool:
            query = f"WorkflowId = '{one['id']}'"
            return bool(await lines()) and (await client.count_workflows(query)).count == 1

        await eventually(listed)
        [line] = await lines()
        assert "content unreadable" in line
    assert not asked
    handle = client.get_workflow_handle(workflow_id(one["id"]))
    run = await audit.read_run(InvoiceRuns(client), one["id"])
    assert run
    assert run.invoice is None
    await handle.terminate()
    await client.get_workflow_handle(one["id"]).terminate()


@pytest.mark.parametrize("customer", [{"a": 1}, 12345], ids=str)
async def test_a_customer_that_is_not_text_is_shown(customer: object, idle: Namespace) -> None:
    asked: list[str] = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": False}

    invoice = an_invoice(customer=customer)
    await Desk(await idle.connect()).start(invoice)
    async with tools_in_memory(idle.address, elicitation_handler=person) as tools:
        with pytest.raises(Refused, match="did not clearly say yes"):
            await tools("approve_invoice", invoice_id=invoice["id"])
    assert f"Charged: customer “{customer}”" in asked[0]


async def test_an_approval_of_what_is_being_paid_sends_nothing_and_asks_nobody(
    address: str, client: Client, worker: Worker
) -> None:
    asked = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": True}

    invoice = an_invoice(payment_interval_seconds=60)
    async with tools_in_memory(address, elicitation_handler=person) as tools:
        await tools("process_invoice", invoice_data=invoice)
        assert "Sent approval" in await tools("approve_invoice", invoice_id=invoice["id"])
        await tools.until(invoice, "paying")
        for _ in range(2):
            text = await tools("approve_invoice", invoice_id=invoice["id"])
            assert text.startswith("Already approved; nothing was changed.")
    assert len(asked) == 1
    handle = client.get_workflow_handle(workflow_id(invoice["id"]))
    signals = [
        event
        for event in (await handle.fetch_history()).events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]
    assert len(signals) == 1
    await handle.terminate()


@pytest.mark.parametrize("attribute", ["completed", "rejected", "nonsense"])
async def test_a_forged_search_attribute_does_not_hide_a_waiting_invoice(
    attribute: str, equipped: Namespace
) -> None:
    client = await equipped.connect()
    invoice = an_invoice()
    content = payload(Invoice.model_validate(invoice).to_json())
    forgery = {"InvoiceState": payload(f'"{attribute}"'.encode())}

    async def started() -> bool:
        try:
            await start(client, workflow_id(invoice["id"]), content, search_attributes=forgery)
        except RPCError:  # it takes a moment until the attribute may be used
            return False
        return True

    await eventually(started)

    async def listed(state: State) -> bool:
        found = await InvoiceSearch(InvoiceRuns(client)).list_invoices(state)
        return invoice["id"] in [one.invoice_id for one in found.invoices]

    await eventually(lambda: listed("waiting"))
    assert not await listed("completed")


async def test_an_invoice_that_a_worker_without_the_attribute_ended_is_listed(
    equipped: Namespace,
) -> None:
    """The attribute still has the value that our client set: `waiting`."""
    client = await equipped.connect()
    forgery = {"InvoiceState": payload(b'"waiting"')}
    done = await complete_by_a_stranger(client, [payload(b'"COMPLETED"')], {}, forgery)

    async def listed(state: State) -> bool:
        found = await InvoiceSearch(InvoiceRuns(client)).list_invoices(state)
        return done in [one.invoice_id for one in found.invoices]

    await eventually(lambda: listed("completed"))
    assert not await listed("rejected")


# Runs that can't be read.

ODD_IDS = ["a'b", 'a"b', "a\nb", "a\\", "a' OR '1'='1", "\x00", "\x1b[2J", "\u202e", "x" * 900, ""]


async def complete_by_a_stranger(
    client: Client,
    result: list[Payload],
    memo: dict[str, Payload],
    search_attributes: dict[str, Payload] | None = None,
) -> str:
    """Completes an `InvoiceWorkflow` as somebody else's worker. Returns the invoice's id."""
    invoice = an_invoice()
    content = payload(Invoice.model_validate(invoice).to_json())
    queue = f"strangers-{uuid4().hex}"
    id = workflow_id(invoice["id"])
    await start(client, id, content, task_queue=queue, search_attributes=search_attributes)
    task = await client.workflow_service.poll_workflow_task_queue(
        PollWorkflowTaskQueueRequest(
            namespace=client.namespace, task_queue=TaskQueue(name=queue), identity="stranger"
        )
    )
    note = Command(
        command_type=CommandType.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES,
        modify_workflow_properties_command_attributes=ModifyWorkflowPropertiesCommandAttributes(
            upserted_memo=Memo(fields=memo)
        ),
    )
    end = Command(
        command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION,
        complete_workflow_execution_command_attributes=CompleteWorkflowExecutionCommandAttributes(
            result=Payloads(payloads=result)
        ),
    )
    await client.workflow_service.respond_workflow_task_completed(
        RespondWorkflowTaskCompletedRequest(
            namespace=client.namespace,
            task_token=task.task_token,
            commands=[note, end] if memo else [end],
            identity="stranger",
        )
    )
    return str(invoice["id"])


class Poisoned:
    """A namespace with everything that other clients can make odd, and its worker."""

    def __init__(
        self, worker: Worker, invoices: list[dict[str, Any]], strangers: list[str]
    ) -> None:
        self.worker = worker
        self.invoices = invoices
        """The runs that are valid invoices nevertheless."""
        self.strangers = strangers


@pytest.fixture(scope="module")
async def poisoned(
    new_namespace: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Poisoned]:
    namespace = Namespace(new_namespace())
    client = await namespace.connect()
    invoices = []

    async def start_odd(
        memo: dict[str, Payload], search_attributes: dict[str, Payload] | None = None
    ) -> None:
        invoice = an_invoice(lines=[{"item": "Pens", "amount": "1.00"}])
        content = payload(Invoice.model_validate(invoice).to_json())
        id = workflow_id(invoice["id"])
        await start(client, id, content, memo=memo, search_attributes=search_attributes)
        if not search_attributes:
            invoices.append(invoice)
        else:
            await client.get_workflow_handle(id).terminate()

    for odd in ODD.values():
        await start_odd(dict.fromkeys(RunProgress.model_fields, odd))
    progress = forged(an_invoice())
    for field in RunProgress.model_fields:
        for name in ("encoding", "object", "exponent", "surrogate", "first-year", "last-year"):
            memo = {
                key: payload(repr(str(text)).replace("'", '"').encode())
                for key, text in progress.items()
            }
            if name in ("encoding", "exponent") or field in ("submitted_at", "status", "decision"):
                await start_odd({**memo, field: ODD[name]})
    # The SDK's own `describe` and `list_workflows` raise on these.
    strange_time = payload(b'"2026-01-01T00:00:00+24:00"')
    await start_odd({}, {"TemporalScheduledStartTime": strange_time})
    await start_odd({}, {"BuildIds": payload(b'["x"]', type=b"Datetime")})
    await start_odd({}, {"BuildIds": payload(b'["x"]', type=b"\xff")})
    for id in ODD_IDS:
        await start(client, f"invoice-{id}", payload(b"5"), memo={"status": ODD["encoding"]})
        await start(client, f"invoice-{id}-other", type="Other\n", task_queue="of-nobody")
    strangers = [
        await complete_by_a_stranger(client, [odd], dict.fromkeys(RunProgress.model_fields, odd))
        for odd in (ODD["encoding"], ODD["surrogate"], ODD["object"], ODD["last-year"])
    ]
    strangers += [await complete_by_a_stranger(client, [], {})]
    async with Worker(namespace.address, tmp_path_factory.mktemp("data")) as worker:
        yield Poisoned(worker, invoices, strangers)


async def test_the_worker_starts_beside_odd_runs(poisoned: Poisoned) -> None:
    log = poisoned.worker.log

    await eventually(lambda: "Open invoices" in log.read_text())


@pytest.mark.parametrize("state", ["all", "waiting", "failed", "terminated"])
async def test_odd_runs_are_listed(poisoned: Poisoned, state: str) -> None:
    async with tools_in_memory(poisoned.worker.address) as tools:

        async def listed() -> str | None:
            text = await tools("list_invoices", status=state)
            return text if "- " in text else None

        text = await eventually(listed)
    assert all(line.isprintable() for line in text.splitlines())


async def test_odd_runs_are_reported_one_by_one(poisoned: Poisoned) -> None:
    async with tools_in_memory(poisoned.worker.address) as tools:
        for invoice in poisoned.invoices:
            status = await tools.status(invoice)
            assert (status["state"], status["total"]) == ("waiting", "1.00")
        for stranger in poisoned.strangers:
            text = await tools("get_invoice_status", invoice_id=stranger)
            assert f"status: {UNKNOWN_RESULT}" in text


async def test_an_invoice_with_an_odd_memo_is_paid(poisoned: Poisoned) -> None:
    invoice = poisoned.invoices[0]
    async with tools_in_memory(poisoned.worker.address) as tools:
        await tools("process_invoice", invoice_data=invoice)
        await tools("approve_invoice", invoice_id=invoice["id"], total="1.00 USD")
        await tools.until(invoice, "completed")
    assert len(paid(poisoned.worker.data, invoice)) == 1


async def test_odd_signals_do_not_lose_a_decision(poisoned: Poisoned) -> None:
    invoice = poisoned.invoices[1]
    client = await Namespace(poisoned.worker.address).connect()
    handle = client.get_workflow_handle(workflow_id(invoice["id"]))
    for odd in ODD.values():
        await handle.signal("no_such_signal", RawValue(odd))
    await handle.signal("reject_invoice", RawValue(ODD["marked-as-stored"]))
    async with tools_in_memory(poisoned.worker.address) as tools:
        status = await tools.until(invoice, "rejected")
    assert "by" not in status["decision"]


async def test_the_audit_works_beside_odd_runs(poisoned: Poisoned) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "audit.py"),
        env=environment(poisoned.worker.address, INVOICE_DATA_DIR=str(poisoned.worker.data)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    # A ledger that the starter of a run made up isn't ours, and is reported as such.
    *lines, summary = err.decode().splitlines()
    disagreements = lines[: lines.index("Lines in the books:")]
    assert process.returncode == bool(disagreements), err.decode()
    assert all(line.isprintable() and "more than one ledger" in line for line in disagreements)
    assert summary.endswith("with disagreements")
    rows = {row["invoice_id"] for row in csv.DictReader(io.StringIO(out.decode(), newline=""))}
    assert {invoice["id"] for invoice in poisoned.invoices} <= rows
    assert set(poisoned.strangers) <= rows


async def test_a_start_that_another_client_delayed_is_told_as_such(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.5)
    desk = Desk(client)
    delayed, scheduled = an_invoice(), an_invoice()
    await desk.start(delayed, start_delay=timedelta(hours=1))
    await desk.start(scheduled, cron_schedule="0 0 1 1 *")
    for invoice in (delayed, scheduled):
        status = await desk.status(invoice)
        assert status.starts_at
        text = status.to_text()
        assert "Its workflow hasn't started, because its starter gave it a delay or a sch" in text
        assert "The invoice continues once its workflow starts." in text
        assert "worker runs" not in text
        if invoice is scheduled:
            assert (await desk.approve(invoice)).outcome == "decision_kept"
            kept = "A decision is kept and takes effect once its workflow starts: approved by"
            assert kept in (await desk.status(invoice)).to_text()
        await desk.handle(invoice).terminate()
    normal = await desk.submit()
    assert (await desk.status(normal)).starts_at is None
