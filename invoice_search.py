"""Finds invoices in Temporal's visibility store, and changes nothing there."""

from temporalio.service import RPCError

from invoice_runs import InvoiceRuns, gather_bounded, is_unknown_workflow
from invoices.answers import InvoiceList, InvoiceStatus
from invoices.invoice import INVOICE_WORKFLOW, WORKFLOW_ID_PREFIX
from invoices.status import NOT_KNOWN_TEXTS, State
from reports import INVOICE_STATE
from temporal_service.executions import Execution, describe_execution, list_executions, quoted

LIST_LIMIT = 50
"""How many invoices `list_invoices` returns at most."""
SCAN_LIMIT = 1000
"""How many runs `list_invoices` reads at most to find those in one state."""


class InvoiceSearch:
    """Searches the invoices of one Temporal namespace."""

    def __init__(self, runs: InvoiceRuns) -> None:
        self._runs = runs

    async def list_invoices(self, state: State | None = None) -> InvoiceList:
        """The latest runs of up to `LIST_LIMIT` invoices, all or in one state, from their memos.

        These are the ones that Temporal lists first: open runs, newest first, then closed runs,
        most recently closed first. Up to `SCAN_LIMIT` runs that may be in the state are read, which
        matters for runs without the search attribute `InvoiceState`.
        """
        try:
            return await self._list(state, _list_query(state, self._runs.has_state_attribute))
        except RPCError as error:
            self._runs.expect_missing_state_attribute(error)
            return await self.list_invoices(state)

    async def _list(self, state: State | None, query: str) -> InvoiceList:
        found: list[InvoiceStatus] = []
        seen: set[str] = set()
        scanned = 0
        async for page in list_executions(self._runs.temporal, query, page_size=LIST_LIMIT):
            # Temporal lists an invoice's latest run before its other runs.
            latest = {one.id: one for one in reversed(page) if one.id not in seen}
            seen.update(latest)
            calls = [self._status_in(state, execution) for execution in latest.values()]
            statuses = dict(zip(latest, await gather_bounded(calls), strict=True))
            for execution in page:
                scanned += 1
                is_latest = execution is latest.get(execution.id)
                if is_latest and (status := statuses[execution.id]):
                    found.append(status)
                if len(found) == LIST_LIMIT:
                    break
            if len(found) == LIST_LIMIT or scanned >= SCAN_LIMIT:
                break
        # Visibility lags behind, so the list and the count may not match.
        not_shown = max(0, (await self._runs.temporal.count_workflows(query)).count - scanned)
        found.sort(key=lambda invoice: (invoice.is_open, invoice.submitted_at), reverse=True)
        exact = not_shown == 0 or await self._is_exact(state, query)
        return InvoiceList.of(found, not_shown, exact=exact)

    async def _status_in(self, state: State | None, execution: Execution) -> InvoiceStatus | None:
        """The status of a run; None if it is in another state or isn't the invoice's latest run."""
        status = await self._runs.read_status(execution)
        if status is None:
            return None
        # Where the state isn't known, it may be any in which Temporal's list has the run.
        is_in_state = status.state == state or status.status in NOT_KNOWN_TEXTS
        if state is None or (is_in_state and await self._is_latest(execution)):
            return status
        return None

    async def _is_exact(self, state: State | None, query: str) -> bool:
        """Whether every run that the query finds is in the state."""
        if state is None or not _states_with_same_execution_status(state):
            return True
        if not self._runs.has_state_attribute:
            return False
        name = INVOICE_STATE.name
        others = f"{query} AND ({name} IS NULL OR {name} != '{state}')"
        return (await self._runs.temporal.count_workflows(others)).count == 0

    async def _is_latest(self, execution: Execution) -> bool:
        """Whether it is the invoice's latest run. A list of one state can leave out later ones."""
        if execution.close_time is None:
            return True
        try:
            latest = await describe_execution(self._runs.temporal, execution.id)
        except RPCError as error:
            if not is_unknown_workflow(error):  # a run can be deleted in the meantime
                raise
            return False
        return latest.run_id == execution.run_id


def _states_with_same_execution_status(state: State) -> list[State]:
    """The other states that have the same execution status in Temporal."""
    by_temporal = _EXECUTION_STATUS[state]
    return [
        other
        for other, statuses in _EXECUTION_STATUS.items()
        if other != state and statuses == by_temporal
    ]


def _list_query(state: State | None, has_state_attribute: bool) -> str:
    # The tools can't reach a run with any other workflow id, and it isn't the invoice of that name.
    query = (
        f"WorkflowType='{INVOICE_WORKFLOW}' AND WorkflowId STARTS_WITH {quoted(WORKFLOW_ID_PREFIX)}"
    )
    if state:
        query += f" AND ExecutionStatus IN ({', '.join(map(repr, _EXECUTION_STATUS[state]))})"
        # This only excludes states with the same execution status. The attribute can be wrong:
        # any starter can set it, the tutorial's worker never changes it, and a terminated run
        # keeps its last value.
        if has_state_attribute and (others := _states_with_same_execution_status(state)):
            name = INVOICE_STATE.name
            query += f" AND ({name} NOT IN ({', '.join(map(repr, others))}) OR {name} IS NULL)"
    return query


_EXECUTION_STATUS: dict[State, list[str]] = {
    "waiting": ["Running"],
    "paying": ["Running"],
    "completed": ["Completed"],
    "rejected": ["Completed"],
    "timed_out": ["Completed"],
    "failed": ["Failed"],
    "cancelled": ["Canceled"],
    "terminated": ["Terminated", "TimedOut"],
}
