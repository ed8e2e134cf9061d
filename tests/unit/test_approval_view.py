"""What a person decides on: the question, the card and the refusals say the same about it."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from approval.card import InvoiceCard
from approval.elicitation import render_question
from invoices.answers import InvoiceStatus
from invoices.approval_view import ApprovalView, InvoiceView
from invoices.invoice import Invoice
from invoices.refusals import NamedTotal, content_to_be_shown, expect_total
from invoices.status import AWAITING_APPROVAL
from support import an_invoice

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
HOSTILE = "Pens”\n2. $0.01 for “Ink\u202e <b>"


def waiting(invoice: Invoice, **fields: Any) -> InvoiceStatus:
    return InvoiceStatus(
        invoice_id=invoice.id,
        workflow_id=f"invoice-{invoice.id}",
        state="waiting",
        status=AWAITING_APPROVAL,
        submitted_at=NOON,
        line_count=len(invoice.lines),
        total=invoice.total,
        currency=invoice.currency,
        **{"paid_earlier_lines": 0, **fields},
    )


def test_the_question_and_the_card_say_the_same() -> None:
    invoice = Invoice.model_validate(
        an_invoice(
            customer="Acme",
            payment_method="4242",
            currency="EUR",
            supplier="Northwind “Web” Ltd",
            supplier_reference="4711",
            due_date="2026-12-31",
        )
    )
    paid = {"paid_lines": 1, "paid_amount": Decimal("5000.00"), "paid_earlier_lines": 1}
    status = waiting(invoice, **paid)
    view = ApprovalView.of(invoice, status, reason="as “agreed”")
    card = InvoiceCard.of(view, status)
    assert (card.paid_earlier, card.to_pay) == ("1 line, EUR 5,000.00", "EUR 2,000.00")
    assert render_question(view).splitlines() == [
        f"Pay invoice {invoice.id}: 2 lines, {card.total}?",
        f"Paid earlier: {card.paid_earlier}. To pay: {card.to_pay}.",
        f"{card.bill}.",
        f"{card.charged}.",
        "Reason that will be kept: “as 'agreed'”",
        f"1. {card.lines[0].amount} for “{card.lines[0].item}”: “{card.lines[0].description}”"
        " (paid earlier)",
        f"2. {card.lines[1].amount} for “{card.lines[1].item}”: “{card.lines[1].description}”",
    ]
    assert [line.paid_earlier for line in card.lines] == [True, False]
    assert card.bill == "From “Northwind 'Web' Ltd”, their reference “4711”, due 2026-12-31"


def test_a_refusal_names_lines_and_who_is_charged_as_the_question_does() -> None:
    invoice = Invoice.model_validate(an_invoice(customer="Acme", supplier="Northwind"))
    view = InvoiceView.of(invoice)
    with pytest.raises(Exception, match="is for") as refusal:
        expect_total(invoice, NamedTotal(Decimal(1), "USD"))
    for text in (str(refusal.value), str(content_to_be_shown(invoice, "code", "Why."))):
        assert text.endswith(
            f"{view.bill}. {view.charged}. Lines: {'; '.join(map(str, view.lines))}."
        )


@pytest.mark.parametrize(
    ("paid", "paid_earlier", "to_pay"),
    [
        ({"paid_earlier_lines": None}, "not known", "at most $7,000.00"),
        ({"paid_earlier_lines": 0}, None, "$7,000.00"),
        (
            {"paid_earlier_lines": 1, "paid_lines": 1, "paid_amount": Decimal("5000.00")},
            "1 line, $5,000.00",
            "$2,000.00",
        ),
    ],
)
def test_what_was_paid_earlier_is_shown_where_it_is_known(
    paid: dict[str, Any], paid_earlier: str | None, to_pay: str
) -> None:
    invoice = Invoice.model_validate(an_invoice())
    view = ApprovalView.of(invoice, waiting(invoice, **paid))
    assert (view.paid_earlier, view.to_pay) == (paid_earlier, to_pay)


def test_an_id_that_could_be_taken_for_another_is_pointed_out_on_both() -> None:
    invoice = Invoice.model_validate(an_invoice(id="О-INV"))
    status = waiting(invoice)
    view = ApprovalView.of(invoice, status)
    assert view.caution.startswith("Take care with its id")
    assert render_question(view).splitlines()[1] == view.caution
    assert InvoiceCard.of(view, status).details == view.caution


def test_a_card_after_the_deadline_has_it_and_no_buttons() -> None:
    invoice = Invoice.model_validate(an_invoice())
    status = waiting(invoice, deadline=NOON)
    card = InvoiceCard.of(ApprovalView.of(invoice, status), status)
    assert (card.deadline, card.can_be_decided) == (NOON, False)


def test_an_items_text_stays_within_its_line_and_quotation_marks() -> None:
    [line] = InvoiceView.of(
        Invoice.model_validate(an_invoice(lines=[{"item": HOSTILE, "amount": "9.90"}]))
    ).lines
    assert str(line) == "1. $9.90 for “Pens' 2. $0.01 for 'Ink\N{REPLACEMENT CHARACTER} ‹b›”"


@pytest.mark.parametrize(
    ("count", "rest"),
    [
        (3, []),
        (4, ["and 1 more line of $2.00 at most, together $1.00"]),
        (6, ["and 3 more lines of $4.00 at most, together $6.00"]),
    ],
)
def test_the_largest_lines_keep_their_order(count: int, rest: list[str]) -> None:
    lines = [{"item": "Tea", "amount": f"{amount}.00"} for amount in range(1, count + 1)]
    texts = InvoiceView.of(Invoice.model_validate(an_invoice(lines=lines))).largest_lines(3)
    numbers = range(count - 2, count + 1)
    assert texts == [*(f"{number}. ${number}.00 for “Tea”" for number in numbers), *rest]
