"""Payloads as other clients may send them.

Anybody who reaches the Temporal Service can start a workflow or send a signal, with arguments that
are encoded in ways unknown here, of the wrong type, or too many. The SDK would fail the workflow
task for ever on a start that it can't decode, and drop such a signal: an invoice that never ends,
a decision that is lost. So `LenientPayloadConverter` never fails, and the workflow takes its
arguments raw (`RawValue`) and validates them itself.
"""

from collections.abc import Sequence
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.converter import DataConverter, DefaultPayloadConverter

NO_PAYLOAD = RawValue(Payload())
"""The default of an argument that is left out."""


def json_payload(data: bytes) -> RawValue:
    """JSON text as it goes over the wire, byte for byte."""
    return RawValue(Payload(metadata={"encoding": b"json/plain"}, data=data))


class LenientPayloadConverter(DefaultPayloadConverter):
    """What can't be decoded stays raw, and of surplus arguments the first counts.

    What is sent is the same as with the SDK's own converter.
    """

    def from_payloads(
        self, payloads: Sequence[Payload], type_hints: list[type] | None = None
    ) -> list[Any]:
        if type_hints is None and len(payloads) > 1:  # not as many as the handler takes
            return [RawValue(payloads[0])]
        try:
            return super().from_payloads(payloads, type_hints)
        except Exception:
            # All that the SDK promises of it: besides the `KeyError` and `RuntimeError` that its
            # converters raise on purpose, there is `UnicodeDecodeError` for the name of an
            # encoding, `ValueError` for a number of 5,000 digits, `TypeError` for a message type
            # that isn't a message, and what protobuf raises for odd JSON.
            return [RawValue(payload) for payload in payloads]


class LenientDataConverter(DataConverter):
    """Takes no payload for one that is stored elsewhere.

    Nothing here is stored elsewhere, so one that says so was sent by another client. The SDK would
    fail the workflow's tasks for ever on a single signal of that kind. It has no public way to say
    that; `test_odd_signals_lose_no_decision` shows whether this one still works.
    """

    async def _decode_reference_payload_sequence(
        self, payloads: Sequence[Payload]
    ) -> list[Payload]:
        return list(payloads)

    async def _external_retrieve_payload_sequence(
        self, payloads: Sequence[Payload]
    ) -> list[Payload]:
        return list(payloads)


data_converter = LenientDataConverter(payload_converter_class=LenientPayloadConverter)
