"""Decodes payloads without failing, whatever other clients send.

Anyone who can reach the Temporal Service can start a workflow or send a signal with arguments that
have an unknown encoding or the wrong type, or with too many arguments. If the SDK can't decode the
arguments of a start, it fails the workflow task forever, so the invoice never ends. If it can't
decode a signal, it drops it, so a decision is lost. Therefore `LenientPayloadConverter` never
fails, and the workflow takes raw arguments (`RawValue`) and validates them itself.
"""

from collections.abc import Sequence
from typing import Any

from temporalio.api.common.v1 import Payload, Payloads
from temporalio.common import RawValue
from temporalio.converter import DataConverter, DefaultPayloadConverter

NO_PAYLOAD = RawValue(Payload())
"""The default for an argument that was left out."""


def json_payload(data: bytes) -> RawValue:
    """A payload with exactly this JSON text."""
    return RawValue(Payload(metadata={"encoding": b"json/plain"}, data=data))


def first_data(payloads: Payloads) -> bytes:
    """The bytes of the first payload; empty if there is none."""
    return payloads.payloads[0].data if payloads.payloads else b""


class LenientPayloadConverter(DefaultPayloadConverter):
    """Keeps payloads raw that can't be decoded. Of too many arguments, it uses the first.

    It encodes in the same way as the SDK's own converter.
    """

    def from_payloads(
        self, payloads: Sequence[Payload], type_hints: list[type] | None = None
    ) -> list[Any]:
        if type_hints is None and len(payloads) > 1:  # more than the handler takes
            return [RawValue(payloads[0])]
        try:
            return super().from_payloads(payloads, type_hints)
        except Exception:
            # The SDK documents no narrower type. Its converters raise `KeyError` and
            # `RuntimeError`, but also `UnicodeDecodeError` for an encoding's name, `ValueError`
            # for a number of 5,000 digits, `TypeError` for a message type that isn't a message,
            # and protobuf's own errors for odd JSON.
            return [RawValue(payload) for payload in payloads]


class LenientDataConverter(DataConverter):
    """Never treats a payload as a reference to one in external storage.

    This project doesn't use external storage, so such a payload comes from another client. A single
    signal with one would make the SDK fail the workflow's tasks forever. The SDK has no public way
    to turn this off. `test_odd_signals_do_not_lose_a_decision` checks that this override still
    works.
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
