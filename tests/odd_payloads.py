"""Payloads that other clients of the Temporal Service can write and that can't be converted."""

from temporalio.api.common.v1 import Payload


def payload(data: bytes, encoding: bytes = b"json/plain", **metadata: bytes) -> Payload:
    return Payload(metadata={"encoding": encoding, **metadata}, data=data)


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
