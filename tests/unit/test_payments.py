"""Paying a line once: `pay_once` with a gateway that counts, and the activities."""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from temporalio.activity import ActivityCancellationDetails
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment

import activities
from invoices.approvals import TwoPeopleRule
from invoices.invoice import AS_STARTED, BEFORE_1_1, Invoice
from invoices.messages import LedgerAnswer, LedgerQuestion, PaymentRequest, Terms
from invoices.paid_earlier import PaidEarlier
from payments.gateway import (
    GatewayUnavailable,
    InvalidPayment,
    Payment,
    PaymentConflict,
    PaymentDeclined,
    WrongGateway,
)
from payments.ledger import SQLiteLedger
from payments.pay_once import pay_once, was_paid
from payments.simulated import SimulatedGateway, decline_limit
from startup import StartupError
from support import payments, states

PAYMENT = Payment("invoice-INV-1/line-1", "INV-1", "Hosting", Decimal("19.99"), "USD", "cus_A")


class Provider:
    """A provider that never forgets its references, and fails on request."""

    name = "provider"

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.charged: list[str] = []
        self.stopped: list[str] = []
        self.fail_prepare: Exception | None = None
        self.fail_before: Exception | None = None
        """Raised before the provider charges."""
        self.fail_after: Exception | None = None
        """Raised after the provider has charged, as if its answer was lost."""
        self.fail_stop: Exception | None = None

    def check(self, payment: Payment) -> None:
        if payment.amount == 0:
            raise InvalidPayment("amount", "must be greater than 0")

    def prepare(self, payment: Payment, attempt: int) -> str:
        if self.fail_prepare:
            raise self.fail_prepare
        self.prepared.append(f"{payment.idempotency_key}/{attempt}/{len(self.prepared)}")
        return self.prepared[-1]

    def pay(self, reference: str, payment: Payment) -> None:
        assert reference in self.prepared
        if reference in self.stopped and reference not in self.charged:
            raise PaymentDeclined("it was stopped")
        if self.fail_before:
            raise self.fail_before
        if reference not in self.charged:
            self.charged.append(reference)
        if self.fail_after:
            raise self.fail_after

    def stop(self, reference: str) -> bool:
        if self.fail_stop:
            raise self.fail_stop
        self.stopped.append(reference)
        return reference in self.charged


class OtherProvider(Provider):
    name = "other"


@pytest.fixture
def provider() -> Provider:
    return Provider()


def test_the_same_payment_again_returns_the_first_entry(
    provider: Provider, ledger: SQLiteLedger
) -> None:
    first = pay_once(provider, ledger, PAYMENT)
    assert first.at.tzinfo == UTC
    assert pay_once(provider, ledger, PAYMENT) == first
    assert provider.prepared == provider.charged == [first.reference]


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
def test_an_unknown_outcome_is_paid_again_under_the_same_reference(
    fault: str, provider: Provider, ledger: SQLiteLedger
) -> None:
    setattr(provider, fault, GatewayUnavailable("no answer"))
    with pytest.raises(GatewayUnavailable):
        pay_once(provider, ledger, PAYMENT)
    assert states(ledger) == ["begun"]
    setattr(provider, fault, None)
    assert pay_once(provider, ledger, PAYMENT).reference == provider.prepared[0]
    assert len(provider.charged) == 1
    assert states(ledger) == ["paid"]


def test_a_ledger_that_is_away_after_the_payment_learns_of_it_later(
    provider: Provider, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:

        def away(_: object) -> None:
            raise GatewayUnavailable("the payment ledger is unavailable")

        context.setattr(ledger, "settle", away)
        with pytest.raises(GatewayUnavailable):
            pay_once(provider, ledger, PAYMENT)
    assert pay_once(provider, ledger, PAYMENT)
    assert len(provider.charged) == 1


def test_what_never_began_leaves_nothing_behind(provider: Provider, ledger: SQLiteLedger) -> None:
    provider.fail_prepare = GatewayUnavailable("no answer")
    with pytest.raises(GatewayUnavailable):
        pay_once(provider, ledger, PAYMENT)
    assert not states(ledger)


@pytest.mark.parametrize("step", ["fail_prepare", "fail_before"])
def test_a_decline_is_final_for_its_attempt_and_the_next_one_is_new(
    step: str, provider: Provider, ledger: SQLiteLedger
) -> None:
    setattr(provider, step, PaymentDeclined("no money"))
    with pytest.raises(PaymentDeclined, match="no money"):
        pay_once(provider, ledger, PAYMENT)
    assert states(ledger) == ["declined"]
    setattr(provider, step, None)
    other = replace(PAYMENT, amount=Decimal("10.00"), customer="cus_B")
    assert pay_once(provider, ledger, other).reference.startswith(f"{PAYMENT.idempotency_key}/2/")
    assert states(ledger) == ["declined", "paid"]


@pytest.mark.parametrize(
    "change", [{"amount": Decimal("20.00")}, {"currency": "EUR"}, {"item": "Other"}]
)
@pytest.mark.parametrize("state", ["begun", "paid"])
def test_a_different_payment_under_the_same_key_is_refused(
    state: str, change: dict[str, Any], provider: Provider, ledger: SQLiteLedger
) -> None:
    begin(provider, ledger, state)
    other = replace(PAYMENT, **change)
    with pytest.raises(PaymentConflict) as refusal:
        pay_once(provider, ledger, other)
    assert str(PAYMENT) in str(refusal.value)
    assert str(other) in str(refusal.value)
    assert states(ledger) == [state]


def begin(provider: Provider, ledger: SQLiteLedger, state: str) -> None:
    """Brings the payment as far as `state`."""
    if state == "begun":
        provider.fail_before = GatewayUnavailable("no answer")
        with pytest.raises(GatewayUnavailable):
            pay_once(provider, ledger, PAYMENT)
        provider.fail_before = None
    else:
        pay_once(provider, ledger, PAYMENT)


def test_another_card_may_be_tried_for_a_payment_that_was_begun(
    provider: Provider, ledger: SQLiteLedger
) -> None:
    begin(provider, ledger, "begun")
    assert pay_once(provider, ledger, replace(PAYMENT, payment_method="pm_other"))


def test_another_customer_is_not_charged_for_a_payment_that_was_begun(
    provider: Provider, ledger: SQLiteLedger
) -> None:
    begin(provider, ledger, "begun")
    with pytest.raises(PaymentConflict, match=r"from cus_A .* from cus_B"):
        pay_once(provider, ledger, replace(PAYMENT, customer="cus_B"))


def test_what_is_paid_stays_paid_whoever_is_to_be_charged_for_the_rest(
    provider: Provider, ledger: SQLiteLedger
) -> None:
    begin(provider, ledger, "paid")
    assert pay_once(provider, ledger, replace(PAYMENT, customer="cus_B", payment_method="pm_B"))
    assert len(provider.charged) == 1


@pytest.mark.parametrize("line", [1, 2])
@pytest.mark.parametrize("state", ["begun", "paid"])
def test_an_invoice_begun_through_one_gateway_is_not_paid_through_another(
    state: str, line: int, provider: Provider, ledger: SQLiteLedger
) -> None:
    begin(provider, ledger, state)
    other = OtherProvider()
    payment = replace(PAYMENT, idempotency_key=f"invoice-INV-1/line-{line}")
    with pytest.raises(WrongGateway, match=r"paid through provider, and .* pays through other: "):
        pay_once(other, ledger, payment)
    assert not other.prepared
    assert pay_once(provider, ledger, payment)


def test_a_declined_payment_binds_to_no_gateway(provider: Provider, ledger: SQLiteLedger) -> None:
    provider.fail_before = PaymentDeclined("no money")
    with pytest.raises(PaymentDeclined):
        pay_once(provider, ledger, PAYMENT)
    assert pay_once(OtherProvider(), ledger, PAYMENT)


def test_what_can_never_be_paid_is_not_prepared(provider: Provider, ledger: SQLiteLedger) -> None:
    with pytest.raises(InvalidPayment, match="amount: must be greater than 0"):
        pay_once(provider, ledger, replace(PAYMENT, amount=Decimal(0)))
    assert not provider.prepared


class Overlapping(Provider):
    """A provider during whose `prepare` or `pay` another call of `pay_once` pays the line."""

    def __init__(self, ledger: SQLiteLedger, step: str) -> None:
        super().__init__()
        self.ledger = ledger
        self.step = step

    def overlap(self, step: str) -> None:
        if self.step == step:
            self.step = "done"
            pay_once(self, self.ledger, PAYMENT)

    def prepare(self, payment: Payment, attempt: int) -> str:
        reference = super().prepare(payment, attempt)
        self.overlap("prepare")
        return reference

    def pay(self, reference: str, payment: Payment) -> None:
        self.overlap("pay")
        super().pay(reference, payment)


def test_of_two_gateways_that_begin_at_once_one_pays(ledger: SQLiteLedger) -> None:
    second = OtherProvider()

    class Overtaken(Provider):
        def prepare(self, payment: Payment, attempt: int) -> str:
            reference = super().prepare(payment, attempt)
            pay_once(second, ledger, payment)
            return reference

    first = Overtaken()
    with pytest.raises(WrongGateway, match="paid through other, and this worker pays through prov"):
        pay_once(first, ledger, PAYMENT)
    assert (len(first.charged), len(second.charged)) == (0, 1)


@pytest.mark.parametrize("step", ["prepare", "pay"])
def test_attempts_that_overlap_pay_once(step: str, ledger: SQLiteLedger) -> None:
    provider = Overlapping(ledger, step)
    entry = pay_once(provider, ledger, PAYMENT)
    assert provider.charged == [entry.reference]
    assert states(ledger) == ["paid"]


class OverlappedDecline(Overlapping):
    """The payment of the other call is declined."""

    def overlap(self, step: str) -> None:
        if self.step == step:
            self.fail_before = PaymentDeclined("no money")
            with pytest.raises(PaymentDeclined, match="no money"):
                super().overlap(step)
            self.fail_before = None


def test_a_decline_of_an_overlapping_attempt_ends_this_one_too(ledger: SQLiteLedger) -> None:
    provider = OverlappedDecline(ledger, "prepare")
    with pytest.raises(PaymentDeclined, match="in another attempt"):
        pay_once(provider, ledger, PAYMENT)
    assert not provider.charged


def declined_once(provider: Provider, ledger: SQLiteLedger) -> None:
    provider.fail_before = PaymentDeclined("no money")
    with pytest.raises(PaymentDeclined):
        pay_once(provider, ledger, PAYMENT, 1)
    provider.fail_before = None


def test_an_attempt_that_is_over_begins_no_other(provider: Provider, ledger: SQLiteLedger) -> None:
    declined_once(provider, ledger)
    with pytest.raises(PaymentDeclined, match="attempt 1 to pay this line has ended"):
        pay_once(provider, ledger, replace(PAYMENT, amount=Decimal("1.00")), 1)
    assert (len(provider.prepared), states(ledger)) == (1, ["declined"])
    assert pay_once(provider, ledger, PAYMENT, 2).attempt == 2


def test_an_attempt_that_is_over_does_not_go_on_with_a_later_one(
    provider: Provider, ledger: SQLiteLedger
) -> None:
    declined_once(provider, ledger)
    provider.fail_before = GatewayUnavailable("no answer")
    with pytest.raises(GatewayUnavailable):
        pay_once(provider, ledger, replace(PAYMENT, payment_method="pm_new"), 2)
    provider.fail_before = None
    with pytest.raises(PaymentDeclined, match="has ended"):
        pay_once(provider, ledger, replace(PAYMENT, payment_method="pm_old"), 1)
    assert not was_paid(provider, ledger, PAYMENT, 1)
    assert (provider.charged, provider.stopped) == ([], [])
    assert pay_once(provider, ledger, PAYMENT, 2)


def test_what_a_later_attempt_has_paid_is_paid(provider: Provider, ledger: SQLiteLedger) -> None:
    declined_once(provider, ledger)
    entry = pay_once(provider, ledger, PAYMENT, 2)
    assert pay_once(provider, ledger, PAYMENT, 1) == entry
    assert was_paid(provider, ledger, PAYMENT, 1)


@pytest.mark.parametrize("attempt", [None, 1])
@pytest.mark.parametrize(
    ("fault", "paid"), [("fail_prepare", False), ("fail_before", False), ("fail_after", True)]
)
def test_an_attempt_without_an_answer_is_settled_for_good(
    fault: str, paid: bool, attempt: int | None, provider: Provider, ledger: SQLiteLedger
) -> None:
    setattr(provider, fault, GatewayUnavailable("no answer"))
    with pytest.raises(GatewayUnavailable):
        pay_once(provider, ledger, PAYMENT, attempt)
    setattr(provider, fault, None)
    assert was_paid(provider, ledger, PAYMENT, attempt) is paid
    assert states(ledger) == ["paid" if paid else "declined"]
    if not paid:
        with pytest.raises(PaymentDeclined):
            pay_once(provider, ledger, PAYMENT, 1)
    assert len(provider.charged) == paid


def test_through_another_gateway_only_what_was_never_begun_is_known(
    provider: Provider, ledger: SQLiteLedger
) -> None:
    begin(provider, ledger, "begun")
    with pytest.raises(WrongGateway):
        was_paid(OtherProvider(), ledger, PAYMENT, 1)
    second_line = replace(PAYMENT, idempotency_key="invoice-INV-1/line-2")
    assert not was_paid(OtherProvider(), ledger, second_line, 1)
    assert states(ledger) == ["begun", "declined"]


def test_nothing_is_settled_while_the_provider_gives_no_outcome(
    provider: Provider, ledger: SQLiteLedger
) -> None:
    begin(provider, ledger, "begun")
    provider.fail_stop = GatewayUnavailable("no answer")
    with pytest.raises(GatewayUnavailable):
        was_paid(provider, ledger, PAYMENT, 1)
    assert states(ledger) == ["begun"]


def test_another_payment_under_the_key_is_not_reported_as_this_one(
    provider: Provider, ledger: SQLiteLedger
) -> None:
    begin(provider, ledger, "paid")
    with pytest.raises(PaymentConflict):
        was_paid(provider, ledger, replace(PAYMENT, amount=Decimal("1.00")), 1)


class GivenUp(Overlapping):
    """During the call, the run asks for the outcome, as if the worker was frozen."""

    def overlap(self, step: str) -> None:
        if self.step == step:
            self.step = "done"
            assert not was_paid(self, self.ledger, PAYMENT, 1)


@pytest.mark.parametrize("step", ["prepare", "pay"])
def test_a_payer_that_wakes_after_its_run_pays_nothing(step: str, ledger: SQLiteLedger) -> None:
    provider = GivenUp(ledger, step)
    with pytest.raises(PaymentDeclined):
        pay_once(provider, ledger, PAYMENT, 1)
    assert not provider.charged
    assert states(ledger) == ["declined"]


def test_a_simulated_payment_counts_only_if_the_ledger_has_it_as_paid(
    tmp_path: Path, ledger: SQLiteLedger
) -> None:
    class Frozen(SimulatedGateway):
        def pay(self, reference: str, payment: Payment) -> None:
            super().pay(reference, payment)
            assert not was_paid(self, ledger, payment, 1)

    with pytest.raises(PaymentDeclined):
        pay_once(Frozen(tmp_path), ledger, PAYMENT, 1)
    assert states(ledger) == ["declined"]


@pytest.fixture
def gateway(tmp_path: Path) -> SimulatedGateway:
    return SimulatedGateway(tmp_path)


def test_the_simulated_gateway_is_unavailable_while_the_file_is_there(
    gateway: SimulatedGateway, ledger: SQLiteLedger, tmp_path: Path
) -> None:
    (tmp_path / "gateway-down").touch()
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, PAYMENT)
    (tmp_path / "gateway-down").unlink()
    assert pay_once(gateway, ledger, PAYMENT)


def test_an_amount_above_the_limit_is_declined(tmp_path: Path, ledger: SQLiteLedger) -> None:
    gateway = SimulatedGateway(tmp_path, decline_over=Decimal("19.98"))
    with pytest.raises(PaymentDeclined, match=r"above the limit of \$19\.98"):
        pay_once(gateway, ledger, PAYMENT)
    assert not payments(tmp_path)


def test_an_amount_at_the_limit_is_paid(tmp_path: Path, ledger: SQLiteLedger) -> None:
    assert pay_once(SimulatedGateway(tmp_path, decline_over=Decimal("19.99")), ledger, PAYMENT)


def test_what_is_paid_is_not_declined_later(
    gateway: SimulatedGateway, ledger: SQLiteLedger, tmp_path: Path
) -> None:
    first = pay_once(gateway, ledger, PAYMENT)
    assert pay_once(SimulatedGateway(tmp_path, Decimal(1)), ledger, PAYMENT) == first


@pytest.mark.parametrize("text", ["much", "NaN", "Infinity"])
def test_a_limit_that_is_not_an_amount_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVOICE_DECLINE_OVER", text)
    with pytest.raises(StartupError, match="INVOICE_DECLINE_OVER must be an amount"):
        decline_limit()


def an_activity(**info: Any) -> ActivityEnvironment:
    """An activity of an invoice's workflow, unless `info` says otherwise."""
    environment = ActivityEnvironment()
    of_invoice = {
        "workflow_type": "InvoiceWorkflow",
        "workflow_id": "invoice-INV-1",
        "current_attempt_scheduled_time": datetime.now(UTC),
    }
    environment.info = replace(ActivityEnvironment.default_info(), **{**of_invoice, **info})
    return environment


@pytest.fixture
def opened(
    gateway: SimulatedGateway, ledger: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> SQLiteLedger:
    """The ledger of the activities, which pay through the simulated gateway."""
    monkeypatch.setattr(activities, "open_payments", lambda: (gateway, ledger))
    return ledger


@pytest.mark.parametrize("gateway", ["Stripe", "none"])
def test_an_unknown_gateway_is_refused(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYMENT_GATEWAY", gateway)
    with pytest.raises(StartupError, match="PAYMENT_GATEWAY must be simulated or stripe"):
        activities.open_payments.__wrapped__()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"item": "Hosting", "amount": 5000.00}, "Processed payment for Hosting: $5000.0"),
        ({"item": "Hosting", "amount": "19.99"}, "Processed payment for Hosting: $19.99"),
        ({"item": "A", "amount": "5.00", "currency": "EUR"}, "Processed payment for A: EUR 5.00"),
        ({}, "Processed payment for Unknown: $0.0"),
    ],
)
async def test_the_activity_returns_the_tutorials_text(
    line: dict[str, object], text: str, opened: SQLiteLedger
) -> None:
    assert await an_activity().run(activities.process_payment, line) == text


async def refused(activity: Any, argument: dict[str, Any], **info: Any) -> ApplicationError:
    with pytest.raises(ApplicationError) as refusal:
        await an_activity(**info).run(activity, argument)
    return refusal.value


@pytest.mark.parametrize(
    ("info", "caller"),
    [
        ({"workflow_type": "Payer `\x1b[2J`"}, "a workflow of the type Payer ’"),
        ({"workflow_type": "invoiceworkflow"}, "a workflow of the type invoiceworkflow"),
        ({"workflow_type": None, "workflow_id": None}, "no workflow"),
        ({"workflow_id": None}, "no workflow"),
    ],
)
@pytest.mark.parametrize(
    "activity",
    [activities.process_payment, activities.payment_outcome, activities.payments_made],
)
async def test_the_activities_serve_an_invoices_workflow_only(
    activity: Any, info: dict[str, Any], caller: str, opened: SQLiteLedger
) -> None:
    error = await refused(activity, {"id": "INV-1", "amount": "5.00", "lines": []}, **info)
    assert f"was asked for by {caller}" in error.message
    assert "\x1b" not in error.message
    assert error.type == "NotAnInvoice"
    assert error.non_retryable
    assert error.category == ApplicationErrorCategory.BENIGN
    assert not states(opened)


@pytest.mark.parametrize("amount", ["much", "NaN", -5, None, [1], "1E+999999", 10**13])
async def test_the_activity_refuses_what_is_not_an_amount(
    amount: object, opened: SQLiteLedger, tmp_path: Path
) -> None:
    error = await refused(activities.process_payment, {"amount": amount})
    assert "amount: must be a number" in error.message
    assert error.type == "InvalidInvoice"
    assert error.non_retryable
    assert not payments(tmp_path)


@pytest.mark.parametrize("item", ["a\0b", "\ud800"])
async def test_the_activity_refuses_text_that_no_ledger_can_store(
    item: str, opened: SQLiteLedger
) -> None:
    error = await refused(activities.process_payment, {"item": item, "amount": "5.00"})
    assert "item: must be text without NUL" in error.message
    assert error.non_retryable


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("lines[0].item", {"lines": [{"item": "s3cret\0", "amount": "5.00"}]}),
        ("customer", {"customer": "s3cret\0"}),
        ("payment_method", {"payment_method": "s3cret\0"}),
    ],
)
@pytest.mark.parametrize("context", [AS_STARTED, BEFORE_1_1])
async def test_a_run_with_text_that_no_ledger_can_store_is_told_so_by_the_activities(
    field: str, fields: dict[str, Any], context: str, opened: SQLiteLedger
) -> None:
    content = {**an_entry("INV-1", "5.00"), **fields}
    invoice = Invoice.model_validate_json(json.dumps(content), context=context)
    terms = Terms.of(invoice, None, None)
    question = LedgerQuestion.about(invoice, terms).to_json()
    request = PaymentRequest.of_line(invoice.lines[0], terms, 1).to_json()
    for error in (
        await refused(activities.payments_made, question, is_local=True),
        await refused(activities.process_payment, request),
        await refused(activities.payment_outcome, request),
    ):
        assert error.type == "InvalidInvoice"
        assert error.non_retryable
        name = field.removeprefix("lines[0].")
        assert error.message.endswith(f"{name}: must be text without NUL or half characters")
        # Temporal keeps the cause's text too.
        assert "s3cret" not in f"{error.message} {error.__cause__}"
    assert not states(opened)


async def test_an_odd_item_that_1_0_has_paid_is_reported(
    opened: SQLiteLedger, gateway: SimulatedGateway
) -> None:
    pay_once(gateway, opened, replace(PAYMENT, item="a\0b"))
    answer = await an_activity().run(activities.payments_made, an_entry("INV-1", "19.99"))
    [line] = LedgerAnswer.model_validate(answer).lines or []
    assert (line.line, line.item) == (1, "a\0b")


async def test_an_invoice_of_another_ledger_is_not_paid(
    opened: SQLiteLedger, tmp_path: Path
) -> None:
    line = {"item": "Hosting", "amount": "19.99", "ledger": "0123456789abcdef" * 2}
    error = await refused(activities.process_payment, line)
    assert error.type == "WrongLedger"
    assert not error.non_retryable
    assert "belongs to the payment ledger 01234567" in error.message
    assert f"this worker keeps {opened.id[:8]} in payments.db" in error.message
    assert not payments(tmp_path)
    await an_activity().run(activities.process_payment, {**line, "ledger": opened.id})
    assert payments(tmp_path)


async def test_a_ledger_that_another_client_names_is_sanitized(opened: SQLiteLedger) -> None:
    line = {"item": "Hosting", "amount": "19.99", "ledger": "\x1b[2J\nPaid"}
    error = await refused(activities.process_payment, line)
    assert "the payment ledger \ufffd(2J Pai, and" in error.message


@pytest.mark.parametrize("odd", ["a\0", "\ud800", 5])
@pytest.mark.parametrize("field", ["ledger", "gateway"])
def test_an_answer_names_a_ledger_and_a_gateway_that_a_memo_can_have(
    field: str, odd: object
) -> None:
    """Another client can complete the activity."""
    with pytest.raises(ValidationError):
        LedgerAnswer.model_validate({field: odd})


@pytest.mark.parametrize("activity", [activities.process_payment, activities.payments_made])
async def test_an_invoice_of_another_gateway_is_not_paid(
    activity: Any, opened: SQLiteLedger
) -> None:
    invoice = {**an_entry("INV-1", "5.00"), "item": "Hosting", "amount": "5.00"}
    error = await refused(activity, {**invoice, "bound_to_gateway": "stripe live"})
    assert error.type == "WrongGateway"
    assert not error.non_retryable
    assert "the invoice is paid through stripe live" in error.message
    assert "this worker pays through simulated: start a worker with the PAYMENT" in error.message
    assert len(error.message) < 300  # because the status shows it
    assert not states(opened)
    for gateway in ("simulated", None):  # None: a run from before gateways were recorded
        await an_activity().run(activity, {**invoice, "bound_to_gateway": gateway})


@pytest.mark.parametrize("activity", [activities.process_payment, activities.payments_made])
async def test_a_field_named_gateway_does_not_bind_the_invoice(
    activity: Any, opened: SQLiteLedger
) -> None:
    """Version 1.1 sends all fields of a line, and those of an invoice."""
    invoice = {**an_entry("INV-1", "5.00"), "item": "Router", "amount": "5.00"}
    assert await an_activity().run(activity, {**invoice, "gateway": "10.0.0.1"})


@pytest.mark.parametrize("attempt", ["second", 7])
async def test_a_field_named_attempt_does_not_number_the_payment(
    attempt: object, opened: SQLiteLedger
) -> None:
    line = {"item": "Assembly", "amount": "5.00", "attempt": attempt}
    await an_activity(activity_id="line-1").run(activities.process_payment, line)
    [entry] = opened.entries("INV-1")
    assert (entry.state, entry.attempt) == ("paid", 1)


def test_long_fields_of_an_old_run_do_not_reach_an_activity() -> None:
    """Before 1.1, clients could use `customer` for anything, of any type and size."""
    lines = [{"item": "Pen", "amount": "1.00", "description": "Ж" * 100_000, "customer": "cus_B"}]
    fields = {"id": "INV-1", "lines": lines, "customer": "Ж" * 300_000, "payment_method": ["card"]}
    invoice = Invoice.model_validate_json(json.dumps(fields), context=BEFORE_1_1)
    terms = Terms.of(invoice, None, None)
    assert terms.customer is None
    assert terms.payment_method == "['card']"
    assert len(json.dumps(LedgerQuestion.about(invoice, terms).to_json())) < 1000
    request = PaymentRequest.of_line(invoice.lines[0], terms, 1).to_json()
    assert (request["item"], request["amount"]) == ("Pen", "1.00")
    assert "description" not in request


@pytest.mark.parametrize("state", ["begun", "paid"])
async def test_what_a_ledger_has_begun_binds_a_later_submission(
    state: str, opened: SQLiteLedger, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(provider, opened, state)
    question = an_entry("INV-1", "5.00", "0.00")  # with a line that the other gateway couldn't pay
    monkeypatch.setattr(activities, "open_payments", lambda: (OtherProvider(), opened))
    error = await refused(activities.payments_made, question)
    assert error.type == "WrongGateway"
    assert "paid through provider, and this worker pays through other" in error.message
    assert not error.non_retryable


def an_entry(invoice_id: str, *amounts: str) -> dict[str, Any]:
    lines = [{"item": f"Item {n}", "amount": amount} for n, amount in enumerate(amounts, start=1)]
    return {"id": invoice_id, "lines": lines, "currency": "EUR"}


async def test_what_was_paid_is_reported_by_line_even_for_removed_lines(
    opened: SQLiteLedger, gateway: SimulatedGateway
) -> None:
    assert await an_activity().run(activities.payments_made, an_entry("INV-1", "5.00")) == {
        "ledger": opened.id,
        "gateway": "simulated",
        "lines": [],
        "declined": {},
    }
    for invoice_id, number in (("INV-1", 10), ("INV-1", 2), ("INV-1/line-2", 1)):
        key = f"invoice-{invoice_id}/line-{number}"
        payment = Payment(key, invoice_id, f"Item {number}", Decimal("5.00"), "EUR")
        pay_once(gateway, opened, payment)
    made = await an_activity().run(activities.payments_made, an_entry("INV-1", "5.00"))
    assert [line["line"] for line in made["lines"]] == [2, 10]
    assert made["lines"][0] == {
        "line": 2,
        "item": "Item 2",
        "amount": "5.00",
        "currency": "EUR",
    }


async def test_declines_are_reported_as_the_number_of_attempts(
    opened: SQLiteLedger, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities, "open_payments", lambda: (provider, opened))
    provider.fail_prepare = PaymentDeclined("no money")
    for _ in range(2):
        with pytest.raises(PaymentDeclined):
            pay_once(provider, opened, replace(PAYMENT, idempotency_key="invoice-INV-1/line-2"))
    made = await an_activity().run(activities.payments_made, an_entry("INV-1", "5.00"))
    assert (made["lines"], made["declined"]) == ([], {"2": 2})
    earlier = PaidEarlier.of(LedgerAnswer.model_validate(made))
    assert [earlier.next_attempt(number) for number in (1, 2)] == [1, 3]


def test_a_worker_of_an_earlier_version_does_not_say_which_attempt_is_next() -> None:
    answer = LedgerAnswer.model_validate({"ledger": "0" * 32, "lines": []})
    assert PaidEarlier.of(answer).next_attempt(1) is None


@pytest.mark.parametrize(
    ("fault", "lines", "declined"), [("fail_after", [1], {}), ("fail_before", [], {"1": 1})]
)
async def test_payments_that_an_earlier_run_left_begun_are_settled_before_the_answer(
    fault: str,
    lines: list[int],
    declined: dict[str, int],
    opened: SQLiteLedger,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activities, "open_payments", lambda: (provider, opened))
    setattr(provider, fault, GatewayUnavailable("no answer"))
    with pytest.raises(GatewayUnavailable):
        pay_once(provider, opened, PAYMENT, 1)
    setattr(provider, fault, None)
    question = an_entry("INV-1", "5.00")
    provider.fail_stop = GatewayUnavailable("no answer")
    assert (await refused(activities.payments_made, question)).type == "GatewayUnavailable"
    provider.fail_stop = None
    made = await an_activity().run(activities.payments_made, question)
    assert ([line["line"] for line in made["lines"]], made["declined"]) == (lines, declined)


async def test_a_worker_that_was_frozen_while_asking_does_not_stop_its_runs_own_payment(
    opened: SQLiteLedger, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities, "open_payments", lambda: (provider, opened))
    asked_at = datetime.now(UTC)
    begin(provider, opened, "begun")
    question = an_entry("INV-1", "5.00")
    error = await refused(
        activities.payments_made, question, current_attempt_scheduled_time=asked_at
    )
    assert error.type == "GatewayUnavailable"
    assert (provider.stopped, states(opened)) == ([], ["begun"])


class SlowProvider(Provider):
    """It answers once `may_answer` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.may_answer = threading.Event()

    def pay(self, reference: str, payment: Payment) -> None:
        self.asked.set()
        assert self.may_answer.wait(20)
        super().pay(reference, payment)


@pytest.fixture
def slow(opened: SQLiteLedger, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowProvider]:
    slow = SlowProvider()
    monkeypatch.setattr(activities, "open_payments", lambda: (slow, opened))
    yield slow
    slow.fail_before = GatewayUnavailable("too late")  # the ledger is closed next
    slow.may_answer.set()


LINE = {"item": "Hosting", "amount": "19.99"}


async def test_a_payment_under_way_sends_heartbeats_from_the_start_to_the_end(
    slow: SlowProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert timedelta(seconds=3 * activities.HEARTBEAT_SECONDS) < activities.HEARTBEAT_TIMEOUT
    monkeypatch.setattr(activities, "HEARTBEAT_SECONDS", 0.01)
    beats: list[bool] = []

    def beat(*_: object) -> None:
        beats.append(slow.asked.is_set())
        if len(beats) == 5:
            slow.may_answer.set()

    environment = an_activity(activity_id="line-1")
    environment.on_heartbeat = beat
    assert "Hosting" in await environment.run(activities.process_payment, LINE)
    assert len(beats) >= 5


async def test_a_quick_payment_sends_no_heartbeat(opened: SQLiteLedger) -> None:
    environment = an_activity(activity_id="line-1")
    environment.on_heartbeat = lambda *_: pytest.fail("a call to the service for nothing")
    await environment.run(activities.process_payment, LINE)


@pytest.mark.parametrize("wish", ["cancel_requested", "paused", "reset"])
async def test_a_payment_under_way_is_finished_though_it_is_asked_to_stop(
    wish: str, slow: SlowProvider, opened: SQLiteLedger
) -> None:
    environment = an_activity(activity_id="line-1")
    paying = asyncio.create_task(environment.run(activities.process_payment, LINE))
    await asyncio.to_thread(slow.asked.wait, 20)
    environment.cancel(ActivityCancellationDetails(**{wish: True}))
    await asyncio.sleep(0)
    assert not paying.done()
    slow.may_answer.set()
    assert "Hosting" in await paying
    assert states(opened) == ["paid"]


@pytest.mark.parametrize("end", ["worker_shutdown", "not_found", "timed_out"])
async def test_a_payment_that_nobody_waits_for_holds_no_slot_of_the_worker(
    end: str, slow: SlowProvider
) -> None:
    environment = an_activity(activity_id="line-1")
    paying = asyncio.create_task(environment.run(activities.process_payment, LINE))
    await asyncio.to_thread(slow.asked.wait, 20)
    environment.cancel(ActivityCancellationDetails(**{end: True}))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(paying, 5)


async def test_a_payment_without_an_answer_ends_before_temporal_gives_it_up(
    slow: SlowProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert activities.PAYMENT_SECONDS == 25
    monkeypatch.setattr(activities, "PAYMENT_SECONDS", 0.05)
    error = await refused(activities.process_payment, LINE, activity_id="line-1")
    assert (error.type, error.non_retryable) == ("GatewayUnavailable", False)
    assert error.message == "the payment provider or the ledger gave no answer within 0.05 s"


async def test_the_outcome_is_asked_for_under_the_id_of_the_payment(
    opened: SQLiteLedger,
) -> None:
    line = {"item": "Hosting", "amount": "19.99", "ledger_attempt": 1}
    await an_activity(activity_id="line-1").run(activities.process_payment, line)
    assert await an_activity(activity_id="line-1").run(activities.payment_outcome, line) is True
    assert await an_activity(activity_id="line-2").run(activities.payment_outcome, line) is False
    # A worker with another gateway answers too, so that the invoice can be cancelled there.
    line["bound_to_gateway"] = "stripe live"
    assert await an_activity(activity_id="line-3").run(activities.payment_outcome, line) is False
    del line["bound_to_gateway"]
    error = await refused(activities.process_payment, line, activity_id="line-2")
    assert (error.type, error.non_retryable) == ("PaymentDeclined", True)


async def test_a_line_that_the_gateway_can_never_pay_is_named(
    opened: SQLiteLedger, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities, "open_payments", lambda: (provider, opened))
    error = await refused(activities.payments_made, an_entry("INV-1", "5.00", "0.00"))
    assert error.message == "lines[1].amount: must be greater than 0"
    assert error.type == "InvalidInvoice"
    assert error.non_retryable


async def test_a_ledger_that_is_away_is_retried(opened: SQLiteLedger, tmp_path: Path) -> None:
    (tmp_path / "payments.db").rename(tmp_path / "elsewhere.db")
    for activity in (activities.payments_made, activities.process_payment):
        error = await refused(activity, an_entry("INV-1", "5.00"))
        assert error.type == "GatewayUnavailable"
        assert not error.non_retryable
        assert "the payment ledger is unavailable: payments.db is missing" in error.message


async def test_a_runs_first_question_binds_the_gateway_even_while_the_ledger_is_away(
    opened: SQLiteLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "payments.db").rename(tmp_path / "elsewhere.db")
    first = an_activity(is_local=True)
    question = an_entry("INV-1", "5.00")
    assert await first.run(activities.payments_made, question) == {"gateway": "simulated"}
    monkeypatch.setenv("INVOICE_NOTIFY_URL", "http://127.0.0.1:9/")
    answer = await first.run(activities.payments_made, question)
    assert answer == {"gateway": "simulated", "notify": True}


async def test_a_runs_first_question_waits_two_seconds_for_the_ledger(
    opened: SQLiteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert activities.FIRST_ANSWER_SECONDS == 2
    monkeypatch.setattr(activities, "FIRST_ANSWER_SECONDS", 0.1)
    answers = threading.Event()

    def providers(invoice_id: str) -> set[str]:
        assert answers.wait(20)
        return set()

    monkeypatch.setattr(opened, "providers", providers)
    question = an_entry("INV-1", "5.00")
    first = an_activity(is_local=True).run(activities.payments_made, question)
    assert await first == {"gateway": "simulated"}
    answers.set()
    later = await an_activity().run(activities.payments_made, question)
    assert later["ledger"] == opened.id


async def test_a_runs_first_question_is_refused_where_another_gateway_has_begun(
    opened: SQLiteLedger, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(provider, opened, "begun")
    monkeypatch.setattr(activities, "open_payments", lambda: (OtherProvider(), opened))
    error = await refused(activities.payments_made, an_entry("INV-1", "5.00"), is_local=True)
    assert error.type == "WrongGateway"


@pytest.mark.parametrize("wrong", ["ledger", "gateway"])
async def test_a_runs_first_question_is_told_of_two_people_by_the_wrong_worker_too(
    wrong: str, opened: SQLiteLedger, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = an_entry("INV-1", "5.00")
    if wrong == "ledger":
        question["ledger"] = "0123456789abcdef" * 2
    else:
        begin(provider, opened, "begun")
    first = an_activity(is_local=True)
    error = await refused(activities.payments_made, question, is_local=True)
    assert error.type == f"Wrong{wrong.capitalize()}"
    rule = TwoPeopleRule.parse("4.99")
    monkeypatch.setattr(activities, "two_people_rule", lambda: rule)
    monkeypatch.setenv("INVOICE_NOTIFY_URL", "http://127.0.0.1:9/")
    answer = await first.run(activities.payments_made, question)
    assert answer == {"required_approvals": "two_people"}
    assert LedgerAnswer.model_validate(answer).is_of_another
    error = await refused(activities.payments_made, question)  # before paying
    assert error.type == f"Wrong{wrong.capitalize()}"
