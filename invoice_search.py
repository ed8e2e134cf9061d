"""Finds invoices in Temporal's visibility store, and changes nothing there.

The store lists runs in its own order, with open runs first, and lags behind by a moment.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from operator import itemgetter
from typing import Self, get_args

from pydantic import ValidationError
from temporalio.service import RPCError

from invoice_runs import (
    REMEMBERED_RUNS,
    InvoiceRuns,
    gather_bounded,
    in_background,
    keep_latest,
    read_retry,
)
from invoices.answers import InvoiceStatus
from invoices.invoice import INVOICE_WORKFLOW, WORKFLOW_ID_PREFIX, workflow_id
from invoices.invoice_list import InvoiceList, Key, ListCursor, Sums, Which, key_of
from invoices.similar import (
    SHOWN_SIMILAR,
    SIMILAR_DAYS,
    SimilarInvoice,
    similar_to,
    total_text,
)
from invoices.status import NOT_KNOWN_TEXTS, RunProgress, State
from reports import INVOICE_STATE, INVOICE_TOTAL
from temporal_service.executions import (
    Execution,
    describe_execution,
    list_executions,
    quoted,
    unknown_workflow_suppressed,
)

LIST_LIMIT = 50
"""How many invoices `list_invoices` returns at most."""
LIST_BYTES = 80_000
"""How long an answer may be, roughly. Some hosts cut off long ones."""
SCAN_LIMIT = 1000
"""How many open runs are compared at most, and how many closed ones are read to find those in one
state.
"""
SIMILAR_PAGE = 20
SIMILAR_READ = 100
"""How many open invoices with the same total are read at most, and how many completed ones."""
SIMILAR_SECONDS = 1
"""A search takes milliseconds. No answer is held up for longer than this by one."""
EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)
"""Before the first invoice."""

Total = tuple[Decimal, str]
"""An amount and its currency."""


class _Page:
    """The invoices in one answer."""

    def __init__(self) -> None:
        self.invoices: list[InvoiceStatus] = []
        self._bytes = 0

    @property
    def room(self) -> int:
        return LIST_LIMIT - len(self.invoices)

    def add(self, invoice: InvoiceStatus) -> bool:
        """Whether there was room for it, as there is for the first in any case."""
        # The text is in the answer twice.
        texts = (invoice.model_dump_json(exclude_none=True), *[invoice.to_line()] * 2)
        size = sum(len(text.encode()) for text in texts)
        if self.invoices and (not self.room or self._bytes + size > LIST_BYTES):
            return False
        self.invoices.append(invoice)
        self._bytes += size
        return True


@dataclass
class _Compared:
    """What was found when the open invoices were compared."""

    ids: set[str] = field(default_factory=set)
    """The workflow ids of all runs."""
    sums: Sums = field(default_factory=Sums)
    """Of all invoices."""
    nearest: list[tuple[Key, InvoiceStatus]] = field(default_factory=list)
    """The first ones after the cursor, in order."""
    following: int = 0
    """How many there are after the cursor."""


class InvoiceSearch:
    """Searches the invoices of one Temporal namespace."""

    def __init__(self, runs: InvoiceRuns) -> None:
        self._runs = runs
        self.last_totals: dict[str, Total] = {}
        """The totals of invoices that waited when they were last looked at, by their ids."""

    @property
    def _has_state_attribute(self) -> bool:
        return INVOICE_STATE.name not in self._runs.missing_attributes

    async def list_invoices(self, which: Which = "all", cursor: str | None = None) -> InvoiceList:
        """The latest runs of up to `LIST_LIMIT` invoices, all or in one state, from their memos.

        Waiting ones come first, the nearest deadline first, then those that are being paid, then
        those that have ended, the last one first. Of more than `SCAN_LIMIT` open ones, those that
        were submitted first are compared and listed first: they are likely to be more urgent.

        Args:
            cursor: the `next_cursor` of an answer, to get those that come after it.

        Raises:
            InvoiceError: the cursor isn't one of this list.
        """
        used = {INVOICE_STATE.name} - self._runs.missing_attributes
        position = ListCursor.parse(cursor, which) if cursor else ListCursor.first(which)
        try:
            page = _Page()
            if position.is_past_open:
                return await self._list_closed(position, page)
            return await self._list_open(position, page)
        except RPCError as error:
            self._runs.expect_missing_attribute(error, *used)
            return await self.list_invoices(which, cursor)

    def with_same_total(self, invoice_id: str, total: Decimal, currency: str) -> "SameTotal":
        """Other invoices of the last `SIMILAR_DAYS` days with a total that are open or completed.

        There are none if the namespace doesn't have the search attribute `InvoiceTotal`, or if they
        weren't started with it.
        """
        since = datetime.now(UTC) - timedelta(days=SIMILAR_DAYS + 1)
        query = (
            f"{_INVOICES} AND {INVOICE_TOTAL.name} = {quoted(total_text(total, currency))}"
            f" AND WorkflowId != {quoted(workflow_id(invoice_id))}"
        )
        return SameTotal(self._runs, _started_between(query, since, None))

    async def _list_open(self, position: ListCursor, page: _Page) -> InvoiceList:
        """Those in the open runs that a cursor describes and, if there is room, the closed ones."""
        which, since, until = position.which, position.since, position.until
        query = _list_query(which, self._has_state_attribute, is_open=True)
        if await self._count(query, since, until) > SCAN_LIMIT:
            until = await self._end_of_earliest(query, since, until)
        is_all = since is None and until is None
        compared = await self._compare(_started_between(query, since, until), position)
        after, not_shown = position.after, compared.following
        for key, status in compared.nearest:
            if not page.add(status):
                break
            after, not_shown = key, not_shown - 1
        if not_shown:
            following = ListCursor(which=which, since=since, until=until, after=after)
        elif until:
            following = ListCursor(which=which, since=until)
        else:
            following = ListCursor(which=which, is_past_open=True)
            if which == "all" and page.room:
                known = (compared.ids, compared.sums) if is_all else ()
                return await self._list_closed(following, page, *known)
        later = await self._count(query, until) if until else 0
        ended_query = _list_query(which, False, is_open=False)
        ended = await self._count(ended_query) if which == "all" else 0
        is_rest = not_shown + later + ended > 0
        return InvoiceList.of(
            page.invoices,
            compared.sums if is_all and not ended else None,
            not_shown=not_shown + later + ended,
            exact=not later and not ended,
            next_cursor=following if is_rest else None,
            compared=None if is_all else len(compared.ids),
        )

    async def _compare(self, query: str, position: ListCursor) -> _Compared:
        """All that the query for open runs finds, of which the nearest after a cursor are kept."""
        compared = _Compared()
        nearest: list[tuple[Key, Execution, InvoiceStatus]] = []
        async for executions in list_executions(self._runs.temporal, query, page_size=LIST_LIMIT):
            compared.ids.update(execution.id for execution in executions)
            calls = [self._runs.read_status(execution) for execution in executions]
            for execution, status in zip(executions, await gather_bounded(calls), strict=True):
                if status is None or not _is_in_state(status, position.which):
                    continue
                compared.sums.add(status)
                key = key_of(status, execution.run_id)
                if position.after is None or key > position.after:
                    nearest.append((key, execution, status))
                    compared.following += 1
            # No more than can be shown, since another client's memo may be large.
            nearest.sort(key=itemgetter(0))
            del nearest[LIST_LIMIT:]
        described = [self._with_retry(execution, status) for _, execution, status in nearest]
        statuses = await gather_bounded(described)
        compared.nearest = [
            (key, status) for (key, *_), status in zip(nearest, statuses, strict=True)
        ]
        return compared

    async def _list_closed(
        self,
        position: ListCursor,
        page: _Page,
        open_ids: set[str] | None = None,
        open_ones: Sums | None = None,
    ) -> InvoiceList:
        """Those in the closed runs after a cursor.

        Args:
            open_ids: the workflow ids of all open runs, if the list begins with them.
            open_ones: the sums of these.
        """
        query = _list_query(position.which, self._has_state_attribute, is_open=False)
        if position.closed_at:
            # The store may have more digits of the time than we do.
            query += (
                f" AND CloseTime < '{(position.closed_at + timedelta(microseconds=1)).isoformat()}'"
            )
        is_first = open_ones is not None or position == ListCursor.first(position.which)
        sums = open_ones or Sums()
        following, scanned = position, 0
        async for execution, status in self._closed(query, position, open_ids):
            if scanned == SCAN_LIMIT or (status and not page.add(status)):
                break
            scanned += 1
            following = following.past(execution.run_id, execution.close_time)
            if status:
                sums.add(status)
            if not page.room:
                break
        else:
            return InvoiceList.of(page.invoices, sums if is_first else None)
        # Counted last, so that none is lost that has ended meanwhile.
        not_shown = await self._count(query) - scanned
        if not_shown <= 0:
            return InvoiceList.of(page.invoices, sums if is_first else None)
        return InvoiceList.of(
            page.invoices, not_shown=not_shown, exact=False, next_cursor=following
        )

    async def _closed(
        self, query: str, position: ListCursor, open_ids: set[str] | None
    ) -> AsyncIterator[tuple[Execution, InvoiceStatus | None]]:
        """The runs that a query finds, in the store's order, the last to end first.

        Their status is None if they are in another state, were read before, or aren't the invoice's
        latest run.
        """
        seen = set(open_ids or ())

        async def status_of(execution: Execution) -> InvoiceStatus | None:
            status = await self._runs.read_status(execution)
            if status is None or not _is_in_state(status, position.which):
                return None
            # What comes before isn't known here, unless everything is listed from the beginning.
            is_latest = open_ids is not None or await self._is_latest(execution)
            return status if is_latest else None

        async for executions in list_executions(self._runs.temporal, query, page_size=LIST_LIMIT):
            # Temporal lists an invoice's latest run before its other runs.
            latest = {
                execution.id: execution
                for execution in reversed(executions)
                if execution.id not in seen and execution.run_id not in position.closed_runs
            }
            seen.update(latest)
            calls = [status_of(execution) for execution in latest.values()]
            statuses = dict(zip(latest, await gather_bounded(calls), strict=True))
            for execution in executions:
                is_latest = execution is latest.get(execution.id)
                yield execution, statuses[execution.id] if is_latest else None

    async def _with_retry(self, execution: Execution, status: InvoiceStatus) -> InvoiceStatus:
        """The status with the payment that is being retried, which no memo has."""
        if status.state != "paying":
            return status
        with unknown_workflow_suppressed():
            description = await describe_execution(
                self._runs.temporal, execution.id, execution.run_id
            )
            return status.model_copy(update={"retry": read_retry(description)})
        return status

    async def _is_latest(self, execution: Execution) -> bool:
        """Whether a closed run is the invoice's latest run. Some searches leave out later ones."""
        with unknown_workflow_suppressed():
            latest = await describe_execution(self._runs.temporal, execution.id)
            return latest.run_id == execution.run_id
        return False

    async def _end_of_earliest(
        self, query: str, since: datetime | None, until: datetime | None
    ) -> datetime:
        """A time before which the query finds some runs, but at most `SCAN_LIMIT`.

        The store can't list the earliest runs first, but it can count those before some time.
        """
        low, high = since or EARLIEST, until or datetime.now(UTC) + timedelta(days=1)
        end = high
        while high - low > timedelta(milliseconds=1):
            middle = low + (high - low) / 2
            found = await self._count(query, since, middle)
            if found > SCAN_LIMIT:
                high = middle
            elif found:
                low = end = middle
                if found > SCAN_LIMIT // 2:
                    break
            else:
                low = middle
        return end

    async def _count(
        self, query: str, since: datetime | None = None, until: datetime | None = None
    ) -> int:
        query = _started_between(query, since, until)
        return (await self._runs.temporal.count_workflows(query)).count


class SameTotal:
    """Other invoices with the same total, as far as they have been read.

    Open and completed ones are read apart, so that many of one kind don't hide the other. A search
    that fails or takes too long must not make the tool fail.
    """

    def __init__(self, runs: InvoiceRuns, query: str) -> None:
        self._runs = runs
        self._found: list[InvoiceStatus] = []
        self._seconds: float = SIMILAR_SECONDS
        """How long it may still take."""
        self.is_incomplete = INVOICE_TOTAL.name not in runs.missing_attributes
        """Whether there may be more that haven't been compared."""
        kinds = ("CloseTime IS NULL", "ExecutionStatus = 'Completed'") if self.is_incomplete else ()
        self._unread = {
            list_executions(runs.temporal, f"{query} AND {kind}", page_size=SIMILAR_PAGE): 0
            for kind in kinds
        }
        """The pages that follow, of each kind, and how many invoices came before."""

    async def read_on(self, invoice: InvoiceStatus | None = None) -> None:
        """Reads the next page of each kind or, for an invoice, until enough are similar to it."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.gather(*[self._read_kind(kind, invoice) for kind in self._unread])
            self.is_incomplete = bool(self._unread)
        except RPCError as error:
            self._unread.clear()
            with suppress(RPCError):
                self._runs.expect_missing_attribute(error, INVOICE_TOTAL.name)
                self.is_incomplete = False
        except (RuntimeError, TimeoutError):  # not connected, or the service hangs
            self._unread.clear()
        self._seconds -= time.monotonic() - started

    async def similar_to(self, invoice: InvoiceStatus) -> list[SimilarInvoice]:
        """Those that may be the same bill as this invoice."""
        if self._unread:
            await self.read_on(invoice)
        return similar_to(invoice, self._found)

    async def _read_kind(
        self, pages: AsyncIterator[list[Execution]], invoice: InvoiceStatus | None
    ) -> None:
        while self._unread[pages] < SIMILAR_READ and not self._has_enough_for(invoice):
            executions: list[Execution] = await anext(pages, [])
            await gather_bounded([self._add(execution) for execution in executions])
            if len(executions) < SIMILAR_PAGE:
                del self._unread[pages]
                return
            self._unread[pages] += len(executions)
            if invoice is None:
                return

    def _has_enough_for(self, invoice: InvoiceStatus | None) -> bool:
        if invoice is None:
            return False
        similar = similar_to(invoice, self._found)
        # The same bill is more telling than others with its total, so it is looked for.
        can_be_same_bill = invoice.supplier and invoice.supplier_reference
        return len(similar) == SHOWN_SIMILAR and (
            not can_be_same_bill or all(one.same_bill for one in similar)
        )

    async def _add(self, execution: Execution) -> None:
        if status := await self._runs.read_status(execution):
            self._found.append(status)


class SimilarSearch:
    """Searches for an invoice's similar ones while other calls run.

    `with SimilarSearch(search, invoice_id) as similar` ends the search with the context. It begins
    as soon as the total is known or can be guessed, and `add_to` begins it again if that was wrong.
    """

    def __init__(self, search: InvoiceSearch, invoice_id: str) -> None:
        self._search = search
        self._invoice_id = invoice_id
        self._total: Total | None = None
        self._same_total: SameTotal | None = None
        self._reading: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reading:
            self._reading.cancel()

    def _begin(self, total: Total) -> None:
        if self._reading:
            self._reading.cancel()
        self._total = total
        self._same_total = self._search.with_same_total(self._invoice_id, *total)
        self._reading = in_background(self._same_total.read_on())

    def begin(self, total: Total | None = None) -> None:
        """Begins with this total or, by default, with the one that the invoice had last."""
        if total := total or self._search.last_totals.get(self._invoice_id):
            self._begin(total)

    def begin_with_memo(self, description: Execution) -> None:
        """Begins with the total in a memo, which another client may have written."""
        with suppress(ValidationError):
            memo = RunProgress.model_validate(description.memo.read(RunProgress.model_fields))
            if self._reading is None and memo.state == "waiting" and memo.total and memo.currency:
                self._begin((memo.total, memo.currency))

    async def add_to(self, status: InvoiceStatus) -> InvoiceStatus:
        """The status with the similar invoices, if the invoice waits for a decision."""
        totals = self._search.last_totals
        if status.is_decided or status.total is None or status.currency is None:
            totals.pop(status.invoice_id, None)
            return status
        total = (status.total, status.currency)
        keep_latest(totals, status.invoice_id, total, REMEMBERED_RUNS)
        if self._total != total:
            self._begin(total)
        assert self._same_total, "the search has begun"
        assert self._reading
        await self._reading
        similar = await self._same_total.similar_to(status)
        is_incomplete = self._same_total.is_incomplete
        return status.model_copy(
            update={"similar": similar or None, "similar_incomplete": is_incomplete or None}
        )


def _is_in_state(status: InvoiceStatus, which: Which) -> bool:
    # Where the state isn't known, it may be any in which Temporal's list has the run.
    return which in ("all", status.state) or status.status in NOT_KNOWN_TEXTS


def _list_query(which: Which, has_state_attribute: bool, *, is_open: bool) -> str:
    query = f"{_INVOICES} AND CloseTime IS {'NULL' if is_open else 'NOT NULL'}"
    if which == "all":
        return query
    statuses = _EXECUTION_STATUS.get(which)
    if statuses:
        query += f" AND ExecutionStatus IN ({', '.join(map(repr, statuses))})"
    # This only excludes states with the same execution status. The attribute can be wrong: any
    # starter can set it, the tutorial's worker never changes it, and a terminated run keeps its
    # last value.
    others = [other for other in get_args(State) if other != which]
    others = [other for other in others if _EXECUTION_STATUS.get(other) == statuses]
    if has_state_attribute and others:
        name = INVOICE_STATE.name
        query += f" AND ({name} NOT IN ({', '.join(map(repr, others))}) OR {name} IS NULL)"
    return query


def _started_between(query: str, since: datetime | None, until: datetime | None) -> str:
    if since:
        query += f" AND StartTime >= '{since.isoformat()}'"
    return query + (f" AND StartTime < '{until.isoformat()}'" if until else "")


_INVOICES = (
    f"WorkflowType='{INVOICE_WORKFLOW}' AND WorkflowId STARTS_WITH {quoted(WORKFLOW_ID_PREFIX)}"
)
"""The tools can't reach a run with any other workflow id, and it isn't the invoice of that name."""
_EXECUTION_STATUS: dict[State, list[str]] = {
    "completed": ["Completed"],
    "rejected": ["Completed"],
    "timed_out": ["Completed"],
    "failed": ["Failed"],
    "cancelled": ["Canceled"],
    "terminated": ["Terminated", "TimedOut"],
}
"""Of the closed runs. Open ones can be running or paused."""
