"""The activity that reads from a history which decision came in time."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.history.v1 import HistoryEvent
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

import activities

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


class History:
    """A fake Temporal client, and a run with the given history."""

    def __init__(self, *signals: tuple[datetime, str, list[Payload]]) -> None:
        self.signals = signals
        self.error: RPCError | None = None

    def get_workflow_handle(self, workflow_id: str, *, run_id: str) -> "History":
        assert workflow_id == "invoice-INV-1"
        return self

    async def fetch_history_events(self) -> AsyncIterator[HistoryEvent]:
        if self.error:
            raise self.error
        for at, name, payloads in self.signals:
            event = HistoryEvent()
            event.event_time.FromDatetime(at)
            signal = event.workflow_execution_signaled_event_attributes
            signal.signal_name = name
            signal.input.CopyFrom(Payloads(payloads=payloads))
            yield event


async def asked(history: Any) -> dict[str, Any] | None:
    environment = ActivityEnvironment(history)
    environment.info = replace(
        environment.info, workflow_type="InvoiceWorkflow", workflow_id="invoice-INV-1"
    )
    return await environment.run(activities.decision_in_time, NOON.isoformat())


async def test_the_first_decision_in_time_is_taken_whatever_comes_with_it() -> None:
    before, after = NOON - timedelta(milliseconds=1), NOON
    nonsense = [Payload(metadata={"encoding": b"\xff\xfe"}, data=b"\x00"), Payload()]
    named = [Payload(data=b'{"by": "Ann", "reason": "as agreed"}')]
    found = await asked(History((before, "other", []), (before, "approve_invoice", named)))
    assert found
    assert (found["approved"], found["by"], found["reason"]) == (True, "Ann", "as agreed")
    assert datetime.fromisoformat(found["at"]) == before
    found = await asked(
        History((before, "reject_invoice", nonsense), (before, "approve_invoice", named))
    )
    assert found
    assert (found["approved"], found["by"]) == (False, None)
    assert await asked(History((after, "approve_invoice", named))) is None


async def test_a_service_that_does_not_answer_is_asked_again() -> None:
    history = History()
    history.error = RPCError("away", RPCStatusCode.UNAVAILABLE, b"")
    with pytest.raises(ApplicationError) as error:
        await asked(history)
    assert not error.value.non_retryable
    assert error.value.category == ApplicationErrorCategory.BENIGN
