"""Bad input: a call starts exactly what was sent or is refused in words, and nothing breaks.

Arguments go to the real server as raw JSON-RPC lines, which a client library wouldn't send.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from raw_client import RawClient
from support import Tools, Worker, an_invoice, eventually, paid

NAME = "@"
"""A placeholder for a new id in every call. An invoice's id can't have this character."""


async def call(server: RawClient, tool: str, arguments: Any) -> tuple[bool, str]:
    """Calls a tool. Returns whether it refuses, and its words."""
    answer = await server.request("tools/call", name=tool, arguments=arguments)
    if error := answer.get("error"):
        return True, error["message"]
    content = answer["result"]["content"]
    assert len(content) == 1
    return answer["result"]["isError"], content[0]["text"]


@pytest.fixture(scope="module")
async def server(
    address: str, worker: Worker, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RawClient]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    async with RawClient(address, log=log) as server:
        yield server
        assert server.process.returncode is None
        assert "Traceback" not in log.read_text()


@pytest.fixture
def tools(tools_here: Tools) -> Tools:
    """What other clients sent doesn't depend on the server's process or the era."""
    return tools_here


def readable(words: str) -> bool:
    """Whether these are short sentences without tracebacks, addresses or control characters."""
    return (
        len(words) < 600
        and words.isprintable()
        and words.endswith(".")
        and not re.search(
            r"pydantic|temporalio|fastmcp|rpc|https?:|Traceback|Error|\[type=|0x|sys\.|Decimal"
            r"|validation error|Exceeds",
            words,
        )
    )


def loaded(value: Any) -> Any:
    """The value of a JSON string, or any other value as it is."""
    return json.loads(value) if isinstance(value, str) else value


DEFAULTS: dict[str, Any] = {
    "currency": "USD",
    "approval_timeout_days": 5,
    "payment_interval_seconds": 2,
}
NO_DESCRIPTION: dict[str, Any] = {"description": None}


def assert_same(sent: Any, started: dict[str, Any]) -> None:
    """Asserts that what was started is what was sent. Defaults may be left out or not."""
    sent, started = DEFAULTS | sent, DEFAULTS | started
    assert started.pop("id") == str(sent.pop("id"))
    lines = loaded(sent.pop("lines"))
    for line, started_line in zip(lines, started.pop("lines"), strict=True):
        line, started_line = NO_DESCRIPTION | line, NO_DESCRIPTION | started_line
        assert Decimal(started_line.pop("amount")) == Decimal(str(line.pop("amount")))
        assert started_line == line
    for number in ("approval_timeout_days", "payment_interval_seconds"):
        assert not isinstance(sent[number], bool)
        assert started.pop(number) == float(sent.pop(number))
    assert started == sent


async def first_input(client: Client, name: str) -> dict[str, Any]:
    """The argument with which an invoice's workflow was started."""
    async for event in client.get_workflow_handle(f"invoice-{name}").fetch_history_events():
        payload = event.workflow_execution_started_event_attributes.input.payloads[0]
        value: dict[str, Any] = json.loads(payload.data)
        return value
    raise AssertionError


async def exists(client: Client, workflow: str) -> bool:
    try:
        await client.get_workflow_handle(workflow).describe()
    except RPCError as error:
        return error.status != RPCStatusCode.NOT_FOUND
    return True


def named(value: Any, name: str) -> Any:
    """A copy with `name` in place of every `NAME`."""
    return json.loads(json.dumps(value).replace(NAME, name))


def lines(number: int) -> list[dict[str, Any]]:
    return [{"item": "Pens", "amount": 1}] * number


def one(**fields: Any) -> dict[str, Any]:
    return {"id": NAME, "lines": lines(1), **fields}


def line_string(note: str) -> dict[str, Any]:
    return one(lines=f'[{{"item": "Pens", "amount": 1, "note": {note}}}]')


# The rules of each field are tested in `tests/unit/test_invoice.py`, with anything at all.
INVOICES: dict[str, Any] = {
    "plain": one(),
    "whole as JSON": json.dumps(one()),
    "lines as JSON": one(lines=json.dumps(lines(2))),
    "id of many letters": one(id=f"é/{NAME}#7_"),
    "all fields": one(
        lines=[{"item": "é\u202e", "amount": "9999999999.99", "description": None, "tax": 0.19}],
        currency="EUR",
        approval_timeout_days=0.5,
        payment_interval_seconds=3600,
        vendor={"b": [1, -0.5, None], "": {}},
        digest="0",
        __class__=None,
    ),
    "500 lines": one(lines=lines(500)),
    "1 MiB, nearly": json.dumps(one(note="x" * (2**20 - 200))),
    "nested": one(note=json.loads("[" * 20 + "]" * 20)),
}
REFUSED: dict[str, Any] = {
    "nothing": None,
    "no object": [1],
    "no amount": one(lines=[{"item": "Pens", "amount": "1e3"}]),
    "huge number": one(lines=[{"item": "Pens", "amount": 10**400}]),
    "501 lines": json.dumps(one(lines=lines(501))),
    "over 1 MiB": one(note="x" * 2**20),
    "hidden letter": one(id=f"{NAME}\u202e"),
    "yes for a duration": one(approval_timeout_days=True),
    "nested more than 20 levels": one(note=json.loads("[" * 21 + "]" * 21)),
    "101 other fields": one(**{f"field_{n}": n for n in range(101)}),
    "fields without end": json.dumps(one(**{f"{n:x}": [] for n in range(95_000)})),
    "nested too deeply": json.dumps(one(note=1)).replace("1}", "[" * 230 + "]" * 230 + "}"),
    "lone surrogate": json.dumps(one(note="surrogate")).replace("surrogate", r"\ud800"),
    "NUL in an item": one(lines=[{"item": "a\0b", "amount": 1}]),
    "NUL in a customer": one(customer="cus\0"),
    "NaN": json.dumps(one(note=1)).replace("1}", "NaN}"),
    "brackets": "[" * 100_000,
    "NaN in lines": line_string("NaN"),
    "lone surrogate in lines": line_string(r'"\ud800"'),
    "lines nested too deeply": line_string("[" * 230 + "]" * 230),
    "long lines": line_string("[" + ",".join(["1e15"] * 150_000) + "]"),
}


@pytest.mark.parametrize("invoice", INVOICES.values(), ids=INVOICES)
async def test_invoice_is_started_exactly_as_sent(
    server: RawClient, client: Client, invoice: Any
) -> None:
    sent = named(invoice, uuid4().hex)
    refused, words = await call(server, "process_invoice", {"invoice_data": sent})
    assert not refused, words
    content = loaded(sent)
    assert_same(content, await first_input(client, content["id"]))


@pytest.mark.parametrize("invoice", REFUSED.values(), ids=REFUSED)
async def test_what_is_not_an_invoice_is_refused_in_words(
    server: RawClient, client: Client, invoice: Any
) -> None:
    name = uuid4().hex
    arguments = {"invoice_data": named(invoice, name)}
    refused, words = await call(server, "process_invoice", arguments)
    assert refused
    assert readable(words), words
    assert words.startswith("Nothing was done. invoice_data"), words
    assert not await exists(client, f"invoice-{name}")


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("approve_invoice", {}),
        ("approve_invoice", {"invoice_id": "x" * 10**6}),
        ("approve_invoice", {"invoice_id": NAME, "confirm": True}),
        ("reject_invoice", {"invoice_id": NAME, "reason": "x" * 1001}),
        ("reject_invoice", {"invoice_id": NAME, "reason": "\x1b[31m\u202e"}),
        ("reject_invoice", {"invoice_id": [None, {"": -1e300}]}),
        ("get_invoice_status", {"invoice_id": 10**400}),
        ("get_invoice_status", {"invoice_id": NAME, "ctx": {}}),
        ("list_invoices", {"status": "all' OR '1'='1"}),
        ("list_invoices", {"<script>\x00": 5}),
    ],
    ids=str,
)
async def test_any_tool_refuses_strange_arguments_in_words(
    server: RawClient, tool: str, arguments: dict[str, Any]
) -> None:
    refused, words = await call(server, tool, named(arguments, uuid4().hex))
    assert refused
    assert readable(words), words


@pytest.mark.parametrize("tool", ["process_invoice", "approve_invoice", "get_invoice_status"])
@pytest.mark.parametrize("arguments", [None, 5, "x", [1], True])
async def test_arguments_that_are_not_an_object_are_refused(
    server: RawClient, tool: str, arguments: Any
) -> None:
    refused, _ = await call(server, tool, arguments)
    assert refused


GARBAGE = [
    b"",
    b"{",
    b"null",
    b"5",
    b"[]",
    b'"text"',
    b"\xff\xfe\x00",
    b"\x00" * 100,
    b"[" * 100_000,
    b'"' + b"x" * 3_000_000 + b'"',
    b'{"jsonrpc": "2.0"}',
    b'{"jsonrpc": "1.0", "id": "old", "method": "ping"}',
    b'{"jsonrpc": "2.0", "id": null, "method": "ping"}',
    b'{"jsonrpc": "2.0", "id": [1], "method": "ping"}',
    b'{"jsonrpc": "2.0", "id": {}, "method": 5}',
    b'{"jsonrpc": "2.0", "id": "unknown", "method": "no/such"}',
    b'{"jsonrpc": "2.0", "id": "number", "method": "tools/call", "params": 5}',
    b'{"jsonrpc": "2.0", "id": "none", "method": "tools/call"}',
    b'{"jsonrpc": "2.0", "id": "tool", "method": "tools/call", "params": {"name": 5}}',
    b'{"jsonrpc": "2.0", "id": "no-such", "method": "tools/call", "params": {"name": "no-such"}}',
    b'{"jsonrpc": "2.0", "id": "answer", "result": {}}',
    b'{"jsonrpc": "2.0", "id": "error", "error": {"code": 1, "message": "x"}}',
    b'[{"jsonrpc": "2.0", "id": "batch", "method": "ping"}]',
    b'{"jsonrpc": "2.0", "id": "again", "method": "initialize", "params": {}}',
    b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 999}}',
    b'{"jsonrpc": "2.0", "method": "notifications/no-such"}',
    # These aren't JSON for the SDK, which drops such lines without an answer.
    b'{"jsonrpc": "2.0", "id": "surrogate", "method": "ping", "params": {"_": "\\ud800"}}',
    b'{"jsonrpc": "2.0", "id": "digits", "method": "ping", "params": {"_": ' + b"9" * 5000 + b"}}",
]


async def answers_again(server: RawClient) -> None:
    """Reads the answers up to that of a ping. Earlier lines may have got errors."""
    number = f"ping-{uuid4()}"
    await server.send(id=number, method="ping")
    while (answer := await server.receive())["id"] != number:
        assert "error" in answer or answer["result"]["isError"]
    assert answer["result"] == {}


@pytest.mark.parametrize("line", GARBAGE, ids=lambda line: repr(line[:60]))
async def test_garbage_does_not_crash_the_server(server: RawClient, line: bytes) -> None:
    await server.send_line(line)
    await answers_again(server)


# Other clients of the Temporal Service: its CLI, the Web UI, somebody's script.


def raw(data: bytes, encoding: bytes = b"json/plain") -> RawValue:
    return RawValue(Payload(metadata={"encoding": encoding}, data=data))


UNKNOWN = raw(b"zzz", b"no/such")
NO_JSON = raw(b"{{{")
NONSENSE: dict[str, list[Any]] = {
    "nothing": [],
    "null": [None],
    "number": [5],
    "list": [[1]],
    "string": ["x"],
    "bytes": [b"\xff\x00"],
    "unknown-encoding": [UNKNOWN],
    "no-encoding": [RawValue(Payload(data=b"x"))],
    "no-json": [NO_JSON],
    "no-utf-8": [raw(b'{"id": "\xff"}')],
    "protobuf": [raw(b"\xff", b"json/protobuf")],
    "nested": [raw(b"[" * 100_000)],
    "digits": [raw(b"9" * 5000)],
    "nan": [raw(b'{"id": NaN}')],
    "huge": [{"id": "x" * 1_500_000}],
    "two": [5, 6],
    "two-undecodable": [UNKNOWN, NO_JSON],
}


async def start(client: Client, name: str, *arguments: Any, memo: Any = None) -> Any:
    return await client.start_workflow(
        "InvoiceWorkflow",
        args=arguments,
        id=f"invoice-{name}",
        task_queue="invoice-task-queue",
        memo=memo,
    )


async def invalid_invoice(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    """The failure of a run, which must come at once and be `InvalidInvoice`."""
    try:
        with pytest.raises(WorkflowFailureError) as caught:
            await asyncio.wait_for(handle.result(), 30)
    except TimeoutError:
        await handle.terminate()
        raise
    failure = caught.value.cause
    assert isinstance(failure, ApplicationError)
    assert failure.type == "InvalidInvoice"
    return failure


@pytest.mark.parametrize("arguments", NONSENSE.values(), ids=NONSENSE)
async def test_workflow_started_with_nonsense_fails_at_once(
    client: Client, worker: Worker, arguments: list[Any]
) -> None:
    handle = await start(client, uuid4().hex, *arguments)
    await invalid_invoice(handle)


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("lines(1).item", {"lines": [*lines(1), {"item": "s3cret\0", "amount": 1}]}),
        ("customer", {"customer": "s3cret\0"}),
        ("payment_method", {"payment_method": "s3cret\0"}),
    ],
)
async def test_workflow_started_with_text_that_no_ledger_can_store_fails_at_once(
    field: str, fields: dict[str, Any], client: Client, tools: Tools, worker: Worker
) -> None:
    invoice = an_invoice(**fields)
    handle = await start(client, invoice["id"], invoice)
    failure = await invalid_invoice(handle)
    rule = f"Invalid invoice: {field}: must be text without NUL or half characters"
    assert failure.message == rule
    assert rule in await tools("get_invoice_status", invoice_id=invoice["id"])
    # The first event has the content.
    events = (await handle.fetch_history()).events[1:]
    assert "s3cret" not in str(events) + worker.log.read_text()
    # Its id can be used again.
    await tools("process_invoice", invoice_data=an_invoice(id=invoice["id"]))


async def test_workflow_under_another_id_than_the_invoices_fails(
    client: Client, tools: Tools, worker: Worker
) -> None:
    invoice, name = an_invoice(), uuid4().hex
    handle = await start(client, name, invoice)
    with pytest.raises(WorkflowFailureError):
        await asyncio.wait_for(handle.result(), 30)
    words = await tools("get_invoice_status", invoice_id=name)
    assert f"the workflow id must be invoice-{invoice['id']}" in words
    assert not paid(worker.data, invoice)


@pytest.mark.parametrize("arguments", NONSENSE.values(), ids=NONSENSE)
async def test_decision_with_nonsense_is_still_taken(
    client: Client, worker: Worker, arguments: list[Any]
) -> None:
    invoice = an_invoice(lines=[{"item": "Pens", "amount": 1}])
    handle = await start(client, invoice["id"], invoice)
    await handle.signal("approve_invoice", args=arguments)
    try:
        result = await asyncio.wait_for(handle.result(), 30)
    except TimeoutError:
        await handle.terminate()
        raise
    assert result == "COMPLETED"
    assert len(paid(worker.data, invoice)) == 1


async def test_unknown_signal_changes_nothing(client: Client, tools: Tools) -> None:
    invoice = an_invoice()
    handle = await start(client, invoice["id"], invoice)
    await handle.signal("no_such_signal", UNKNOWN)
    assert (await tools.status(invoice))["state"] == "waiting"
    await tools("reject_invoice", invoice_id=invoice["id"])
    assert await handle.result() == "REJECTED"


MEMOS: dict[str, dict[str, Any]] = {
    "unknown-encoding": {"status": UNKNOWN},
    "no-json": {"digest": NO_JSON},
    "other-key": {"project": UNKNOWN},
    "wrong-types": {"status": 5, "digest": ["x"], "total": {}, "decision": "yes"},
    "out-of-range": {
        "status": "x",
        "digest": "x",
        "total": "1",
        "currency": "USD",
        "line_count": 10**30,
        "approval_timeout_days": 1e300,
    },
}


@pytest.mark.parametrize("memo", MEMOS.values(), ids=MEMOS)
async def test_a_strange_memo_does_not_harm_the_invoice_or_the_list(
    client: Client, tools: Tools, worker: Worker, memo: dict[str, Any]
) -> None:
    # With a near deadline it is among the first in the list.
    invoice = an_invoice(lines=[{"item": "Pens", "amount": 1}], approval_timeout_days=0.5)
    invalid = uuid4().hex
    handles = [await start(client, invalid, 5, memo=memo)]
    handles += [await start(client, invoice["id"], invoice, memo=memo)]
    try:

        async def listed() -> bool:
            waiting = await tools("list_invoices", status="waiting")
            return invoice["id"] in waiting and invalid in await tools(
                "list_invoices", status="failed"
            )

        assert await eventually(listed)
        assert "Invalid invoice" in await tools("get_invoice_status", invoice_id=invalid)
        await tools("approve_invoice", invoice_id=invoice["id"])
        await tools.until(invoice, "completed")
    finally:
        # Other tests would list these runs too.
        await forget(client, handles)


async def forget(client: Client, handles: list[Any]) -> None:
    for handle in handles:
        await client.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=WorkflowExecution(workflow_id=handle.id),
            )
        )
