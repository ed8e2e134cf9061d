"""The books: for each invoice what was asked, who decided or cancelled it, and each payment.

    uv run audit.py > books.csv
    uv run audit.py --format jsonl > books.jsonl
    uv run audit.py --since 2026-11-01 --until 2026-11-30 > november.csv

Reads Temporal and the payment ledger with the worker's settings, and changes neither. Each point on
which the two disagree is a line on standard error, followed by sums by state and currency.

Exit code: 0 if they agree, 1 if they disagree, 2 if one of them can't be read or the books can't be
written.
"""

import argparse
import asyncio
import csv
import json
import os
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.api.common.v1 import Payloads
from temporalio.api.history.v1 import ActivityTaskFailedEventAttributes, HistoryEvent
from temporalio.service import RPCError

from invoice_runs import InvoiceRun, InvoiceRuns, invoice_of
from invoices.approvals import judge
from invoices.invoice import (
    BILL_FIELDS,
    INVOICE_WORKFLOW,
    WORKFLOW_ID_PREFIX,
    Invoice,
    invoice_id_of,
    line_id_of,
    line_number,
    workflow_id,
)
from invoices.messages import LedgerAnswer, PaidLine, PaymentRequest, PricedLine
from invoices.refusals import InvoiceError
from invoices.status import (
    DECISIONS,
    NOT_KNOWN_TEXTS,
    Cancellation,
    Decision,
    RequiredApprovals,
)
from invoices.wording import format_money, pluralize, sanitized, sanitized_quote
from payments.gateway import GatewayUnavailable, LedgerEntry
from payments.ledger import Ledger, SQLiteLedger, open_ledger
from settings import describe_settings
from startup import StartupError, data_directory
from temporal_service.connection import (
    address_is_configured,
    connect,
    connect_config,
    describe_rpc_error,
    whoami,
)
from temporal_service.dev_server import belongs_to
from temporal_service.executions import list_executions
from temporal_service.payloads import first_data

COLUMNS = [
    *["invoice_id", "submitted_at", "submitted_by", "state"],
    *["first_approved_at", "first_approved_by", "first_approved_through", "first_reason"],
    *["decision", "decided_at", "decided_by", "decided_through", "reason"],
    *["cancelled_at", "cancelled_by", "cancellation_reason"],
    *["ended_at"],
    *["line", "item", "description", "amount", "currency", "customer"],
    *["supplier", "supplier_reference", "due_date", "pay_on"],
    *["payment", "attempt", "payment_at", "payment_amount", "payment_currency"],
    *["provider", "reference", "run_id"],
]
DATED_BY = ("payment_at", "decided_at", "ended_at", "submitted_at")
"""The first of these that a row has is the day to which it belongs."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What makes a spreadsheet program take a text for a formula, by OWASP's "CSV Injection"."""

INVOICE_SECONDS = 60
"""How long reading one invoice's runs may take. Another client can start many large ones."""

Row = dict[str, str | int | Decimal | None]
Write = Callable[[Row], object]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Period:
    """Days in UTC, the first and the last included."""

    since: date = date.min
    until: date = date.max

    @classmethod
    def of(cls, since: str | None, until: str | None) -> "Period":
        """The period between two ISO dates.

        Raises:
            StartupError: one of them isn't a date, or the last day is before the first.
        """
        period = cls(_day("--since", since, date.min), _day("--until", until, date.max))
        if period.since > period.until:
            raise StartupError(f"--since {since} is after --until {until}.")
        return period

    def __contains__(self, row: Row) -> bool:
        at = next(str(row[name]) for name in DATED_BY if row[name])
        return self.since.isoformat() <= at[: len("2026-11-30")] <= self.until.isoformat()

    def __str__(self) -> str:
        since = f" from {self.since}" if self.since > date.min else ""
        until = f" until {self.until}" if self.until < date.max else ""
        return f"{since}{until}"


def _day(option: str, text: str | None, default: date) -> date:
    if text is None:
        return default
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise StartupError(
            f"{option} must be a date such as 2026-11-30, not {sanitized_quote(text)}."
        ) from None


@dataclass
class Sums:
    """What the rows of the books add up to, by state and currency."""

    lines: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: defaultdict[tuple[str, str], Decimal] = field(
        default_factory=lambda: defaultdict(Decimal)
    )
    paid: defaultdict[tuple[str, str], Decimal] = field(
        default_factory=lambda: defaultdict(Decimal)
    )
    _last: tuple[object, ...] = ()

    def add(self, row: Row) -> None:
        """Adds a row. The attempts to pay a line follow each other, and it counts once."""
        state = str(row["state"])
        amount = row["payment_amount"] if row["amount"] is None else row["amount"]
        line = (row["invoice_id"], row["run_id"], row["line"])
        if line != self._last:
            key = (state, str(row["currency"] or row["payment_currency"] or ""))
            self.lines[key] += 1
            self.asked[key] += Decimal(amount or 0)
            self._last = line
        if row["payment"] == "paid":
            self.paid[state, str(row["payment_currency"])] += Decimal(row["payment_amount"] or 0)

    def __str__(self) -> str:
        texts = []
        for key in sorted({*self.lines, *self.paid}):
            state, currency = key
            text = f"{state}: {pluralize(self.lines[key], 'line')}"
            if currency:
                text += f", {format_money(self.asked[key], currency)}"
                text += f"; {format_money(self.paid[key], currency)} paid"
            texts.append(text)
        return "\n".join(texts) or "none"


class Ledgers:
    """The worker's ledger and earlier ones, read as one."""

    def __init__(self, *ledgers: Ledger) -> None:
        self._ledgers = ledgers
        self.ids = {ledger.id for ledger in ledgers}

    def invoice_ids(self) -> Iterator[str]:
        """Those of each ledger, so that an invoice may come more than once."""
        for ledger in self._ledgers:
            yield from ledger.invoice_ids()

    def entries(self, invoice_id: str) -> list[LedgerEntry]:
        """Every attempt to pay a line of an invoice, earlier attempts of a ledger first.

        Raises:
            GatewayUnavailable: a ledger can't be read.
        """
        found: dict[tuple[str, str, int, str], LedgerEntry] = {}
        for ledger in self._ledgers:
            for entry in ledger.entries(invoice_id):
                # What a ledger and its copy both have is one attempt, which one of them may not
                # have the end of.
                key = (ledger.id, entry.payment.idempotency_key, entry.attempt, entry.reference)
                if key not in found or found[key].state == "begun":
                    found[key] = entry
        return list(found.values())


@dataclass
class PaymentActivity:
    """A `process_payment` of a run."""

    asked: PaymentRequest
    scheduled_at: datetime
    paid_at: datetime | None = None
    is_declined: bool = False


@dataclass
class Run:
    """What Temporal knows about one submission. Lines are keyed by their number, as text."""

    found: InvoiceRun
    original_id: str = ""
    """The same for a run and what an operator has made of it by resets."""
    invoice: Invoice | None = None
    signals: list[tuple[Decision, str]] = field(default_factory=list)
    """Each decision that was sent, with the identity of the Temporal client that sent it."""
    was_taken: bool = False
    """Whether a worker has taken it up. Before that, nobody knows how many approvals it needs."""
    cancellation: Cancellation | None = None
    """The request to cancel it, as the history has it."""
    payments: dict[str, PaymentActivity] = field(default_factory=dict)
    under_way: dict[int, PaymentActivity] = field(default_factory=dict)
    """Activities that haven't ended in the history, keyed by the id of their scheduled event."""
    paid_earlier: dict[str, PaidLine] = field(default_factory=dict)
    """What the ledger had as paid when this run asked for it."""
    has_asked: bool = False
    can_have_rule: bool = False
    """Whether it keeps to what a worker requires. Runs that began under 1.0 don't."""
    has_rule: bool = False
    required_approvals: RequiredApprovals | None = None
    """What the worker that answered first required, if it did."""
    ledgers: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return f"run {self.found.id} ({self.found.status.state})"

    @property
    def is_of_an_invoice(self) -> bool:
        return self.found.description.workflow_type == INVOICE_WORKFLOW

    @property
    def decision(self) -> tuple[Decision | None, str | None]:
        """The one that stands by this run's rule, and who sent it.

        Dated by the history, which has the time at which the Temporal Service received it.
        """
        if self.found.status.state == "timed_out":
            return None, None
        standing = self.found.status.decision or self._judged
        return self._as_sent(standing) if standing else (None, None)

    @property
    def _judged(self) -> Decision | None:
        """What the signals mean, where the memo has no decision. Runs of the tutorial's worker and
        of 1.0 have none, and for them the first signal stands.
        """
        status = self.found.status
        required = status.required_approvals or self.required_approvals
        until = status.deadline or datetime.max.replace(tzinfo=UTC)
        in_time = [decision for decision, _ in self.signals if decision.at < until]
        decision = judge(in_time, required, status.submitted_by).decision
        return decision if decision and (self.was_taken or not decision.approved) else None

    def _as_sent(self, decision: Decision) -> tuple[Decision, str | None]:
        """A decision as the history dates it, and who sent it."""
        # `by` as well, because other clients send no `request`.
        wanted = (decision.approved, decision.by, decision.request)
        for sent, identity in self.signals:
            if wanted == (sent.approved, sent.by, sent.request):
                # A reset copies signals with its own time.
                is_reset = self.original_id != self.found.id
                at = min(decision.at, sent.at) if is_reset else sent.at
                return decision.model_copy(update={"at": at}), identity
        return decision, None

    @property
    def first_approval(self) -> tuple[Decision | None, str | None]:
        """The first of two people's approvals, and who sent it."""
        first = self.found.status.first_approval
        return self._as_sent(first) if first else (None, None)

    @property
    def lacks_approvals(self) -> bool:
        """Whether fewer people have approved it than the worker required."""
        approvals = [decision for decision, _ in self.signals if decision.approved]
        submitted_by = self.found.status.submitted_by
        return not judge(approvals, self.required_approvals, submitted_by).approved

    def add(self, event: HistoryEvent) -> None:
        kind = event.WhichOneof("attributes") or ""
        attributes: Any = getattr(event, kind)
        at = event.event_time.ToDatetime(UTC)
        self.was_taken |= event.HasField("workflow_task_completed_event_attributes")
        match kind.removesuffix("_event_attributes"), attributes:
            case "workflow_execution_started", started:
                self.original_id = started.original_execution_run_id
                self.invoice = invoice_of(started, self.found.description.id)
            case "workflow_execution_signaled", signal:
                if signal.signal_name in DECISIONS:
                    approves = DECISIONS[signal.signal_name]
                    decision = Decision.from_signal(approves, first_data(signal.input), at)
                    self.signals.append((decision, signal.identity))
            case "workflow_execution_cancel_requested", request:
                self.cancellation = Cancellation.from_request(request.identity, request.cause, at)
            case "activity_task_scheduled", activity:
                self._take_activity(event.event_id, activity, at)
            case "activity_task_completed", completed:
                if payment := self.under_way.pop(completed.scheduled_event_id, None):
                    # Of a payment that a cancellation left open it may be that it wasn't made.
                    payment.is_declined = first_data(completed.result) == b"false"
                    payment.paid_at = None if payment.is_declined else at
                else:
                    self._take_answer(completed.result)
            case (
                "activity_task_failed" | "activity_task_timed_out" | "activity_task_canceled",
                ended,
            ):
                self._end_payment(ended)
            case "marker_recorded", marker:  # a field that it hasn't has no payloads
                self._take_answer(marker.details["result"])  # of a local activity
                self.can_have_rule |= b'"paid-earlier"' in first_data(marker.details["patch-data"])

    def _take_activity(self, event_id: int, activity: Any, at: datetime) -> None:
        line = _short(activity.activity_id)
        if activity.activity_type.name == "process_payment":
            asked = _parsed(PaymentRequest, activity.input) or PaymentRequest()
            self.payments[line] = self.under_way[event_id] = PaymentActivity(asked, at)
            self.ledgers |= {asked.ledger} if asked.ledger else set()
        elif activity.activity_type.name == "payment_outcome" and line in self.payments:
            self.under_way[event_id] = self.payments[line]

    def _end_payment(self, ended: Any) -> None:
        payment = self.under_way.pop(ended.scheduled_event_id, None)
        if payment and isinstance(ended, ActivityTaskFailedEventAttributes):
            failure = ended.failure.application_failure_info
            payment.is_declined = failure.type == "PaymentDeclined"

    def _take_answer(self, result: Payloads) -> None:
        answer = _parsed(LedgerAnswer, result)
        if answer and answer.gateway and self.can_have_rule and not self.has_rule:
            self.has_rule, self.required_approvals = True, answer.required_approvals
        if answer and answer.ledger and answer.lines is not None:
            self.has_asked = True
            self.paid_earlier = {str(paid.line): paid for paid in answer.lines}
            self.ledgers.add(answer.ledger)


def _parsed(model: type[Model], payloads: Payloads) -> Model | None:
    with suppress(ValidationError):
        return model.model_validate_json(first_data(payloads))
    return None


async def read_run(
    temporal_runs: InvoiceRuns, invoice_id: str, run_id: str | None = None
) -> Run | None:
    """One run under an invoice's id, by default the latest; None if Temporal has none."""
    try:
        run = Run(await temporal_runs.get_run(invoice_id, run_id))
    except InvoiceError:
        return None
    handle = temporal_runs.temporal.get_workflow_handle(
        workflow_id(invoice_id), run_id=run.found.id
    )
    async for event in handle.fetch_history_events():
        run.add(event)
    if run.found.progress and run.found.progress.ledger:
        run.ledgers.add(run.found.progress.ledger)
    return run


async def audit(
    temporal_runs: InvoiceRuns,
    ledger: Ledger,
    write: Write,
    period: Period | None = None,
    earlier_ledgers: Sequence[Ledger] = (),
) -> int:
    """Writes the rows of every invoice, in order of their ids; returns how many disagree.

    Args:
        period: write only its rows. Whether Temporal and the ledgers agree is found out for every
            invoice all the same.
        earlier_ledgers: what is read besides the worker's ledger.

    Raises:
        GatewayUnavailable: a ledger can't be read any more.
        temporalio.service.RPCError, TimeoutError: Temporal can't.
    """
    period = period or Period()
    ledgers = Ledgers(*earlier_ledgers, ledger)
    sums = Sums()

    def write_if_in_period(row: Row) -> None:
        if row in period:
            write(row)
            sums.add(row)

    with closing(sqlite3.connect("")) as index:  # a temporary file, so that memory doesn't grow
        index.execute(
            "CREATE TABLE runs (invoice_id, run_id, type, PRIMARY KEY (invoice_id, run_id))"
        )
        insert = "INSERT OR IGNORE INTO runs VALUES (?, ?, ?)"
        # Of every type: something else than an invoice may have paid under an invoice's id.
        query = f"WorkflowId STARTS_WITH '{WORKFLOW_ID_PREFIX}'"
        async for page in list_executions(temporal_runs.temporal, query):
            for execution in page:
                name, kind = invoice_id_of(execution.id), execution.workflow_type
                index.execute(insert, (name, execution.run_id, kind))
        index.executemany(insert, ((name, "", "") for name in ledgers.invoice_ids()))
        found = index.execute(
            "SELECT invoice_id, run_id FROM runs WHERE invoice_id IN"
            " (SELECT invoice_id FROM runs WHERE type IN (?, '')) ORDER BY invoice_id",
            (INVOICE_WORKFLOW,),
        )
        invoices = disagreeing = 0
        for invoice_id, group in groupby(found, key=lambda row: str(row[0])):
            run_ids = {row[1] for row in group if row[1]}
            try:
                async with asyncio.timeout(INVOICE_SECONDS) as limit:
                    texts = await _audit_invoice(
                        temporal_runs, ledgers, write_if_in_period, invoice_id, run_ids
                    )
            except TimeoutError:
                if not limit.expired():
                    raise
                async with asyncio.timeout(INVOICE_SECONDS):  # unless Temporal doesn't answer
                    await temporal_runs.exists(invoice_id)
                texts = [f"its runs couldn't be read within {INVOICE_SECONDS} s"]
            for text in texts:
                print(f"{sanitized(invoice_id, 100)}: {text}", file=sys.stderr)
            invoices += 1
            disagreeing += bool(texts)
    print(f"Lines in the books{period}:", sums, sep="\n", file=sys.stderr)
    print(f"{pluralize(invoices, 'invoice')}, {disagreeing:,} with disagreements", file=sys.stderr)
    return disagreeing


async def _audit_invoice(
    temporal_runs: InvoiceRuns, ledgers: Ledgers, write: Write, invoice_id: str, run_ids: set[str]
) -> list[str]:
    # Payments go on meanwhile. What the ledger has before the histories are read must be in them,
    # and what they have must be in the ledger after that.
    before = ledgers.entries(invoice_id)
    latest = await read_run(temporal_runs, invoice_id)  # which Temporal's list may not have yet
    earlier = run_ids - {latest.found.id if latest else ""}
    read = [latest, *[await read_run(temporal_runs, invoice_id, run_id) for run_id in earlier]]
    # A reset run begins later than it was submitted, perhaps after another submission.
    found = sorted((run for run in read if run), key=lambda run: run.found.description.start_time)
    runs = [run for run in found if run.is_of_an_invoice]
    entries = ledgers.entries(invoice_id)
    for row in _rows(invoice_id, runs, entries, ledgers.ids):
        write(row)
    others = [run for run in found if not run.is_of_an_invoice]
    return [
        *_disagreements(ledgers.ids, runs, before, entries),
        *_paid_for_others(invoice_id, runs, others, entries),
    ]


def _rows(
    invoice_id: str, runs: list[Run], entries: list[LedgerEntry], ledger_ids: set[str]
) -> list[Row]:
    """Of each run its lines, each with the attempts to pay it; then what no run accounts for."""
    rows: list[Row] = []
    of_line: dict[str, list[LedgerEntry]] = defaultdict(list)
    for entry in entries:
        of_line[_line(entry)].append(entry)
    left = of_line.copy()
    for number, run in enumerate(runs, start=1):
        numbers = map(str, range(1, len(run.invoice.lines) + 1)) if run.invoice else ()
        for line in dict.fromkeys([*numbers, *run.payments]) or [""]:
            own: list[LedgerEntry] = []
            was_paid = False
            if begun := run.payments.get(line):
                of_ledger = [entry for entry in left[line] if _may_be_of(begun, entry, ledger_ids)]
                later = [run.payments[line] for run in runs[number:] if line in run.payments]
                is_last = not any(_may_share_ledger(begun, other, ledger_ids) for other in later)
                own = _attempts(begun, of_ledger, is_last=is_last)
                was_paid = any(
                    entry.state == "paid" and _may_be_of(begun, entry, ledger_ids)
                    for entry in of_line[line]
                )
                left[line] = [entry for entry in left[line] if not any(entry is one for one in own)]
            rows += [_row(invoice_id, run, line, entry) for entry in own]
            rows += [] if own else [_row(invoice_id, run, line, None, was_paid=was_paid)]
    for line, others in left.items():
        rows += [_row(invoice_id, None, line, entry) for entry in others]
    return rows


def _may_be_of(payment: PaymentActivity, entry: LedgerEntry, ledger_ids: set[str]) -> bool:
    """Whether an entry is in the ledger of a payment's run, as far as that is one of those read."""
    return payment.asked.ledger not in ledger_ids or payment.asked.ledger == entry.ledger


def _may_share_ledger(one: PaymentActivity, other: PaymentActivity, ledger_ids: set[str]) -> bool:
    ids = {one.asked.ledger, other.asked.ledger}
    return len(ids) == 1 or not ids <= ledger_ids


def _attempts(
    begun: PaymentActivity, entries: list[LedgerEntry], *, is_last: bool
) -> list[LedgerEntry]:
    """Which entries of a line are of a run that had begun it; the others are of later runs.

    By their order and by how the payment ended, since the ledger has the time by the worker's
    clock and Temporal by its own. A later run takes up an attempt of which no end is known.
    """
    states = [entry.state for entry in entries]
    count = 0
    if is_last:
        count = len(entries)
    elif begun.is_declined:
        count = int(states[:1] == ["declined"])
    elif begun.paid_at and "paid" in states:
        count = states.index("paid") + 1  # one that was declined before may not have been told
    return entries[:count]


def _row(
    invoice_id: str,
    run: Run | None,
    line: str,
    entry: LedgerEntry | None,
    *,
    was_paid: bool = False,
) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"invoice_id": invoice_id, "state": "not_in_temporal", "line": line}
    if run:
        row |= {"state": run.found.status.state, "run_id": run.found.id}
        row["submitted_at"] = _iso(run.found.status.submitted_at)
        row["submitted_by"] = run.found.status.submitted_by
        if run.found.status.pay_on:
            row["pay_on"] = _iso(run.found.status.pay_on)
        row |= _decisions(run)
        if run.found.status.is_cancelled and (cancellation := run.cancellation):
            row["cancelled_at"] = _iso(cancellation.at) if cancellation.at else None
            row["cancelled_by"] = cancellation.by
            row["cancellation_reason"] = cancellation.reason
        if ended_at := run.found.status.closed_at:
            row["ended_at"] = _iso(ended_at)
        if run.invoice and line.isdecimal() and int(line) <= len(run.invoice.lines):
            asked = run.invoice.lines[int(line) - 1]
            row |= {"item": asked.item, "description": asked.description}
            row |= {"amount": asked.amount, "currency": run.invoice.currency}
            row |= {name: getattr(run.invoice, name) for name in ("customer", *BILL_FIELDS)}
        begun = run.payments.get(line)
        if begun and begun.paid_at:
            # If it is in the ledger, an earlier run has made it, and this one found it so.
            state = "paid_earlier" if was_paid else "not_in_ledger"
            row |= {"payment": state, "payment_at": _iso(begun.paid_at)}
        elif line in run.paid_earlier:
            row["payment"] = "paid_earlier"
    if entry:
        row |= {"payment": entry.state, "attempt": entry.attempt, "payment_at": _iso(entry.at)}
        row |= {"provider": entry.provider, "reference": entry.reference}
        row["payment_amount"] = entry.payment.amount
        row["payment_currency"] = entry.payment.currency
        if not run:
            row |= {"item": entry.payment.item, "customer": entry.payment.customer}
    return row


def _decisions(run: Run) -> Row:
    (first, first_through), (decision, through) = run.first_approval, run.decision
    row: Row = {"first_approved_through": first_through, "decided_through": through}
    if first:
        row |= {"first_approved_at": _iso(first.at), "first_approved_by": first.by}
        row["first_reason"] = first.reason
    if decision:
        row["decision"] = "approved" if decision.approved else "rejected"
        row |= {"decided_at": _iso(decision.at), "decided_by": decision.by}
        row["reason"] = decision.reason
    return row


def _disagreements(
    ledger_ids: set[str], runs: list[Run], before: list[LedgerEntry], entries: list[LedgerEntry]
) -> Iterator[str]:
    """A sentence for each point on which Temporal and the ledgers disagree about one invoice."""
    if others := set[str]().union(*(run.ledgers for run in runs)) - ledger_ids:
        names, given = (
            ", ".join(sorted(sanitized(id[:8]) for id in ids)) for ids in (others, ledger_ids)
        )
        here = "this one is" if len(ledger_ids) == 1 else "these are"
        yield f"more than one ledger: {names} in the history, {here} {given}; see --ledger"
    providers = {entry.provider for entry in entries if entry.state != "declined"}
    if len(providers) > 1:
        yield f"paid through more than one gateway: {', '.join(sorted(providers))}"
    for run in runs:
        if run.payments and not any(decision.approved for decision, _ in run.signals):
            yield f"payments without an approval in {run}"
        elif run.payments and run.lacks_approvals:
            yield f"payments without the approval of two people, which {run} needs"
        yield from _memo_disagreements(run)
    lines = {line for run in runs for line in [*run.payments, *run.paid_earlier]}
    for line in sorted(lines | set(map(_line, entries)), key=lambda line: (len(line), line)):
        of_line = [entry for entry in entries if _line(entry) == line]
        of_line_before = [entry for entry in before if _line(entry) == line]
        for text in _line_disagreements(ledger_ids, line, runs, of_line_before, of_line):
            yield f"line {sanitized(line)}: {text}"


def _memo_disagreements(run: Run) -> Iterator[str]:
    """What a closed run has told as paid must be what its history has."""
    memo = run.found.progress
    if run.found.status.status in NOT_KNOWN_TEXTS:
        yield f"too many signals were sent to {run}: its status isn't known"
        return
    # An open run, and one that was terminated, may have had no time to note the latest payment.
    if memo is None or memo.is_open or run.found.is_open or memo.failure == "InvalidInvoice":
        return
    count = memo.paid_lines - (memo.paid_earlier_lines or 0)
    amount = memo.paid_amount - (memo.paid_earlier_amount or 0)
    made = [payment.asked.amount for payment in run.payments.values() if payment.paid_at]
    if (count, amount) != (len(made), sum(made)):
        currency = sanitized(memo.currency or "USD", 3)
        yield (
            f"{pluralize(len(made), 'line')}, {format_money(sum(made, Decimal(0)), currency)} paid"
            f" in the history of {run}, which tells {pluralize(count, 'line')},"
            f" {format_money(amount, currency)}"
        )


def _paid_for_others(
    invoice_id: str, runs: list[Run], others: list[Run], entries: list[LedgerEntry]
) -> Iterator[str]:
    """A sentence for each payment that no `InvoiceWorkflow` has asked for."""
    for entry in entries:
        key = entry.payment.idempotency_key
        if not key.startswith(f"{workflow_id(invoice_id)}/"):
            yield f"{entry.state} as {_described(entry)} for a workflow that isn't an invoice's"
    known = {line for run in runs for line in [*run.payments, *run.paid_earlier]}
    for run in others:
        for line, payment in run.payments.items():
            of_line = [entry for entry in entries if _line(entry) == line]
            # What was refused to it may have been paid for the invoice.
            if of_line and (payment.paid_at or line not in known):
                kind = sanitized_quote(run.found.description.workflow_type)
                yield (
                    f"line {sanitized(line)}: {of_line[-1].state} as {_described(of_line[-1])} for"
                    f" a workflow of the type {kind}, run {run.found.id}"
                )


def _line_disagreements(
    ledger_ids: set[str],
    line: str,
    runs: list[Run],
    before: list[LedgerEntry],
    entries: list[LedgerEntry],
) -> Iterator[str]:
    begun = [(run, run.payments[line]) for run in runs if line in run.payments]
    done = [(run, payment) for run, payment in begun if payment.paid_at]
    told: list[tuple[Run, PricedLine]] = [(run, payment.asked) for run, payment in done]
    told += [(run, run.paid_earlier[line]) for run in runs if line in run.paid_earlier]
    paid = [entry for entry in entries if entry.state == "paid"]
    if len(paid) > 1:
        is_one = len({entry.ledger for entry in paid}) == 1
        where = "twice in the ledger" if is_one else "in more than one ledger"
        yield f"paid {where}: {', '.join(map(_described, paid))}"
    # A run that an operator has reset repeats its payments: where it asks the same ledger, that
    # tells it that they are made.
    if len({(run.original_id, payment.asked.ledger) for run, payment in done}) > 1:
        yield f"paid by {' and by '.join(str(run) for run, _ in done)}"
    if told and not paid:
        run, known = told[0]
        state = f"{entries[-1].state} in the ledger" if entries else "not in the ledger"
        yield f"paid as {known} in the history of {run}, {state}"
    elif missing := [
        (run, payment)
        for run, payment in done
        if not any(_may_be_of(payment, entry, ledger_ids) for entry in paid)
    ]:
        run, payment = missing[0]
        yield (
            f"paid as {payment.asked} in the history of {run}, not in its ledger"
            f" {(payment.asked.ledger or '')[:8]} but in {paid[0].ledger[:8]}"
        )
    for entry in paid:
        yield from _content_disagreements(entry, told)
    if any(run.found.is_open and payment in run.under_way.values() for run, payment in begun):
        return
    for entry in entries:
        if entry.state == "begun" and entry in before:
            where = f" since {begun[-1][0]}" if begun else ""
            yield f"begun as {_described(entry)} in the ledger{where}: its outcome isn't known"
    if not told and any(entry.state == "paid" for entry in before):
        yield from _untold_payment(paid[0], runs, begun)


def _content_disagreements(entry: LedgerEntry, told: list[tuple[Run, PricedLine]]) -> Iterator[str]:
    payment = entry.payment
    for run, known in told:
        same = (known.item, known.amount, known.currency)
        if same != (payment.item, payment.amount, payment.currency):
            yield f"paid as {_described(entry)} in the ledger, as {known} in {run}"


def _untold_payment(
    entry: LedgerEntry, runs: list[Run], begun: list[tuple[Run, PaymentActivity]]
) -> Iterator[str]:
    """Reports a payment in the ledger that no history shows as made."""
    text = f"paid as {_described(entry)} in the ledger"
    if begun:
        yield f"{text}, begun and not completed in {begun[-1][0]}"
    # An entry older than every run that Temporal still has may be of one that it has no more.
    elif any(run.has_asked or run.found.status.submitted_at <= entry.at for run in runs):
        yield f"{text}, in no history"


def _line(entry: LedgerEntry) -> str:
    return _short(line_id_of(entry.payment.idempotency_key, entry.payment.invoice_id))


def _short(line_id: str) -> str:
    """The line's number, or the whole id of something else that was paid."""
    return str(line_number(line_id) or line_id)


def _described(entry: LedgerEntry) -> str:
    payment = entry.payment
    money = format_money(payment.amount, payment.currency)
    return f"{sanitized_quote(payment.item)} for {money} ({entry.reference}, {_iso(entry.at)})"


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def spreadsheet_safe(value: str | int | Decimal | None) -> str | int | Decimal | None:
    """Prefixes an apostrophe to a text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def _csv_writer() -> Write:
    writer = csv.DictWriter(sys.stdout, COLUMNS)
    writer.writeheader()
    return lambda row: writer.writerow({key: spreadsheet_safe(row[key]) for key in row})


def _jsonl_writer() -> Write:
    return lambda row: print(json.dumps(row, default=str))


async def run(
    make_writer: Callable[[], Write],
    earlier_ledgers: Sequence[str] = (),
    period: Period | None = None,
) -> int:
    """Returns how many invoices disagree.

    Args:
        earlier_ledgers: paths of SQLite files to read besides the worker's ledger.
        period: the days of the rows to write.

    Raises:
        StartupError: Temporal or a ledger can't be read.
    """
    directory = data_directory(make=False)
    with ExitStack() as opened:
        ledger = opened.enter_context(closing(open_ledger(directory, read_only=True)))
        earlier = [
            opened.enter_context(closing(SQLiteLedger(Path(path), read_only=True)))
            for path in earlier_ledgers
        ]
        client = await connect(connect_config(), identity=whoami())
        try:
            if not address_is_configured():
                await belongs_to(client, directory)  # else every payment would disagree
            return await audit(InvoiceRuns(client), ledger, make_writer(), period, earlier)
        except GatewayUnavailable as error:
            raise StartupError(str(error)) from error
        except (RPCError, TimeoutError) as error:
            raise StartupError(describe_rpc_error(client, error, read_only=True)) from error


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=describe_settings("audit"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    writers = {"csv": _csv_writer, "jsonl": _jsonl_writer}
    parser.add_argument("--format", choices=writers, default="csv")
    parser.add_argument("--since", metavar="DATE", help="first day of the rows, in UTC")
    parser.add_argument("--until", metavar="DATE", help="last day of the rows, in UTC")
    parser.add_argument(
        "--ledger",
        metavar="PATH",
        action="append",
        default=[],
        help="payments.db of an earlier data directory, to read as well; may be repeated",
    )
    arguments = parser.parse_args()
    if sys.stderr is None:  # it was closed, and `print` would write to standard output instead
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    # The csv module ends lines itself, and Windows has other encodings.
    sys.stdout.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    with suppress(OSError):  # the reader of standard error has gone
        try:
            period = Period.of(arguments.since, arguments.until)
            books = run(writers[arguments.format], arguments.ledger, period)
            code = 1 if asyncio.run(books) else 0
            sys.stdout.flush()
            return code
        except StartupError as error:
            print(error, file=sys.stderr)
        except BrokenPipeError:  # as by `| head`
            pass
        except OSError as error:
            print(f"The books can't be written: {error}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    status = main()
    # Not sys.exit, as in worker.py: the SDK's threads can abort the interpreter at its end.
    os._exit(status)
