"""The activities of an invoice's workflow.

They pay a line, find out whether a payment was made, look up what was paid earlier, and find the
first decision that was in time and who cancelled the invoice.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError
from temporalio import activity
from temporalio.api.history.v1 import HistoryEvent
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError

from invoices.approvals import TwoPeopleRule, that_matter
from invoices.invoice import (
    INVOICE_WORKFLOW,
    invoice_id_of,
    line_id,
    line_id_of,
    line_number,
    payment_key,
    workflow_id,
)
from invoices.messages import (
    LedgerAnswer,
    LedgerQuestion,
    LineToPay,
    PaidLine,
    PaymentRequest,
    Terms,
)
from invoices.status import DECISIONS, Cancellation, Decision
from invoices.wording import currency_sign, describe_validation_errors, sanitized
from notices import notify_url
from payments.gateway import (
    GatewayUnavailable,
    InvalidPayment,
    Payment,
    PaymentConflict,
    PaymentDeclined,
    PaymentGateway,
    WrongGateway,
    expect_gateway,
)
from payments.ledger import Ledger, open_ledger
from payments.pay_once import pay_once, settled_entries, was_paid
from payments.simulated import SimulatedGateway, decline_limit
from settings import read_setting
from startup import StartupError, data_directory
from temporal_service.executions import cancel_request, date_by_originals
from temporal_service.payloads import first_data
from temporal_service.traces import record_outcome

T = TypeVar("T")

PAYMENT_SECONDS = 25
"""The limit for an attempt. Temporal's is 30 s, so the workflow still learns why it failed."""
HEARTBEAT_SECONDS: float = 3
"""An activity that takes longer than this sends Temporal a heartbeat this often."""
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
"""How long Temporal waits for a heartbeat before it tries an activity again."""
QUESTION_SECONDS = 12
"""The limit for each of the two questions to the ledger that one answer needs."""
FIRST_ANSWER_SECONDS = 2
"""The limit for a run's first question to the ledger. The workflow itself allows it 3 s."""
# Each pool has twice as many threads as a worker runs payments at once, because an attempt that
# timed out keeps its thread until the limits of the provider and the ledger end it. Questions have
# their own pool, so that invoices can be submitted while payments hang. The event loop's pool isn't
# used, because the process would wait for its threads when it ends.
_PAYING = ThreadPoolExecutor(40, "paying")
_ASKING = ThreadPoolExecutor(40, "asking")


@cache
def open_payments() -> tuple[PaymentGateway, Ledger]:
    """The payment gateway and the ledger, one of each for the process.

    `PAYMENT_GATEWAY` is `simulated`, the default, or `stripe`.

    Raises:
        StartupError: one of them, or its settings, can't be used.
    """
    directory = data_directory()
    gateway: PaymentGateway
    match read_setting("PAYMENT_GATEWAY"):
        case "simulated":
            gateway = SimulatedGateway(directory, decline_limit())
        case "stripe":
            # Imported only if it is chosen, because the SDK is optional and slow to import.
            try:
                from payments.stripe_gateway import open_stripe
            except ImportError:
                raise StartupError(
                    "PAYMENT_GATEWAY=stripe needs Stripe's SDK: uv run --extra stripe worker.py"
                ) from None
            gateway = open_stripe()
        case other:
            raise StartupError(f"PAYMENT_GATEWAY must be simulated or stripe, not {other!r}.")
    return gateway, open_ledger(directory)


@cache
def two_people_rule() -> TwoPeopleRule:
    """`INVOICE_TWO_PEOPLE_OVER` and `INVOICE_SUBMITTER_MAY_APPROVE`.

    Raises:
        StartupError: one of them can't be read.
    """
    submitter = read_setting("INVOICE_SUBMITTER_MAY_APPROVE")
    if submitter not in ("yes", "no"):
        raise StartupError(f"INVOICE_SUBMITTER_MAY_APPROVE must be yes or no, not {submitter!r}.")
    limits = read_setting("INVOICE_TWO_PEOPLE_OVER")
    try:
        return TwoPeopleRule.parse(limits, submitter == "yes")
    except ValueError:
        raise StartupError(
            "INVOICE_TWO_PEOPLE_OVER must be an amount such as 1000.00, or amounts by currency such"
            f" as USD=1000,EUR=900,*=1000, not {limits!r}."
        ) from None


class WrongLedger(Exception):
    """The invoice belongs to a different ledger from this worker's."""


@activity.defn
async def payments_made(invoice: dict[str, Any]) -> dict[str, Any]:
    """Looks up what was paid of an invoice earlier, including lines that it no longer has.

    Payments that earlier runs began but didn't settle are settled first. Those that weren't made
    by then never will be.

    Takes the JSON of a `LedgerQuestion`, and returns that of a `LedgerAnswer`. A run's first
    question is a local activity. It is answered within 2 s even if the ledger is unavailable,
    because the answer names the gateway, and the run is bound to that from its start. If the
    invoice belongs to a different ledger or gateway, it is answered only that two people must
    approve, if they must.

    Raises:
        ApplicationError: of one of these types. Not retried: `InvalidInvoice`, if this worker's
            gateway can never pay one of the lines; `NotAnInvoice`, as for `process_payment`.
            Retried: `GatewayUnavailable`, if the ledger doesn't answer a later question or the
            provider doesn't say whether a payment was made; `WrongLedger` or `WrongGateway`, if the
            invoice belongs to a different ledger or gateway.
    """
    info = activity.info()
    caller = _invoice_workflow_id(info)
    gateway, ledger = open_payments()
    answer = LedgerAnswer(gateway=gateway.name, notify=notify_url() is not None)
    with _as_application_errors(invoice_id_of(caller)):
        question = LedgerQuestion.model_validate(invoice)
        total = sum((line.amount for line in question.lines), Decimal(0))
        answer.required_approvals = two_people_rule().required_for(total, question.currency)
        seconds = FIRST_ANSWER_SECONDS if info.is_local else PAYMENT_SECONDS
        try:
            _expect_ledger(ledger, question)
            async with asyncio.timeout(seconds):
                begun_through = await _ask(ledger.providers, question.id)
                expect_gateway(gateway, begun_through | _gateway_of(question))
                _expect_payable(gateway, question)
                entries = await _ask(ledger.entries, question.id)
                if any(entry.state == "begun" for entry in entries):
                    # This worker may have been frozen while the run went on to its own payments.
                    # Those began after this attempt was scheduled, and mustn't be settled here.
                    until = info.current_attempt_scheduled_time
                    settling = (settled_entries, gateway, ledger, question.id, until)
                    entries = await _within(PAYMENT_SECONDS, _PAYING, *settling)
        except (WrongLedger, WrongGateway) as error:
            # That one approval is enough, only the right worker can say.
            if not (info.is_local and answer.required_approvals):
                raise
            activity.logger.warning("%s: asked again before paying: %s", question.id, error)
            return LedgerAnswer(required_approvals=answer.required_approvals).to_json()
        except (GatewayUnavailable, TimeoutError) as error:
            reason = str(error) or f"the payment ledger gave no answer in {seconds} s"
            if not info.is_local:
                raise GatewayUnavailable(reason) from error
            activity.logger.warning("%s: asked again before paying: %s", question.id, reason)
            return answer.to_json()
    paid: dict[int, Payment] = {}
    declined: dict[int, int] = {}
    for entry in entries:
        known_line = line_number(line_id_of(entry.payment.idempotency_key, question.id))
        if known_line and entry.state == "paid":
            paid[known_line] = entry.payment
        elif known_line:
            declined[known_line] = entry.attempt
    lines = [
        PaidLine(line=number, item=payment.item, amount=payment.amount, currency=payment.currency)
        for number, payment in sorted(paid.items())
    ]
    answer.ledger, answer.lines, answer.declined = ledger.id, lines, declined
    return answer.to_json()


@activity.defn
async def process_payment(line_item: dict[str, Any]) -> str:
    """Pays a line. Takes the JSON of a `PaymentRequest`; the tutorial sends some of its fields.

    The workflow id and the activity id identify the line. They are the same in every attempt and in
    every later run for this invoice, so the line is paid once, however often this runs.

    Raises:
        ApplicationError: of one of these types. Retried: `GatewayUnavailable`, `WrongLedger`,
            `WrongGateway`. Not retried: `PaymentDeclined`, `PaymentConflict`, `InvalidInvoice`, and
            `NotAnInvoice` if the caller isn't an `InvoiceWorkflow`.
    """
    gateway, ledger = open_payments()
    with _payment_of(line_item, ledger, "Processing payment") as (payment, request):
        expect_gateway(gateway, _gateway_of(request))
        # In a thread: a gateway may block, and the event loop carries every other invoice.
        paying = (pay_once, gateway, ledger, payment, request.ledger_attempt)
        await _to_its_end(_within(PAYMENT_SECONDS, _PAYING, *paying))
    record_outcome("paid")
    sign = currency_sign(payment.currency)
    return f"Processed payment for {payment.item}: {sign}{payment.amount}"


@activity.defn
async def payment_outcome(line_item: dict[str, Any]) -> bool:
    """Whether a line was paid by a `process_payment` that ended without a result.

    Takes the same argument, under the same activity id. If the line wasn't paid, that attempt never
    will pay it, even if a worker that was frozen resumes it. If the attempt was never begun, a
    worker with a different gateway can say so too.

    Raises:
        ApplicationError: as for `process_payment`, except `PaymentDeclined`.
    """
    gateway, ledger = open_payments()
    with _payment_of(line_item, ledger, "Looking for the payment") as (payment, request):
        return await _within(
            PAYMENT_SECONDS, _PAYING, was_paid, gateway, ledger, payment, request.ledger_attempt
        )


@contextmanager
def _payment_of(
    line_item: dict[str, Any], ledger: Ledger, what: str
) -> Iterator[tuple[Payment, PaymentRequest]]:
    """The payment and the request of the current activity; `what` describes it in the log."""
    info = activity.info()
    caller = _invoice_workflow_id(info)
    invoice_id = invoice_id_of(caller)
    where = f"{invoice_id} {info.activity_id}"
    with _as_application_errors(where):
        request = PaymentRequest.model_validate(line_item)
        payment = _payment(payment_key(caller, info.activity_id), invoice_id, request, request)
        activity.logger.info(
            "%s: %s - %s%s (%s)",
            what,
            sanitized(payment.item, 200),
            currency_sign(payment.currency),
            payment.amount,
            where,
        )
        _expect_ledger(ledger, request)
        yield payment, request


@activity.defn
async def decision_in_time(
    deadline: str, all_that_matter: bool = False
) -> dict[str, Any] | list[dict[str, Any]] | None:
    """The first decision on this run that the Temporal Service received before `deadline`.

    If two people may have to approve, `all_that_matter` asks for a list of all that can matter.

    The times come from the event history, because a sender's clock can't be trusted, and a workflow
    can't see when a signal was received. Takes a time in ISO 8601; returns the JSON of a
    `Decision`, or None.

    Raises:
        ApplicationError: of type `ServiceUnavailable`, to be retried, or `NotAnInvoice`.
    """
    info = activity.info()
    workflow_id = _invoice_workflow_id(info)
    assert info.workflow_run_id, "it has a workflow"
    until = datetime.fromisoformat(deadline)
    try:
        decisions = await _decisions_received(workflow_id, info.workflow_run_id)
    except RPCError as error:
        raise _history_unavailable(error) from error
    in_time = [decision for decision in decisions if decision.at < until]
    if all_that_matter:
        return [decision.model_dump(mode="json") for decision in that_matter(in_time)]
    return in_time[0].model_dump(mode="json") if in_time else None


@activity.defn
async def cancellation_request() -> dict[str, Any] | None:
    """Who has asked the Temporal Service to cancel this run, when and why: a `Cancellation`'s JSON.

    A workflow is told only the reason. None if the history doesn't have the request.

    Raises:
        ApplicationError: of type `ServiceUnavailable`, to be retried, or `NotAnInvoice`.
    """
    info = activity.info()
    workflow_id = _invoice_workflow_id(info)
    assert info.workflow_run_id, "it has a workflow"
    try:
        found = await cancel_request(activity.client(), workflow_id, info.workflow_run_id)
    except RPCError as error:
        raise _history_unavailable(error) from error
    if found is None:
        return None
    cancellation = Cancellation.from_request(found.identity, found.reason, found.at)
    return cancellation.model_dump(mode="json")


def _history_unavailable(error: RPCError) -> ApplicationError:
    return ApplicationError(
        f"the Temporal Service doesn't tell the history: {error.status.name}",
        type="ServiceUnavailable",
        category=ApplicationErrorCategory.BENIGN,  # expected: no traceback in the log
    )


async def _ask(question: Callable[[str], T], invoice_id: str) -> T:
    return await _within(QUESTION_SECONDS, _ASKING, question, invoice_id)


async def _within(
    seconds: float, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any
) -> T:
    """Runs a function in a thread of the pool, and sends heartbeats meanwhile.

    Raises:
        GatewayUnavailable: it took longer than `seconds`. The thread continues nevertheless.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    call = loop.run_in_executor(pool, function, *arguments)
    try:
        while (left := until - loop.time()) > 0:
            # Nearly every answer comes before the first heartbeat, which would be a further call to
            # the Temporal Service.
            done, _ = await asyncio.wait([call], timeout=min(left, HEARTBEAT_SECONDS))
            if done:
                return call.result()
            activity.heartbeat()
    finally:
        call.cancel()  # if the thread hasn't begun with it, it never will
    what = "payment ledger" if pool is _ASKING else "payment provider or the ledger"
    raise GatewayUnavailable(f"the {what} gave no answer within {seconds:g} s")


async def _to_its_end(payment: Coroutine[Any, Any, T]) -> T:
    """Waits for a payment in progress even if its run is cancelled, which a heartbeat finds out.

    Raises:
        asyncio.CancelledError: the worker ends, or Temporal has given this attempt up.
    """
    paying = asyncio.create_task(payment)
    try:
        return await asyncio.shield(paying)
    except asyncio.CancelledError:
        details = activity.cancellation_details()
        if not (details and (details.cancel_requested or details.paused or details.reset)):
            paying.cancel()
            raise
    activity.logger.info("Asked to stop: the payment under way is finished first")
    return await paying


async def _decisions_received(workflow_id: str, run_id: str) -> list[Decision]:
    """The decisions in a run's history, in order, dated by when they were first received."""

    async def read(run_id: str) -> list[HistoryEvent]:
        run = activity.client().get_workflow_handle(workflow_id, run_id=run_id)
        return [event async for event in run.fetch_history_events()][::-1]

    events = await read(run_id)
    await date_by_originals(events, read)
    decisions = []
    for event in reversed(events):
        signal = event.workflow_execution_signaled_event_attributes
        if signal.signal_name in DECISIONS:
            at = event.event_time.ToDatetime(UTC)
            approved = DECISIONS[signal.signal_name]
            decisions.append(Decision.from_signal(approved, first_data(signal.input), at))
    return decisions


def _expect_payable(gateway: PaymentGateway, question: LedgerQuestion) -> None:
    """Raises `InvalidPayment` for the first line that the gateway can never pay."""
    for number, line in enumerate(question.lines, start=1):
        key = payment_key(workflow_id(question.id), line_id(number))
        try:
            gateway.check(_payment(key, question.id, line, question))
        except InvalidPayment as error:
            of_line = error.field in {"item", "amount"}
            field = f"lines[{number - 1}].{error.field}" if of_line else error.field
            raise InvalidPayment(field, error.rule) from error


def _invoice_workflow_id(info: activity.Info) -> str:
    """The id of the `InvoiceWorkflow` that runs the activity.

    Anyone who can reach the Temporal Service can run the activity, from a workflow of their own or
    without one. Only an `InvoiceWorkflow` makes sure that the invoice was approved.

    Raises:
        ApplicationError: of type `NotAnInvoice`: it isn't run by an `InvoiceWorkflow`.
    """
    if info.workflow_id is not None and info.workflow_type == INVOICE_WORKFLOW:
        return info.workflow_id
    caller = f"a workflow of the type {sanitized(info.workflow_type or '')}"
    error = ApplicationError(
        f"{info.activity_type} was asked for by {caller if info.workflow_id else 'no workflow'}:"
        f" it serves an {INVOICE_WORKFLOW} only, and nothing was paid",
        type="NotAnInvoice",
        non_retryable=True,
        category=ApplicationErrorCategory.BENIGN,  # expected: no traceback in the log
    )
    activity.logger.warning("%s", error)
    raise error


def _gateway_of(terms: Terms) -> set[str]:
    """The name of the gateway that the invoice is bound to.

    Empty for runs that started before gateways were recorded, and for other clients' workflows.
    """
    return set() if terms.bound_to_gateway is None else {terms.bound_to_gateway}


def _expect_ledger(ledger: Ledger, terms: Terms) -> None:
    if terms.ledger not in (None, ledger.id):
        named = sanitized(str(terms.ledger)[:8])
        raise WrongLedger(
            f"the invoice belongs to the payment ledger {named}, and this worker"
            f" keeps {ledger.id[:8]} in {ledger.name}: start a worker with the data directory"
            " or PAYMENT_LEDGER_URL that the invoice began with"
        )


@contextmanager
def _as_application_errors(what: str) -> Iterator[None]:
    """Turns expected errors into `ApplicationError`s and logs each of them."""
    try:
        yield
    except (
        GatewayUnavailable,
        WrongLedger,
        WrongGateway,
        PaymentDeclined,
        PaymentConflict,
        InvalidPayment,
        ValidationError,
    ) as error:
        is_invalid = isinstance(error, InvalidPayment | ValidationError)
        reason = (
            describe_validation_errors(error) if isinstance(error, ValidationError) else str(error)
        )
        attempt = activity.info().attempt
        activity.logger.warning("%s: attempt %s failed: %s", what, attempt, reason)
        kind = "InvalidInvoice" if is_invalid else type(error).__name__
        record_outcome(kind)
        raise ApplicationError(
            reason,
            type=kind,
            non_retryable=not isinstance(error, GatewayUnavailable | WrongLedger | WrongGateway),
            category=ApplicationErrorCategory.BENIGN,  # expected: no traceback in the log
        ) from error


def _payment(key: str, invoice_id: str, line: LineToPay, terms: Terms) -> Payment:
    return Payment(
        key,
        invoice_id,
        line.item,
        line.amount,
        terms.currency,
        terms.customer,
        terms.payment_method,
    )
