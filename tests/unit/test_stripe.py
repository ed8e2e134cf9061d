"""Paying through Stripe: nothing is charged twice or lost, whatever its stand-in does."""

import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import stripe

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
from payments.stripe_gateway import StripeGateway, minor_units, open_stripe
from startup import StartupError
from stripe_stand_in import Fault, Step, StripeStandIn
from support import states

PAYMENT = Payment(
    "invoice-INV-1/line-1", "INV-1", "Hosting", Decimal("19.99"), "USD", "cus_A", "pm_visa"
)


@pytest.fixture
def gateway(stand_in: StripeStandIn) -> StripeGateway:
    return StripeGateway("sk_test_ok", "stripe test", stand_in.url)


def test_a_line_is_charged_to_the_customers_card(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    entry = pay_once(gateway, ledger, PAYMENT)
    [charge] = stand_in.charges
    assert charge["id"] == entry.reference
    assert (charge["amount"], charge["currency"]) == (1999, "usd")
    assert (charge["customer"], charge["payment_method"]) == ("cus_A", "pm_visa")
    assert pay_once(gateway, ledger, PAYMENT) == entry
    assert len(stand_in.charges) == 1


def test_an_id_of_any_letters_is_paid(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    invoice_id = "発" * 100
    key = f"invoice-{invoice_id}/line-500"
    assert pay_once(
        gateway,
        ledger,
        replace(PAYMENT, idempotency_key=key, invoice_id=invoice_id, item="☂" * 200),
    )
    assert stand_in.charged(invoice_id) == [key]


FAULTS: list[tuple[Step, Any]] = [
    ("create", "drop before"),
    ("create", "drop after"),
    ("confirm", "drop before"),
    ("confirm", "drop after"),
    *[
        (step, status)
        for step in ("create", "confirm")
        for status in (401, 403, 409, 429, 500, 503)
    ],
]


@pytest.mark.parametrize("hours", [0, 25])
@pytest.mark.parametrize(("step", "kind"), FAULTS)
def test_after_a_fault_the_line_is_charged_once(
    step: Step,
    kind: Any,
    hours: float,
    gateway: StripeGateway,
    ledger: SQLiteLedger,
    stand_in: StripeStandIn,
) -> None:
    fault = stand_in.lay(Fault(step, kind))
    with pytest.raises(GatewayUnavailable, match="Stripe is unavailable: "):
        pay_once(gateway, ledger, PAYMENT)
    assert fault.reached.is_set()
    assert "declined" not in states(ledger)
    stand_in.hours += hours
    assert pay_once(gateway, ledger, PAYMENT)
    assert stand_in.charged("INV-1") == [PAYMENT.idempotency_key]


def test_a_payment_in_one_step_would_be_charged_twice_after_a_day(
    gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    """Stripe forgets keys after 24 hours. So the ledger has each reference before it is paid."""
    gateway.pay(gateway.prepare(PAYMENT, 1), PAYMENT)
    stand_in.hours += 25
    gateway.pay(gateway.prepare(PAYMENT, 1), PAYMENT)
    assert len(stand_in.charges) == 2


def test_a_declined_line_is_charged_later_to_another_card(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    declined = replace(PAYMENT, payment_method="pm_declined")
    with pytest.raises(PaymentDeclined, match=r"declined by Stripe: Your card was declined\."):
        pay_once(gateway, ledger, declined)
    assert [intent["status"] for intent in stand_in.intents.values()] == ["canceled"]
    assert pay_once(gateway, ledger, PAYMENT)
    assert states(ledger) == ["declined", "paid"]
    assert stand_in.charged("INV-1") == [PAYMENT.idempotency_key]


def test_a_missing_customer_is_charged_after_the_correction(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    with pytest.raises(PaymentDeclined, match="No such customer: 'cus_typo'"):
        pay_once(gateway, ledger, replace(PAYMENT, customer="cus_typo"))
    assert pay_once(gateway, ledger, PAYMENT)
    assert len(stand_in.charges) == 1


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("pm_authenticate", "the customer would have to authenticate"),
        ("pm_of_another_customer", "It belongs to another Customer"),
    ],
)
def test_what_a_card_cannot_do_is_a_decline(
    card: str, reason: str, gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    with pytest.raises(PaymentDeclined, match=reason):
        pay_once(gateway, ledger, replace(PAYMENT, payment_method=card))
    assert [intent["status"] for intent in stand_in.intents.values()] == ["canceled"]


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("cancel", "drop before"),
        ("cancel", "drop after"),
        ("cancel", 500),
        ("retrieve", "drop before"),
        ("retrieve", 500),
    ],
)
def test_a_decline_is_not_reported_until_its_cancellation_is_certain(
    step: Step, kind: Any, gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    stand_in.lay(Fault(step, kind))
    declined = replace(PAYMENT, payment_method="pm_declined")
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, declined)
    assert states(ledger) == ["begun"]
    with pytest.raises(PaymentDeclined):
        pay_once(gateway, ledger, declined)
    assert states(ledger) == ["declined"]
    assert not stand_in.charges


def test_a_payment_that_takes_long_is_asked_for_until_it_is_settled(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    slow = replace(PAYMENT, payment_method="pm_slow")
    for _ in range(2):
        with pytest.raises(GatewayUnavailable, match="not settled the payment yet: processing"):
            pay_once(gateway, ledger, slow)
    [intent] = stand_in.intents.values()
    stand_in.settle(intent, "pm_slow")
    assert pay_once(gateway, ledger, slow).reference == intent["id"]
    assert len(stand_in.charges) == 1


def test_a_payment_cancelled_at_stripe_is_declined_and_can_be_made_again(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    stand_in.lay(Fault("confirm", "drop before"))
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, PAYMENT)
    [intent] = stand_in.intents.values()
    intent["status"] = "canceled"
    with pytest.raises(PaymentDeclined, match="the payment was cancelled there"):
        pay_once(gateway, ledger, PAYMENT)
    assert pay_once(gateway, ledger, PAYMENT)
    assert len(stand_in.charges) == 1


@pytest.mark.parametrize("step", ["create", "confirm"])
@pytest.mark.parametrize("kind", ["hold before", "hold after"])
def test_attempts_that_overlap_charge_once(
    step: Step, kind: Any, gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    """The first attempt's call is held, while a second attempt pays a day later."""
    fault = stand_in.lay(Fault(step, kind))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(pay_once, gateway, ledger, PAYMENT)
        assert fault.reached.wait(10)
        stand_in.hours += 25
        second = pay_once(gateway, ledger, PAYMENT)
        fault.release.set()
        assert first.result(20) == second
    assert stand_in.charged("INV-1") == [PAYMENT.idempotency_key]


def test_what_was_charged_without_an_answer_is_found_to_be_paid(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    stand_in.lay(Fault("confirm", "drop after"))
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, PAYMENT, 1)
    assert was_paid(gateway, ledger, PAYMENT, 1)
    assert states(ledger) == ["paid"]


@pytest.mark.parametrize("cancelled_there", [False, True])
def test_what_was_not_charged_is_never_charged_after_the_outcome_was_asked(
    cancelled_there: bool, gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    stand_in.lay(Fault("confirm", "drop before"))
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, PAYMENT, 1)
    [intent] = stand_in.intents.values()
    if cancelled_there:
        intent["status"] = "canceled"
    assert not was_paid(gateway, ledger, PAYMENT, 1)
    assert (intent["status"], states(ledger)) == ("canceled", ["declined"])


@pytest.mark.parametrize(
    ("step", "kind"),
    [(step, kind) for step in ("cancel", "retrieve") for kind in ("drop before", "drop after", 500)]
    + [("cancel", 429), ("retrieve", 401)],
)
def test_an_outcome_that_stripe_does_not_give_is_asked_again(
    step: Step, kind: Any, gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    stand_in.lay(Fault("confirm", "drop after"))
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, PAYMENT, 1)
    stand_in.lay(Fault(step, kind))
    with pytest.raises(GatewayUnavailable, match="Stripe is unavailable: "):
        was_paid(gateway, ledger, PAYMENT, 1)
    assert states(ledger) == ["begun"]
    assert was_paid(gateway, ledger, PAYMENT, 1)


def test_a_payment_that_takes_long_is_not_given_up(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    slow = replace(PAYMENT, payment_method="pm_slow")
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, slow, 1)
    with pytest.raises(GatewayUnavailable, match="not settled the payment yet: processing"):
        was_paid(gateway, ledger, slow, 1)
    [intent] = stand_in.intents.values()
    stand_in.settle(intent, "pm_slow")
    assert was_paid(gateway, ledger, slow, 1)


@pytest.mark.parametrize("step", ["create", "confirm"])
@pytest.mark.parametrize("kind", ["hold before", "hold after"])
def test_a_payer_that_is_held_while_the_outcome_is_asked_agrees_with_it(
    step: Step, kind: Any, gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    fault = stand_in.lay(Fault(step, kind))
    with ThreadPoolExecutor(1) as pool:
        payer = pool.submit(pay_once, gateway, ledger, PAYMENT, 1)
        assert fault.reached.wait(10)
        if kind == "hold after":  # wait until the stand-in has executed it
            wait_until(lambda: len(stand_in.charges if step == "confirm" else stand_in.intents))
        paid = was_paid(gateway, ledger, PAYMENT, 1)
        fault.release.set()
        if paid:
            assert payer.result(20).state == "paid"
        else:
            with pytest.raises(PaymentDeclined):
                payer.result(20)
    assert paid == ((step, kind) == ("confirm", "hold after"))
    assert len(stand_in.charges) == paid
    assert states(ledger) == ["paid" if paid else "declined"]


def wait_until(reached: Callable[[], object], bound: float = 10) -> None:
    give_up_at = time.monotonic() + bound
    while not reached():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_twenty_attempts_at_once_charge_once(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    together = threading.Barrier(20)

    def pay() -> object:
        together.wait()
        return pay_once(gateway, ledger, PAYMENT)

    with ThreadPoolExecutor(20) as pool:
        entrys = {attempt.result() for attempt in [pool.submit(pay) for _ in range(20)]}
    assert len(entrys) == len(stand_in.charges) == 1


def test_another_content_under_the_same_key_within_a_day_is_a_conflict(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    stand_in.lay(Fault("create", "drop after"))
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, PAYMENT)
    with pytest.raises(PaymentConflict, match="as another payment within the last 24 hours"):
        pay_once(gateway, ledger, replace(PAYMENT, amount=Decimal("1.00")))
    assert not stand_in.charges


def test_live_and_test_mode_do_not_finish_each_others_payments(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    live = StripeGateway("sk_live_ok", "stripe live", stand_in.url)
    stand_in.lay(Fault("confirm", "drop before"))
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, PAYMENT)
    with pytest.raises(WrongGateway, match="paid through stripe test, and this worker"):
        pay_once(live, ledger, PAYMENT)
    assert pay_once(gateway, ledger, PAYMENT)
    with pytest.raises(WrongGateway, match="paid through stripe test, and this worker"):
        pay_once(live, ledger, PAYMENT)
    assert len(stand_in.charges) == 1


def test_a_payment_that_the_account_does_not_know_is_not_taken_for_declined(
    gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    stand_in.lay(Fault("confirm", "drop before"))
    with pytest.raises(GatewayUnavailable):
        pay_once(gateway, ledger, PAYMENT)
    intents, stand_in.intents = stand_in.intents, {}
    with pytest.raises(GatewayUnavailable, match="No such payment_intent"):
        pay_once(gateway, ledger, PAYMENT)
    stand_in.intents = intents
    assert pay_once(gateway, ledger, PAYMENT)


def test_a_key_that_stripe_does_not_know_is_unavailable(
    ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    gateway = StripeGateway("sk_test_wrong", "stripe test", stand_in.url)
    with pytest.raises(GatewayUnavailable, match="Invalid API Key"):
        pay_once(gateway, ledger, PAYMENT)


@pytest.mark.parametrize("field", ["customer", "payment_method"])
def test_a_payment_without_a_customer_or_card_is_not_sent(
    field: str, gateway: StripeGateway, ledger: SQLiteLedger, stand_in: StripeStandIn
) -> None:
    with pytest.raises(InvalidPayment, match=f"^{field}: is required, since Stripe pays"):
        pay_once(gateway, ledger, replace(PAYMENT, **{field: None}))  # type: ignore[arg-type]
    assert not stand_in.intents


@pytest.mark.parametrize(
    ("amount", "currency", "units"),
    [
        ("19.99", "USD", 1999),
        ("0.01", "EUR", 1),
        ("9999999999.99", "USD", 999999999999),
        ("500.00", "JPY", 500),
        ("500.00", "KRW", 500),
        ("5.00", "ISK", 500),
        ("5.00", "UGX", 500),
        ("1.25", "KWD", 1250),
        ("19.99", "HUF", 1999),
    ],
)
def test_an_amount_is_sent_in_the_units_of_its_currency(
    amount: str, currency: str, units: int
) -> None:
    assert minor_units(Decimal(amount), currency) == units


@pytest.mark.parametrize(
    ("amount", "currency", "rule"),
    [
        ("5.50", "JPY", "must be whole in JPY"),
        ("5.01", "ISK", "must be whole in ISK"),
        ("5.001", "USD", "has too many decimals for USD"),
        ("5.0001", "KWD", "has too many decimals for KWD"),
    ],
)
def test_an_amount_that_its_currency_does_not_have_is_refused(
    amount: str, currency: str, rule: str
) -> None:
    with pytest.raises(InvalidPayment, match=rule):
        minor_units(Decimal(amount), currency)


ODD_ANSWERS = {
    "a list": (200, b"[]"),
    "null": (200, b"null"),
    "nothing": (204, b""),
    "without an id": (200, b'{"object": "payment_intent", "status": "succeeded"}'),
    "without a status": (200, b'{"object": "payment_intent", "id": "pi_1"}'),
    "an id of none": (200, b'{"id": null, "status": "succeeded"}'),
    "a deep one": (200, b'{"id": "pi_1", "status": "x", "a": %s}' % (b"[" * 9999 + b"]" * 9999)),
    "an error of none": (402, b'{"error": null}'),
    "an error in a list": (400, b'{"error": ["a"]}'),
    "an error without a kind": (400, b'{"error": {}}'),
    "a proxy's": (400, b"<html>Bad request</html>"),
    "one that never ends": (200, None),
}


@contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that answers each connection with `answer`, in a thread. Yields its address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(65536)
                answer(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("step", ["prepare", "pay"])
@pytest.mark.parametrize("odd", ODD_ANSWERS)
def test_an_answer_that_is_not_stripes_is_reported_in_words(odd: str, step: str) -> None:
    status, body = ODD_ANSWERS[odd]

    def answer(connection: socket.socket) -> None:
        head = f"HTTP/1.1 {status} So\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode() + (body or b""))
        while body is None:
            connection.sendall(b" " * 65536)

    with answering(answer) as url:
        gateway = StripeGateway("sk_test_ok", "stripe test", url)
        with pytest.raises(GatewayUnavailable, match="that isn't like one of Stripe's"):
            gateway.prepare(PAYMENT, 1) if step == "prepare" else gateway.pay("pi_1", PAYMENT)


@pytest.mark.parametrize("begun", ["", "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{"])
def test_an_answer_that_trickles_in_is_given_up(
    begun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments.stripe_gateway.CALL_SECONDS", 0.5)

    def answer(connection: socket.socket) -> None:
        connection.sendall(begun.encode() or b"HTTP/1.1 200 ")
        while True:
            connection.sendall(b" ")
            time.sleep(0.1)

    with answering(answer) as url:
        gateway = StripeGateway("sk_test_ok", "stripe test", url)
        with pytest.raises(GatewayUnavailable, match="gave no answer in time"):
            gateway.prepare(PAYMENT, 1)


@pytest.mark.parametrize("base", ["not a url", "ftp://x", "http://", "http://[::1", "127.0.0.1:9"])
def test_an_invalid_address_is_refused_at_the_start(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "sk_test_x")
    monkeypatch.setenv("STRIPE_API_BASE", base)
    with pytest.raises(StartupError, match="STRIPE_API_BASE must begin with"):
        open_stripe()


@pytest.mark.parametrize("key", ["", "pk_test_x", "hidden", "sk_x", "sk_tests_x", "sk_test_x\n"])
def test_a_key_that_does_not_say_its_mode_is_refused_and_not_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", key)
    with pytest.raises(StartupError, match="needs STRIPE_API_KEY, a secret") as refusal:
        open_stripe()
    assert not key or key not in str(refusal.value)


def test_a_key_that_does_not_fit_a_header_is_not_in_any_error(ledger: SQLiteLedger) -> None:
    gateway = StripeGateway("sk_test_x\n", "stripe test", "http://127.0.0.1:9")
    with pytest.raises(GatewayUnavailable) as failure:
        pay_once(gateway, ledger, PAYMENT)
    assert failure.value.__cause__ is None  # because Temporal writes causes into the history
    assert "sk_test_x" not in str(failure.value)


@pytest.mark.parametrize("key", ["sk_live_x", "rk_live_x", "sk_test_x", "rk_test_x"])
def test_the_mode_of_the_key_is_in_the_providers_name(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", key)
    assert open_stripe().name == f"stripe {key[3:7]}"


@pytest.mark.skipif(
    not os.environ.get("STRIPE_TEST_KEY", "").startswith("sk_test_"),
    reason="needs STRIPE_TEST_KEY, a test-mode key of Stripe's; nothing else runs against Stripe",
)
def test_stripe_itself_charges_once_and_declines(ledger: SQLiteLedger) -> None:
    key = os.environ["STRIPE_TEST_KEY"]
    client = stripe.StripeClient(key)
    customer = client.v1.customers.create({"description": "Tests of the invoice processor"})
    name = f"INV-{uuid4().hex}"
    payment = replace(
        PAYMENT,
        idempotency_key=f"invoice-{name}/line-1",
        invoice_id=name,
        customer=customer.id,
        payment_method=client.v1.payment_methods.attach(
            "pm_card_visa", {"customer": customer.id}
        ).id,
    )
    gateway = StripeGateway(key, "stripe test", stripe.DEFAULT_API_BASE)
    gateway.pay(gateway.prepare(payment, 1), payment)
    entry = pay_once(gateway, ledger, payment)
    assert pay_once(gateway, ledger, payment) == entry
    charges = client.v1.charges.list({"customer": customer.id}).data
    assert [charge.amount for charge in charges] == [1999]
    declined = replace(
        payment,
        idempotency_key=f"invoice-{name}/line-2",
        payment_method=client.v1.payment_methods.attach(
            "pm_card_chargeCustomerFail", {"customer": customer.id}
        ).id,
    )
    with pytest.raises(PaymentDeclined):
        pay_once(gateway, ledger, declined)
    client.v1.customers.delete(customer.id)
