"""While no worker runs: quick answers, decisions that are kept, and the deadline that passes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import (
    PauseWorkflowExecutionRequest,
    UnpauseWorkflowExecutionRequest,
)
from temporalio.client import Client

import invoice_runs
from invoice_runs import InvoiceRuns, WorkerAnswer
from invoices.invoice import Invoice, workflow_id
from invoices.refusals import InvoiceError, NamedTotal
from invoices.status import DecisionDetails
from support import (
    Desk,
    Namespace,
    Refused,
    Tools,
    Worker,
    an_invoice,
    eventually,
    paid,
    tools_in_memory,
)
from temporal_service import executions
from temporal_service.connection import whoami
from worker_here import worker_here


@pytest.fixture(scope="module")
async def idle(new_namespace: Callable[[], str]) -> Namespace:
    """A namespace for which no worker ever runs."""
    return Namespace(new_namespace())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workflows for which the client waited for a worker's answer."""
    waits = []
    ask_worker = InvoiceRuns.ask_worker

    async def counted(
        runs: InvoiceRuns, invoice_id: str, run_id: str | None = None, *, has_waited: bool = False
    ) -> WorkerAnswer | None:
        waits.append(workflow_id(invoice_id))
        return await ask_worker(runs, invoice_id, run_id, has_waited=has_waited)

    monkeypatch.setattr(InvoiceRuns, "ask_worker", counted)
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.2)  # nobody ever answers here
    return waits


@pytest.fixture
async def idle_tools(idle: Namespace, waits: list[str]) -> AsyncIterator[Tools]:
    async with tools_in_memory(idle.address) as tools:
        yield tools


async def test_each_tool_answers_and_waits_for_a_worker_once(
    idle_tools: Tools, waits: list[str]
) -> None:
    invoice = an_invoice()
    name = invoice["id"]
    calls: dict[str, tuple[dict[str, Any], str]] = {
        "process_invoice": ({"invoice_data": invoice}, "continues when a worker runs"),
        "get_invoice_status": ({"invoice_id": name}, "No worker answers now"),
        "approve_invoice": ({"invoice_id": name}, "takes effect when a worker runs"),
        "cancel_invoice": ({"invoice_id": name}, "takes effect when a worker runs"),
    }
    for number, (tool, (arguments, words)) in enumerate(calls.items(), start=1):
        assert words in await idle_tools(tool, **arguments)
        assert waits == [workflow_id(name)] * number
    with pytest.raises(Refused, match="Cancellation requested"):
        await idle_tools("reject_invoice", invoice_id=name)

    async def listed() -> bool:
        return f"{name}: Awaiting approval; 2 lines, $7,000.00" in await idle_tools("list_invoices")

    assert await eventually(listed)
    assert len(waits) == len(calls)

    status = await idle_tools.status(invoice)
    assert status["worker_answers"] is False
    assert (status["state"], status["total"]) == ("waiting", "7000.00")


async def test_a_decision_that_is_kept_is_told_and_stands(idle_tools: Tools) -> None:
    approved, rejected = await idle_tools.submit(), await idle_tools.submit()
    name, other = approved["id"], rejected["id"]
    await idle_tools("approve_invoice", invoice_id=name, reason="as agreed")
    status = await idle_tools.status(approved)
    assert (status["state"], status["kept_decision"]["approved"]) == ("waiting", True)
    assert not {"request", "sent_at"} & set(status["kept_decision"])
    told = (
        "A decision is kept and takes effect when a worker runs: approved by"
        f" {whoami()} on {status['kept_decision']['at'][:10]}"
    )
    assert told in status["message"]
    assert "reason: “as agreed”" in status["message"]
    assert "Approval deadline" not in status["message"]
    text = await idle_tools("approve_invoice", invoice_id=name)
    assert text.startswith("Already approved; nothing was changed.")
    assert told in text

    await idle_tools("reject_invoice", invoice_id=other)
    with pytest.raises(Refused, match=r"can't be approved now.*rejected by"):
        await idle_tools("approve_invoice", invoice_id=other)


async def test_many_signals_do_not_hide_a_kept_decision_or_cancellation(
    idle_tools: Tools, idle: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await idle.connect()
    rejected, cancelled = await idle_tools.submit(), await idle_tools.submit()
    await idle_tools("reject_invoice", invoice_id=rejected["id"])
    await idle_tools("cancel_invoice", invoice_id=cancelled["id"])
    for invoice in (rejected, cancelled):
        handle = client.get_workflow_handle(workflow_id(invoice["id"]))
        await asyncio.gather(*(handle.signal("no_such_signal") for _ in range(60)))
    assert (await idle_tools.status(rejected))["kept_decision"]["approved"] is False
    with pytest.raises(Refused, match=r"can't be approved now.*rejected by"):
        await idle_tools("approve_invoice", invoice_id=rejected["id"])

    # Too many.
    monkeypatch.setattr(executions, "MAX_EVENTS", 50)
    status = await idle_tools.status(rejected)
    assert status["kept_decision_unknown"]
    assert "It isn't known whether a decision is kept already" in status["message"]
    assert "without a decision by then" not in status["message"]
    unknown = "Cancellation requested by an unknown client at an unknown time."
    assert unknown in (await idle_tools.status(cancelled))["message"]
    with pytest.raises(Refused, match=f"can't be approved any more. {unknown}"):
        await idle_tools("approve_invoice", invoice_id=cancelled["id"])
    text = await idle_tools("cancel_invoice", invoice_id=cancelled["id"])
    assert text.startswith("Already being cancelled; nothing was changed.")


async def test_a_paused_invoice_is_told_as_paused_and_keeps_what_it_is_sent(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    kept = {
        "once it is unpaused in Temporal",
        "is paused in Temporal, or in a status that isn't known",
    }
    async with (
        worker_here(namespace.address, tmp_path),
        tools_in_memory(namespace.address) as tools,
    ):
        invoice, cancelled = await tools.submit(), await tools.submit()
        for one in (invoice, cancelled):
            await tools.until(one, "waiting")
            await client.workflow_service.pause_workflow_execution(
                PauseWorkflowExecutionRequest(
                    namespace=client.namespace, workflow_id=workflow_id(one["id"])
                )
            )
        texts = [
            await tools("approve_invoice", invoice_id=invoice["id"], total="7000 USD"),
            await tools("get_invoice_status", invoice_id=invoice["id"]),
            await tools("cancel_invoice", invoice_id=cancelled["id"]),
            await tools("get_invoice_status", invoice_id=cancelled["id"]),
        ]
        for text in texts:
            assert [words for words in kept if words not in text] == [], text
            assert "No worker answers" not in text
        assert "A decision is kept" in texts[1]
        assert "Cancellation requested" in texts[3]
        with pytest.raises(Refused, match=r"can't be rejected now.*approved by"):
            await tools("reject_invoice", invoice_id=invoice["id"])
        assert (await tools.status(invoice))["paused"]
        await client.workflow_service.unpause_workflow_execution(
            UnpauseWorkflowExecutionRequest(
                namespace=client.namespace, workflow_id=workflow_id(invoice["id"])
            )
        )
        assert "paused" not in await tools.until(invoice, "completed")


async def test_a_kept_decision_is_dated_when_it_was_made(
    namespace: Namespace, tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    kept, later = await desk.submit(), await desk.submit(payment_interval_seconds=60)
    await desk.approve(kept)
    made = (await desk.status(kept)).kept_decision
    assert made
    # The second signal says that it was made before; the first that was received stands.
    reject = DecisionDetails(by="boss", sent_at=made.at - timedelta(seconds=1))
    await desk.handle(kept).signal("reject_invoice", reject.model_dump(mode="json"))
    await desk.once(kept, lambda status: status.now - made.at > timedelta(seconds=3))
    async with worker_here(namespace.address, tmp_path):
        decision = (await desk.until(kept, "completed")).decision
        assert decision
        assert decision.by == whoami()
        assert abs(decision.at - made.at) < timedelta(seconds=1)
        await desk.once(later, lambda status: status.paid_earlier_lines is not None)
        await desk.approve(later)
    patches = [
        any(b"dated-by-the-sender" in event.SerializeToString() for event in history.events)
        for history in [await desk.handle(one).fetch_history() for one in (kept, later)]
    ]
    assert patches == [True, False]


async def test_a_decision_kept_from_before_the_deadline_is_told_after_it(idle: Namespace) -> None:
    desk = Desk(await idle.connect())
    invoice = await desk.submit(approval_timeout_days=5 / 86400)
    assert (await desk.approve(invoice)).outcome == "decision_kept"
    status = await desk.once(invoice, lambda status: status.is_past_deadline, 30)
    await desk.handle(invoice).signal("reject_invoice")  # too late
    status = await desk.status(invoice)
    assert status.kept_decision
    assert status.kept_decision.approved
    assert "It was made before the deadline, which has passed." in status.to_text()
    assert "can't be approved any more" not in status.to_text()


async def test_an_approval_in_two_calls_waits_for_a_worker_once_in_each(
    idle: Namespace, waits: list[str]
) -> None:
    invoice = an_invoice()
    waits_before_the_question = []

    async def person(*_: Any) -> dict[str, bool]:
        waits_before_the_question.extend(waits)
        return {"approve": True}

    async with tools_in_memory(idle.address, "2026-07-28", elicitation_handler=person) as tools:
        await tools("process_invoice", invoice_data=invoice)
        waits.clear()
        assert "the decision is kept" in await tools("approve_invoice", invoice_id=invoice["id"])
    assert len(waits_before_the_question) == 1
    assert len(waits) == 2


@pytest.mark.parametrize("decide", ["approve_invoice", "reject_invoice"])
async def test_structured_content_says_that_the_decision_is_kept(
    decide: str, idle_tools: Tools
) -> None:
    invoice = an_invoice()
    await idle_tools("process_invoice", invoice_data=invoice)
    result = await idle_tools.client.call_tool(decide, {"invoice_id": invoice["id"]})
    content: dict[str, Any] = result.structured_content  # type: ignore[assignment]
    assert (content["state"], content["outcome"]) == ("waiting", "decision_kept")
    assert "takes effect when a worker runs" in content["message"]


@pytest.mark.parametrize("verb", ["approve", "reject"])
async def test_a_decision_after_the_deadline_is_refused(verb: str, idle_tools: Tools) -> None:
    invoice = an_invoice(approval_timeout_days=1 / 86400)
    await idle_tools("process_invoice", invoice_data=invoice)

    async def passed() -> bool:
        text = await idle_tools("get_invoice_status", invoice_id=invoice["id"])
        return "has passed: it can't be approved any more" in text

    assert await eventually(passed)
    with pytest.raises(Refused, match=r"deadline, 20.* UTC, has passed.*it times out"):
        await idle_tools(f"{verb}_invoice", invoice_id=invoice["id"])


CHEAP = [{"item": "Pen", "amount": "1.00"}]


async def test_a_total_is_checked_against_the_content_and_not_the_memo(
    idle: Namespace, idle_tools: Tools
) -> None:
    invoice = an_invoice()
    desk = Desk(await idle.connect())
    memo = await (await desk.handle(await desk.submit(lines=CHEAP)).describe()).memo()
    await desk.start(invoice, memo=memo)
    with pytest.raises(Refused, match=r"is for \$7,000\.00, not \$1\.00\. Nothing was approved"):
        await idle_tools("approve_invoice", invoice_id=invoice["id"], total="1.00")


async def test_only_what_the_service_received_before_the_deadline_counts_after_it(
    namespace: Namespace, waits: list[str], tmp_path: Path
) -> None:
    desk = Desk(await namespace.connect())
    seconds = timedelta(seconds=4) / timedelta(days=1)
    invoices = await asyncio.gather(*(desk.submit(approval_timeout_days=seconds) for _ in range(4)))
    in_time, bare, late, forged = invoices
    assert (await desk.approve(in_time)).outcome == "decision_kept"
    await asyncio.gather(
        *(desk.once(one, lambda status: status.is_past_deadline, 40) for one in invoices)
    )
    with pytest.raises(InvoiceError, match="Unless somebody decided before"):
        await desk.approve(in_time)
    await desk.handle(bare).signal("approve_invoice")
    for invoice, sent_at in ((late, now := datetime.now(UTC)), (forged, now - timedelta(days=1))):
        details = DecisionDetails(sent_at=sent_at).model_dump(mode="json")
        await desk.handle(invoice).signal("approve_invoice", details)

    async with worker_here(namespace.address, tmp_path):
        results = [await desk.handle(invoice).result() for invoice in invoices]
        assert results == ["COMPLETED", "REJECTED", "REJECTED", "REJECTED"]
        assert (await desk.status(bare)).state == "timed_out"
        assert [len(paid(tmp_path, one)) for one in invoices] == [2, 0, 0, 0]


async def test_a_decision_on_an_invoice_being_paid_returns_the_recorded_decision(
    namespace: Namespace, tmp_path: Path
) -> None:
    async with Worker(namespace.address, tmp_path) as worker:
        invoice = an_invoice(payment_interval_seconds=60)
        async with tools_in_memory(namespace.address) as tools:
            await tools("process_invoice", invoice_data=invoice)
            await tools("approve_invoice", invoice_id=invoice["id"])
            await tools.until(invoice, "paying")
            worker.kill()
            text = await tools("approve_invoice", invoice_id=invoice["id"])
            assert text.startswith("Already approved; nothing was changed")
            with pytest.raises(Refused, match="can't be rejected now, status: Processing payments"):
                await tools("reject_invoice", invoice_id=invoice["id"])


async def test_nobody_waits_where_no_worker_has_polled(
    idle: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 600)
    desk = Desk(await idle.connect())
    async with asyncio.timeout(20):
        invoice = await desk.submit()
        assert (await desk.status(invoice)).worker_answers is False
        assert (await desk.approve(invoice)).outcome == "decision_kept"


async def test_after_a_worker_has_died_the_status_stays_true_and_a_decision_is_kept(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path):
        invoice = await desk.submit()
        await desk.once(invoice, lambda status: status.paid_earlier_lines == 0)
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 600)
    async with asyncio.timeout(20):
        status = await desk.status(invoice)
    assert (status.state, status.worker_answers) == ("waiting", None)
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.5)
    kept = await desk.approve(invoice)
    assert (kept.outcome, kept.worker_answers) == ("decision_kept", False)


async def test_a_worker_that_answers_is_not_asked_again(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("a query was sent")

    monkeypatch.setattr(InvoiceRuns, "ask_worker", asked)
    monkeypatch.setattr(invoice_runs, "PROMPT_SECONDS", 60)
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 240)
    desk = Desk(client)
    first, second = await desk.submit(), await desk.submit(payment_interval_seconds=3600)
    assert (await desk.reject(first)).outcome == "rejected"
    assert (await desk.approve(second, total=NamedTotal.parse("7000.00"))).outcome == "approved"
    assert (await desk.status(second)).state == "paying"


async def test_a_start_that_is_not_looked_up_is_told_to_some_milliseconds(
    client: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(client)
    await desk.submit()
    with monkeypatch.context() as without_looking:
        without_looking.setattr(InvoiceRuns, "get_run", None)
        told = await desk.client.submit(Invoice.model_validate(an_invoice()))
    started = (await desk.handle({"id": told.invoice_id}).describe()).start_time
    assert timedelta(0) <= started - told.submitted_at < timedelta(milliseconds=10)
    assert told.deadline == told.submitted_at + timedelta(days=5)


async def test_a_kept_approval_is_told_instead_of_asking_again(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> dict[str, bool]:
        raise AssertionError("the person was asked")

    desk = Desk(await namespace.connect())
    async with worker_here(namespace.address, tmp_path):
        invoice = await desk.submit()
        await desk.once(invoice, lambda status: status.paid_earlier_lines == 0)
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.5)
    await desk.approve(invoice)
    async with tools_in_memory(namespace.address, elicitation_handler=never) as tools:
        told = await tools("approve_invoice", invoice_id=invoice.id)
        again = await tools("process_invoice", invoice_data=invoice.content)
        with pytest.raises(Refused, match=r"can't be rejected now.*approved by.*call cancel_inv"):
            await tools("reject_invoice", invoice_id=invoice.id)
    assert told.startswith("Already approved; nothing was changed.")
    for text in (told, again):
        assert "A decision is kept" in text
        assert "rejected" not in text
