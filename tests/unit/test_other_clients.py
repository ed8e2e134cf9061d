"""What other clients of the Temporal Service have written, read without a service."""

from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload, Payloads

import audit
from invoice_runs import TrustedMemos
from invoices.messages import PaymentRequest
from temporal_service.executions import Execution
from temporal_service.payloads import LenientPayloadConverter


def payload(data: bytes, encoding: bytes = b"json/plain", **metadata: bytes) -> Payload:
    return Payload(metadata={"encoding": encoding, **metadata}, data=data)


def an_execution(**memo: Any) -> Execution:
    now = datetime.now(UTC)
    return Execution("invoice-1", "run", "InvoiceWorkflow", None, now, None, memo)


@pytest.mark.parametrize(
    ("memo", "is_believed"),
    [({"submitted_at": "then"}, True), ({"submitted_at": "guessed"}, False), ({}, False)],
)
def test_a_memo_from_before_the_workflows_is_not_believed(
    memo: dict[str, Any], is_believed: bool
) -> None:
    """A list lags behind the history, in which the workflow has written since."""
    trusted = TrustedMemos()
    trusted.add("invoice-1", "run", "then")
    assert trusted.has_memo_of(an_execution(**memo)) == is_believed


ODD: dict[str, Payload] = {
    "encoding": payload(b"1", b"\xff\xfe"),
    "unknown-encoding": payload(b"1", b"no/such"),
    "no-encoding": Payload(data=b"1"),
    "no-json": payload(b"{{{"),
    "no-utf-8": payload(b'"\xff"'),
    "binary": payload(b"\xff\x00", b"binary/plain"),
    "null-with-data": payload(b"x", b"binary/null"),
    "message-type": payload(b"{}", b"json/protobuf", messageType=b"\xff\xfe"),
    "enum-as-message": payload(
        b"{}", b"json/protobuf", messageType=b"temporal.api.enums.v1.EventType"
    ),
    "wrong-message": payload(
        b'{"seconds": 1e999}', b"json/protobuf", messageType=b"google.protobuf.Timestamp"
    ),
    "no-message": payload(
        b"\xff", b"binary/protobuf", messageType=b"temporal.api.common.v1.Payload"
    ),
    "stored-elsewhere": payload(b"{}", b"json/external-storage-reference"),
    "marked-as-stored": payload(b"{}", __temporal_external_storage_reference=b"true"),
    "nested": payload(b"[" * 50_000),
    "nested-objects": payload(b'{"a":' * 10_000),
    "digits": payload(b"9" * 5000),
    "infinity": payload(b"1e999999"),
    "nan": payload(b"NaN"),
    "surrogate": payload(rb'"\ud800"'),
    "controls": payload(rb'"\u0000\u001b[2J\u202e"'),
    "exponent": payload(b'"1e999999999"'),
    "number": payload(b"-1"),
    "list": payload(b"[1]"),
    "object": payload(b'{"approved": "x", "at": "0001-01-01T00:00:00+10:00"}'),
    "first-year": payload(b'"0001-01-01T00:00:00+10:00"'),
    "last-year": payload(b'"9999-12-31T23:59:59-10:00"'),
    "no-time-zone": payload(b'"2026-01-01T00:00:00"'),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("hint", [None, str, int, dict[str, Any]])
def test_the_converter_converts_anything(odd: Payload, hint: Any) -> None:
    converter = LenientPayloadConverter()
    converter.from_payload(odd, hint)
    converter.from_payloads([odd, odd], [hint, hint] if hint else None)


@pytest.mark.parametrize(
    "line", [b'{"amount": "1e999999999"}', b'{"amount": -1}', b'{"currency": "\\u001b[2J"}', b"[1]"]
)
def test_an_odd_payment_in_a_history_is_none(line: bytes) -> None:
    """Writing out a number of a billion digits never ends."""
    assert audit._parsed(PaymentRequest, Payloads(payloads=[payload(line)])) is None
