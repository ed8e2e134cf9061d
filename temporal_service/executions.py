"""Reads workflow executions from the Temporal Service, whatever other clients have written there.

The SDK's `describe` and `list_workflows` decode the search attributes of every execution. They
raise an exception if a client set an attribute of the wrong type or with an odd time zone, or if an
execution has a status that the SDK doesn't know. A single such run makes the whole list fail. The
functions here don't decode search attributes, and keep undecodable memo fields raw.
"""

import json
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryReverseRequest,
    ListWorkflowExecutionsRequest,
    QueryWorkflowRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import RawValue
from temporalio.service import RPCError, RPCStatusCode

from temporal_service.payloads import LenientPayloadConverter, first_data

EVENTS_PER_PAGE = 50
MAX_EVENTS = 1000
"""How many events are searched from the end of a history."""

MAX_MEMO_BYTES = 64 * 1024
"""Of the fields of a memo that are read together. Ours take less; nested ones take time to read."""

_converter = LenientPayloadConverter()
_STATUSES = {int(status): status for status in WorkflowExecutionStatus}


@dataclass(frozen=True)
class Memo:
    """The memo of a run, of which only those fields are decoded that are asked for.

    Any client can have written it: a list has up to 2 MB of it for each run.
    """

    _fields: Mapping[str, Payload] = field(default_factory=dict)

    def read(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of these fields that it has; none if they have more than `MAX_MEMO_BYTES`."""
        found = {name: self._fields[name] for name in names if name in self._fields}
        if sum(payload.ByteSize() for payload in found.values()) > MAX_MEMO_BYTES:
            return {}
        return {name: _plain(payload) for name, payload in found.items()}

    def get(self, name: str) -> Any:
        """The value of a field; None if it has no such field, or a larger one."""
        return self.read([name]).get(name)


@dataclass(frozen=True)
class Execution:
    """One run of a workflow. Any client can have chosen the ids, the type and the memo."""

    id: str
    run_id: str
    workflow_type: str
    status: WorkflowExecutionStatus | None
    """None for a status that the SDK doesn't know, such as paused."""
    start_time: datetime
    close_time: datetime | None
    memo: Memo
    raw_description: DescribeWorkflowExecutionResponse | None = None
    """None if the execution comes from a list."""

    @property
    def is_paused(self) -> bool:
        """Whether it is open, but paused or in a status that the SDK doesn't know."""
        return self.close_time is None and self.status is None

    @property
    def execution_time(self) -> datetime | None:
        """When its first workflow task comes, which its starter may have delayed or scheduled."""
        raw = self.raw_description
        return raw.workflow_execution_info.execution_time.ToDatetime(UTC) if raw else None

    @property
    def has_pending_workflow_task(self) -> bool:
        """Whether a worker has yet to process something that the run was sent."""
        raw = self.raw_description
        return raw is not None and raw.HasField("pending_workflow_task")

    @classmethod
    def of(
        cls, info: WorkflowExecutionInfo, description: DescribeWorkflowExecutionResponse | None
    ) -> "Execution":
        return cls(
            id=info.execution.workflow_id,
            run_id=info.execution.run_id,
            workflow_type=info.type.name,
            status=_STATUSES.get(info.status),
            start_time=info.start_time.ToDatetime(UTC),
            close_time=info.close_time.ToDatetime(UTC) if info.HasField("close_time") else None,
            memo=Memo(info.memo.fields),
            raw_description=description,
        )


async def describe_execution(client: Client, id: str, run_id: str | None = None) -> Execution:
    """One run of a workflow, by default the latest.

    Raises:
        temporalio.service.RPCError: in the same cases as the SDK's `describe`.
    """
    request = DescribeWorkflowExecutionRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=id, run_id=run_id or ""),
    )
    description = await client.workflow_service.describe_workflow_execution(request, retry=True)
    return Execution.of(description.workflow_execution_info, description)


@dataclass(frozen=True)
class CancelRequest:
    """A request to cancel a run. Whoever sent it has written all but the time."""

    identity: str
    reason: str
    at: datetime


async def last_events(client: Client, id: str, run_id: str, count: int) -> Sequence[HistoryEvent]:
    """At most the last `count` events of a run, newest first."""
    async for page in _history_from_its_end(client, id, run_id, count):
        return page
    return []


async def events_back_to(
    client: Client, id: str, run_id: str, is_last: Callable[[HistoryEvent], bool] = lambda _: False
) -> list[HistoryEvent] | None:
    """The events of a run, newest first, up to the first for which `is_last` is true, or to the
    start. None if the last `MAX_EVENTS` don't reach so far.
    """
    events: list[HistoryEvent] = []
    async for event in _searched_events(client, id, run_id):
        events.append(event)
        if event.event_id == 1 or is_last(event):
            return events
    return None


async def cancel_request(client: Client, id: str, run_id: str) -> CancelRequest | None:
    """The request to cancel a run; None if the last `MAX_EVENTS` events of its history have none.

    A run has at most one: the Temporal Service ignores later ones.
    """
    async for event in _searched_events(client, id, run_id):
        if event.HasField("workflow_execution_cancel_requested_event_attributes"):
            request = event.workflow_execution_cancel_requested_event_attributes
            at = event.event_time.ToDatetime(UTC)
            return CancelRequest(request.identity, request.cause, at)
    return None


async def date_by_originals(
    events: Sequence[HistoryEvent], read: Callable[[str], Awaitable[Sequence[HistoryEvent] | None]]
) -> bool:
    """Gives the signals that a reset has copied into a run the times of the originals.

    Args:
        events: the last events of the run, newest first. Their times are changed.
        read: gives the events of another run, newest first, or None if there are too many.

    Returns:
        False if there are too many.
    """
    ids = (event.workflow_task_failed_event_attributes.base_run_id for event in events)
    if not (base_id := next(filter(None, ids), "")):
        return True
    base: Sequence[HistoryEvent] | None = ()  # if it is past its retention, the copies count
    with unknown_workflow_suppressed():
        base = await read(base_id)
    if base is None or not await date_by_originals(base, read):
        return False
    originals = {_signal_key(event): event.event_time for event in base}
    for event in events:
        if (key := _signal_key(event)) and key in originals:
            event.event_time.CopyFrom(originals[key])
    return True


def _signal_key(event: HistoryEvent) -> tuple[str, str, bytes] | None:
    """All of a signal that a reset copies; None if the event isn't one, or has no request id."""
    signal = event.workflow_execution_signaled_event_attributes
    if not signal.request_id:
        return None
    return signal.request_id, signal.signal_name, first_data(signal.input)


async def _searched_events(client: Client, id: str, run_id: str) -> AsyncIterator[HistoryEvent]:
    """About the last `MAX_EVENTS` events of a run, newest first."""
    count = 0
    async for page in _history_from_its_end(client, id, run_id, EVENTS_PER_PAGE):
        for event in page:
            yield event
        count += len(page)
        if count >= MAX_EVENTS:
            return


async def _history_from_its_end(
    client: Client, id: str, run_id: str, page_size: int
) -> AsyncIterator[Sequence[HistoryEvent]]:
    request = GetWorkflowExecutionHistoryReverseRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=id, run_id=run_id),
        maximum_page_size=page_size,
    )
    service = client.workflow_service
    while True:
        page = await service.get_workflow_execution_history_reverse(request, retry=True)
        yield page.history.events
        if not page.next_page_token:
            return
        request.next_page_token = page.next_page_token


def is_unknown_workflow(error: RPCError) -> bool:
    return error.status == RPCStatusCode.NOT_FOUND and "amespace" not in error.message


@contextmanager
def unknown_workflow_suppressed() -> Iterator[None]:
    """Leaves the block if Temporal doesn't have the workflow: a run can be deleted meanwhile."""
    try:
        yield
    except RPCError as error:
        if not is_unknown_workflow(error):
            raise


async def query_execution(client: Client, id: str, run_id: str | None, query: str) -> Any:
    """A worker's answer to a query without arguments, raw if it can't be decoded.

    Raises:
        temporalio.service.RPCError: in the same cases as the SDK's `query`, with
            `INVALID_ARGUMENT` if the query fails.
    """
    request = QueryWorkflowRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=id, run_id=run_id or ""),
        query=WorkflowQuery(query_type=query),
    )
    answer = await client.workflow_service.query_workflow(request, retry=True)
    payloads = answer.query_result.payloads
    return _plain(payloads[0]) if payloads else None


async def has_no_poller(client: Client, task_queue: str) -> bool:
    """Whether no worker has polled a task queue for workflow tasks in the last minutes.

    The service goes on listing a worker for some minutes after it has ended.
    """
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    described = await client.workflow_service.describe_task_queue(request, retry=True)
    return not described.pollers


async def list_executions(
    client: Client, query: str, *, page_size: int = 50
) -> AsyncIterator[list[Execution]]:
    """The results of a visibility query, page by page.

    A memo can have 2 MB, and an answer from the service at most 128 MB, so keep pages small.

    Raises:
        temporalio.service.RPCError: in the same cases as the SDK's `list_workflows`.
    """
    request = ListWorkflowExecutionsRequest(
        namespace=client.namespace, query=query, page_size=page_size
    )
    while True:
        page = await client.workflow_service.list_workflow_executions(request, retry=True)
        yield [Execution.of(info, None) for info in page.executions]
        if not page.next_page_token:
            return
        request.next_page_token = page.next_page_token


def _plain(payload: Payload) -> Any:
    """The value of a payload, or the raw payload if its value can't be written as JSON."""
    value = _converter.from_payload(payload)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):  # bytes, a lone surrogate, endless nesting
        return RawValue(payload)
    return value


def quoted(text: str) -> str:
    """A text as a string literal for a visibility query."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
