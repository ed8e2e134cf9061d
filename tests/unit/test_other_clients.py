"""Reading what other clients of the Temporal Service have written."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload, Payloads

import audit
from invoice_runs import TrustedMemos
from invoices.messages import PaymentRequest
from invoices.status import text_in_memo
from odd_payloads import ODD, payload
from temporal_service.executions import Execution, Memo
from temporal_service.payloads import LenientPayloadConverter


def an_execution(**memo: Any) -> Execution:
    now = datetime.now(UTC)
    fields = {name: payload(json.dumps(value).encode()) for name, value in memo.items()}
    return Execution("invoice-1", "run", "InvoiceWorkflow", None, now, None, Memo(fields))


@pytest.mark.parametrize(
    ("memo", "is_believed"),
    [({"submitted_at": "then"}, True), ({"submitted_at": "guessed"}, False), ({}, False)],
)
def test_a_memo_from_before_the_workflows_is_not_believed(
    memo: dict[str, Any], is_believed: bool
) -> None:
    """A list lags behind the history, to which the workflow has already written."""
    trusted = TrustedMemos()
    trusted.add("invoice-1", "run", "then")
    assert trusted.has_memo_of(an_execution(**memo)) == is_believed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ann@desk1", "ann@desk1"),
        ("é" * 10**6, "é" * 200),
        ("\ud800x", None),
        ("x\udfff", None),
        ("a\0", None),
        (5, None),
        (None, None),
        ({"by": "ann"}, None),
    ],
)
def test_a_starters_memo_gives_a_text_or_nothing(value: object, text: str | None) -> None:
    assert text_in_memo(value) == text


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("hint", [None, str, int, dict[str, Any]])
def test_the_converter_converts_anything(odd: Payload, hint: Any) -> None:
    converter = LenientPayloadConverter()
    converter.from_payload(odd, hint)
    converter.from_payloads([odd, odd], [hint, hint] if hint else None)


@pytest.mark.parametrize(
    "line", [b'{"amount": "1e999999999"}', b'{"amount": -1}', b'{"currency": "\\u001b[2J"}', b"[1]"]
)
def test_an_odd_payment_in_a_history_is_ignored(line: bytes) -> None:
    """Writing out a number with a billion digits would never end."""
    assert audit._parsed(PaymentRequest, Payloads(payloads=[payload(line)])) is None
