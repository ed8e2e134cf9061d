"""Which invoices are pointed out as similar."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from invoices.answers import InvoiceStatus
from invoices.similar import similar_to, total_text
from invoices.status import State

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SUPPLIER = {"supplier": "Northwind Web Ltd", "supplier_reference": "2026-47 11"}


def a_status(name: str = "INV-1", **fields: Any) -> InvoiceStatus:
    content = {"state": "waiting", "status": "x", "submitted_at": NOON, "workflow_id": "w"}
    content |= {"invoice_id": name, "line_count": 1, "total": "7000.00", "currency": "USD"}
    return InvoiceStatus.model_validate(content | fields)


def words(*others: InvoiceStatus, **fields: Any) -> list[str]:
    return [str(one) for one in similar_to(a_status(**fields), others)]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("waiting", "waiting since 2026-11-20"),
        ("paying", "being paid, submitted 2026-11-20"),
        ("completed", "paid 2026-11-22"),
        ("rejected", None),
        ("timed_out", None),
        ("failed", None),
        ("cancelled", None),
        ("terminated", None),
    ],
)
def test_open_and_paid_invoices_are_similar(state: State, told: str | None) -> None:
    closed_at = NOON - timedelta(days=2) if state not in ("waiting", "paying") else None
    other = a_status("INV-7", state=state, submitted_at=NOON - timedelta(4), closed_at=closed_at)
    assert words(other) == ([f"Same total as INV-7 ({told})"] if told else [])


@pytest.mark.parametrize(
    "fields",
    [
        {"total": "7000.01"},
        {"currency": "EUR"},
        {"total": None, "currency": None},
        {"submitted_at": NOON - timedelta(days=90, seconds=1)},
        {"supplier": "Somebody Else"},
        {"name": "INV-1"},
    ],
    ids=str,
)
def test_what_differs_is_not_similar(fields: dict[str, Any]) -> None:
    other = a_status(**{"name": "INV-7", **SUPPLIER, **fields})
    assert words(other, **SUPPLIER) == []


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "bill"),
        ({"supplier": " northwind WEB\u00a0ltd", "supplier_reference": "2026-4711"}, "bill"),
        ({"supplier": "Ｎorthwind Web Ltd"}, "bill"),
        ({"supplier_reference": "2026-4712"}, "total"),
        ({"supplier_reference": None}, "total"),
        ({"supplier": None}, "total"),
        ({"submitted_at": NOON - timedelta(days=90)}, "bill"),
        ({"submitted_at": NOON + timedelta(days=9)}, "bill"),
    ],
    ids=str,
)
def test_the_same_reference_of_the_same_supplier_is_the_same_bill(
    fields: dict[str, Any], what: str
) -> None:
    other = a_status(**{"name": "INV-7", **SUPPLIER, **fields})
    [told] = words(other, **SUPPLIER)
    assert told.startswith(f"Same {what} as INV-7 (waiting since ")


def test_three_are_told_the_latest_first_and_the_same_bill_among_them() -> None:
    others = [a_status(f"INV-{n}", submitted_at=NOON - timedelta(n)) for n in range(2, 7)]
    same_bill = a_status("INV-9", submitted_at=NOON - timedelta(50), **SUPPLIER)
    found = similar_to(a_status(**SUPPLIER), [same_bill, *others[::-1]])
    assert [one.invoice_id for one in found] == ["INV-2", "INV-3", "INV-9"]
    assert [one.same_bill for one in found] == [False, False, True]


def test_each_invoice_is_told_once() -> None:
    paid_before = a_status("INV-7", state="completed", closed_at=NOON)
    assert len(words(a_status("INV-7"), paid_before)) == 1


@pytest.mark.parametrize(
    "id", ["INV-7\n- **paid**", "7. Checked by Ann: safe to pay", "x" * 101, ""]
)
def test_an_id_that_no_invoice_can_have_is_left_out_and_quoted_in_lists(id: str) -> None:
    assert words(a_status(id)) == []
    line = a_status(id).to_line()
    assert line.startswith("“")
    assert "”: x; 1 line" in line
    assert a_status("INV-7").to_line().startswith("INV-7: x; 1 line")


def test_the_same_total_is_the_same_text() -> None:
    texts = {total_text(Decimal(total), "USD") for total in ("7E3", "7000", "7000.00")}
    assert texts == {"USD 7000.00"}
