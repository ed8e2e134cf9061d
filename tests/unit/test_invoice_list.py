"""The cursor of a list, and in which order open invoices are listed."""

import json
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from invoice_search import _Page
from invoices.answers import InvoiceStatus
from invoices.invoice_list import InvoiceList, ListCursor, Sums, key_of
from invoices.refusals import InvoiceError

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def a_status(name: str, **fields: Any) -> InvoiceStatus:
    content = {"state": "waiting", "status": "x", "submitted_at": NOON, "workflow_id": name}
    return InvoiceStatus.model_validate({**content, "invoice_id": name, **fields})


def test_open_invoices_are_listed_by_urgency() -> None:
    in_order = [
        a_status("urgent", deadline=NOON + timedelta(days=1)),
        a_status("earlier", deadline=NOON + timedelta(days=2), submitted_at=NOON - timedelta(1)),
        a_status("later", deadline=NOON + timedelta(days=2)),
        a_status("deadline not known"),
        a_status("paying", state="paying"),
        a_status("paying longer", state="paying", submitted_at=NOON - timedelta(1)),
        a_status("scheduled", state="scheduled", pay_on=NOON + timedelta(days=9)),
        a_status("scheduled later", state="scheduled", pay_on=NOON + timedelta(days=10)),
        a_status("unreadable", state="failed"),
    ]
    keys = [key_of(status, "run") for status in in_order]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "cursor",
    [
        ListCursor(which="waiting", since=NOON, until=NOON, after=(0, 10**18, -5, "run")),
        ListCursor(which="all", is_past_open=True),
        ListCursor.first("failed").past("a", NOON).past("b", NOON),
    ],
)
def test_a_cursor_survives_its_text(cursor: ListCursor) -> None:
    assert ListCursor.parse(str(cursor), cursor.which) == cursor
    assert str(cursor).isascii()
    assert len(str(cursor)) < 300


def test_a_cursor_has_the_runs_that_ended_at_its_time() -> None:
    cursor = ListCursor.first("failed").past("a", NOON).past("b", NOON).past("b", NOON)
    assert cursor.closed_runs == ("a", "b")
    earlier = cursor.past("c", NOON - timedelta(seconds=1))
    assert (earlier.closed_at, earlier.closed_runs) == (NOON - timedelta(seconds=1), ("c",))


@pytest.mark.parametrize(
    "fields",
    [
        {"since": "0001-01-01T00:00:00+24:00"},
        {"until": "2026-01-01T00:00:00"},
        {"closed_at": "' OR '1'='1"},
        {"after": [0, "1", 2, "run"]},
        {"after": [0, 1]},
        {"closed_runs": 5},
    ],
)
def test_an_altered_cursor_is_refused(fields: dict[str, Any]) -> None:
    altered = urlsafe_b64encode(json.dumps({"which": "all", **fields}).encode()).decode()
    with pytest.raises(InvoiceError, match="isn't a cursor"):
        ListCursor.parse(altered, "all")


def test_an_empty_list_names_the_state() -> None:
    assert InvoiceList.of([], Sums()).to_text("timed_out") == "There are no timed-out invoices."
    after_the_last = InvoiceList.of([])
    assert after_the_last.to_text("all") == "There are no more invoices."


def test_a_page_of_long_texts_stays_below_100_kb() -> None:
    long = "Ж" * 255
    decision = {"approved": True, "at": NOON, "by": "a@b", "reason": "Ж" * 1000}
    page = _Page()
    texts = {"supplier": long, "supplier_reference": long, "status": "Ж" * 500}
    while page.add(a_status("INV-1", state="failed", decision=decision, **texts)):
        pass
    assert 5 < len(page.invoices) < 50
    answer = InvoiceList.of(page.invoices, not_shown=1, next_cursor=ListCursor(which="all"))
    text = answer.to_text("all")
    content = answer.model_copy(update={"message": text}).to_structured()
    assert len(json.dumps(content, ensure_ascii=False).encode()) + len(text.encode()) < 100_000


def test_a_page_has_at_least_one_invoice_and_at_most_50() -> None:
    page = _Page()
    assert page.add(a_status("INV-1", replaces="x" * 200_000))
    assert not page.add(a_status("INV-2"))
    page = _Page()
    assert [page.add(a_status("INV-1")) for _ in range(51)] == [True] * 50 + [False]
