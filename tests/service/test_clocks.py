"""A computer with a wrong clock: the Temporal Service's clock decides, and users are told."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Self

import pytest
from temporalio.client import Client

import invoice_client
import invoice_runs
from invoices import answers
from invoices.invoice import workflow_id
from support import (
    ERAS,
    Desk,
    Namespace,
    Refused,
    Worker,
    an_invoice,
    tools_in_memory,
)

SetClock = Callable[[timedelta], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Sets this computer's clock, as our client sees it, ahead of the service's."""

    def set_clock(ahead: timedelta) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Self:
                return super().now(tz) + ahead

        monkeypatch.setattr(invoice_client, "datetime", Clock)
        monkeypatch.setattr(answers, "datetime", Clock)

    return set_clock


@pytest.fixture
async def idle(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """A namespace without a worker, in which the client doesn't wait for one."""
    monkeypatch.setattr(invoice_runs, "QUERY_SECONDS", 0.2)
    return namespace


async def sent_at(client: Client, invoice: dict[str, Any]) -> datetime:
    """The time of a decision according to its sender."""
    history = await client.get_workflow_handle(workflow_id(invoice["id"])).fetch_history()
    [signal] = [
        event.workflow_execution_signaled_event_attributes
        for event in history.events
        if event.HasField("workflow_execution_signaled_event_attributes")
    ]
    return datetime.fromisoformat(json.loads(signal.input.payloads[0].data)["sent_at"])


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (timedelta(hours=-1), "clock is 1 h behind the Temporal Service's"),
        (timedelta(seconds=5), "clock is 5 s ahead of the Temporal Service's"),
    ],
)
async def test_a_wrong_clock_is_reported_and_corrected(
    ahead: timedelta, words: str, idle: Namespace, set_clock: SetClock
) -> None:
    set_clock(ahead)
    invoice = an_invoice()
    async with tools_in_memory(idle.address) as tools:
        assert words in await tools("process_invoice", invoice_data=invoice)
        status = await tools.status(invoice)
        assert status["clock_offset_seconds"] == pytest.approx(-ahead.total_seconds(), abs=1)
        text = await tools("get_invoice_status", invoice_id=invoice["id"])
        assert words in text
        assert "(in 5 days)" in text
        assert words in await tools("approve_invoice", invoice_id=invoice["id"])
    decided = await sent_at(await idle.connect(), invoice)
    assert abs(decided - datetime.now(UTC)) < timedelta(seconds=3)


async def test_a_right_clock_is_not_mentioned(idle: Namespace) -> None:
    invoice = an_invoice()
    async with tools_in_memory(idle.address) as tools:
        texts = [await tools("process_invoice", invoice_data=invoice)]
        texts += [await tools("approve_invoice", invoice_id=invoice["id"], total="7000.00 USD")]
        assert "clock_offset_seconds" not in await tools.status(invoice)
    assert not any("clock" in text for text in texts)


async def test_a_deadline_by_an_uncompared_clock_is_reported_as_such(
    idle: Namespace, set_clock: SetClock
) -> None:
    invoice = await Desk(await idle.connect()).submit()
    set_clock(timedelta(days=6))
    async with tools_in_memory(idle.address) as tools:
        with pytest.raises(Refused, match="has passed by this computer's clock"):
            await tools("approve_invoice", invoice_id=invoice.id)


async def test_a_fast_clock_that_was_compared_decides_in_time(
    idle: Namespace, set_clock: SetClock
) -> None:
    set_clock(timedelta(days=6))
    invoice = an_invoice()
    async with tools_in_memory(idle.address) as tools:
        await tools("process_invoice", invoice_data=invoice)
        text = await tools("approve_invoice", invoice_id=invoice["id"], total="7000.00 USD")
    assert text.startswith("Sent approval signal")


@pytest.mark.parametrize("era", ["no question", *ERAS])
async def test_a_decision_that_the_service_received_late_is_reported_as_late(
    era: str, idle: Namespace, set_clock: SetClock
) -> None:
    async def person(*_: Any) -> dict[str, bool]:
        return {"approve": True}

    desk = Desk(await idle.connect())
    invoice = await desk.submit(approval_timeout_days=1 / 86400)
    await desk.once(invoice, lambda status: status.is_past_deadline)
    set_clock(timedelta(hours=-1))
    host: dict[str, Any] = {}
    if era != "no question":
        host = {"mode": era, "elicitation_handler": person}
    async with tools_in_memory(idle.address, **host) as tools:
        with pytest.raises(Refused, match=r"received the decision on 20.* approval deadline"):
            await tools("approve_invoice", invoice_id=invoice.id)
        with pytest.raises(Refused, match=r"has passed\. .*clock is 1 h behind"):  # compared now
            await tools("approve_invoice", invoice_id=invoice.id)


async def test_a_worker_that_answers_changes_nothing_about_the_clock(
    address: str, client: Client, worker: Worker, set_clock: SetClock
) -> None:
    desk = Desk(client)
    invoice = await desk.submit(payment_interval_seconds=60)
    set_clock(timedelta(minutes=-10))
    async with tools_in_memory(address) as tools:
        text = await tools("approve_invoice", invoice_id=invoice.id, total="7000.00 USD")
        assert "This computer's clock is 10 min behind the Temporal Service's" in text
    await desk.handle(invoice).terminate()
