"""What several decisions that no worker has read yet mean together, and what is told of that."""

from pathlib import Path
from typing import Any

import pytest
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from mcp.client.extension import advertise
from temporalio.api.enums.v1 import EventType

import invoice_runs
from invoices.answers import InvoiceStatus
from invoices.invoice import Invoice
from support import (
    ANN,
    BOB,
    SUE,
    Desk,
    Namespace,
    Refused,
    Tools,
    acting,
    paid,
    tools_in_memory,
)
from worker_here import worker_here

LIMIT = {"INVOICE_TWO_PEOPLE_OVER": "1000"}
SHOWS_CARDS = advertise(UI_EXTENSION_ID, {"mimeTypes": [UI_MIME_TYPE]})


async def signals(desk: Desk, invoice: Invoice) -> int:
    """How many signals the run was sent."""
    kind = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    events = desk.handle(invoice).fetch_history_events()
    return len([event async for event in events if event.event_type == kind])


async def send(desk: Desk, invoice: Invoice, *decisions: str) -> None:
    """Decides as another client does: `+ann@desk1` approves, `-ann@desk1` rejects."""
    for one in decisions:
        signal = "approve_invoice" if one[0] == "+" else "reject_invoice"
        await desk.handle(invoice).signal(signal, {"by": one[1:]})


async def told(tools: Tools, tool: str, invoice: Invoice, **how: Any) -> dict[str, Any]:
    """The structured content of a tool's answer."""
    result = await tools.client.call_tool(tool, {"invoice_id": invoice.id, **how})
    content: dict[str, Any] = result.structured_content  # type: ignore[assignment]
    assert content["message"] == result.content[0].text  # type: ignore[union-attr]
    return content


@pytest.fixture
async def desk(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.5)
    return Desk(await namespace.connect())


async def test_where_two_people_must_approve_all_kept_decisions_are_judged_together(
    desk: Desk, namespace: Namespace, tmp_path: Path
) -> None:
    def has_rule(status: InvoiceStatus) -> bool:
        return status.required_approvals is not None

    with acting(SUE):
        approved, rejected, first, second = [await desk.submit() for _ in range(4)]
    async with worker_here(namespace.address, tmp_path, **LIMIT):
        for invoice in (approved, rejected, first, second):
            await desk.once(invoice, has_rule)
    await send(desk, approved, f"+{ANN}", f"+{BOB}")
    await send(desk, rejected, f"+{ANN}", f"-{BOB}")
    await send(desk, second, f"+{ANN}")
    async with tools_in_memory(namespace.address) as tools:
        status = await tools.status({"id": approved.id})
        assert [one["by"] for one in status["kept_decisions"]] == [ANN, BOB]
        assert not {"request", "sent_at"} & set(status["kept_decisions"][0])
        assert status["kept_decision"]["by"] == BOB
        assert "approval_rule_unknown" not in status
        assert "Decisions are kept, in this order: approved by ann@desk1 " in status["message"]
        assert "When a worker runs, the invoice is approved." in status["message"]
        with pytest.raises(Refused, match=r"can't be rejected now.*the invoice is approved\)"):
            await tools("reject_invoice", invoice_id=approved.id)
        answer = await told(tools, "approve_invoice", approved)
        assert answer["outcome"] == "already_approved"

        with pytest.raises(Refused, match=r"can't be approved now.*is rejected\)\. Once it has"):
            await tools("approve_invoice", invoice_id=rejected.id)
        answer = await told(tools, "reject_invoice", rejected)
        assert answer["outcome"] == "already_rejected"
        assert [await signals(desk, one) for one in (approved, rejected)] == [2, 2]

        with acting(ANN):
            answer = await told(tools, "approve_invoice", first)
            assert answer["outcome"] == "decision_kept"
            assert answer["message"].endswith(
                "the decision is kept and takes effect when a worker runs. When a worker runs, the"
                " invoice needs a second person."
            )
            answer = await told(tools, "approve_invoice", first)
        assert answer["outcome"] == "already_approved_first"
        assert answer["message"].startswith("Already approved by you, and it needs a second person")
        assert await signals(desk, first) == 1
        with acting(BOB):
            answer = await told(tools, "approve_invoice", second)
        assert (answer["outcome"], answer["kept_decision"]["by"]) == ("decision_kept", BOB)
        assert answer["message"].endswith("When a worker runs, the invoice is approved.")
    async with worker_here(namespace.address, tmp_path, **LIMIT):
        await desk.until(approved, "completed")
        await desk.until(rejected, "rejected")
        await desk.until(second, "completed")
        await desk.once(first, lambda status: status.first_approval)
    assert not paid(tmp_path, first)


DEPENDS = "If two people must approve it, which isn't known yet, it "


async def test_while_the_rule_is_not_known_what_depends_on_it_is_told_and_sent(
    desk: Desk, namespace: Namespace, tmp_path: Path
) -> None:
    approved, rejected, alone, certain = [await desk.submit() for _ in range(4)]
    for invoice in (approved, rejected):
        await send(desk, invoice, f"+{ANN}")
    await send(desk, certain, f"-{ANN}")
    async with tools_in_memory(namespace.address) as tools:
        status = await tools.status({"id": approved.id})
        assert status["approval_rule_unknown"]
        assert f"{DEPENDS}needs a second person." in status["message"]
        with acting(BOB):
            answer = await told(tools, "approve_invoice", approved)
        assert (answer["outcome"], answer["kept_decision"]["by"]) == ("decision_kept", ANN)
        assert [one["by"] for one in answer["kept_decisions"]] == [ANN, BOB]
        unless = "is approved, unless one of them submitted it and may not approve it."
        assert (
            f"the invoice is approved if one person is enough. {DEPENDS}{unless}"
            in (answer["message"])
        )

        with acting(BOB):
            answer = await told(tools, "reject_invoice", rejected)
        assert answer["outcome"] == "decision_kept"
        assert (
            f"{DEPENDS}is rejected. To stop it in any case, call cancel_invoice."
            in (answer["message"])
        )
        with pytest.raises(Refused, match=r"can't be rejected now.*which isn't known yet.*cancel_"):
            await tools("reject_invoice", invoice_id=rejected.id)
        assert await signals(desk, rejected) == 2

        with acting(ANN):
            await told(tools, "approve_invoice", alone)
            answer = await told(tools, "approve_invoice", alone)
        assert answer["outcome"] == "already_approved"
        assert f"{DEPENDS}needs a second person." in answer["message"]
        assert await signals(desk, alone) == 1

        with pytest.raises(Refused, match="can't be approved now"):
            await tools("approve_invoice", invoice_id=certain.id)
        assert DEPENDS not in (await tools.status({"id": certain.id}))["message"]
        assert await signals(desk, certain) == 1
    async with worker_here(namespace.address, tmp_path, **LIMIT):
        completed = await desk.until(approved, "completed")
        assert completed.decision
        assert completed.decision.by == BOB
        await desk.until(rejected, "rejected")
        await desk.once(alone, lambda status: status.first_approval)
    assert not paid(tmp_path, alone)


@pytest.mark.parametrize("is_rule_known", [True, False])
async def test_the_second_person_is_asked_and_told_what_is_kept(
    is_rule_known: bool, desk: Desk, namespace: Namespace, tmp_path: Path
) -> None:
    asked: list[str] = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": True}

    invoice = await desk.submit()
    if is_rule_known:
        async with worker_here(namespace.address, tmp_path, **LIMIT):
            await desk.once(invoice, lambda status: status.required_approvals)
    await send(desk, invoice, f"+{ANN}")
    async with tools_in_memory(namespace.address, elicitation_handler=person) as tools:
        with acting(ANN):
            text = await tools("approve_invoice", invoice_id=invoice.id)
        assert text.startswith("Already approved")
        assert not asked
        with acting(BOB):
            text = await tools("approve_invoice", invoice_id=invoice.id)
    assert "Decisions are kept, in this order: approved by ann@desk1 on " in text
    [question] = asked
    assert "A decision is kept and takes effect when a worker runs: approved by ann@" in question
    async with worker_here(namespace.address, tmp_path, **LIMIT):
        await desk.until(invoice, "completed")


async def test_the_card_shows_a_kept_approval_and_does_not_call_a_rejection_certain(
    desk: Desk, namespace: Namespace
) -> None:
    invoice = await desk.submit()
    await send(desk, invoice, f"+{ANN}")
    async with tools_in_memory(namespace.address, extensions=[SHOWS_CARDS]) as tools:
        for name, can_be_decided in ((ANN, False), (BOB, True)):
            with acting(name):
                answer = await tools.client.call_tool("invoice_card", {"invoice_id": invoice.id})
                card: dict[str, Any] = answer.structured_content  # type: ignore[assignment]
            assert card["can_be_decided"] == can_be_decided
            assert "approved by ann@desk1" in card["approvals" if can_be_decided else "details"]
        assert answer.meta
        with acting(BOB):
            click = {"invoice_id": invoice.id, "approve": False, "seal": answer.meta["seal"]}
            answer = await tools.client.call_tool("decide_on_card", click)
        card = answer.structured_content  # type: ignore[assignment]
        assert (card["why_undecidable"], card["is_approval_kept"]) == ("A decision is kept", True)
        assert f"{DEPENDS}is rejected." in card["details"]
