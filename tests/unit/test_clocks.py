"""How far two clocks differ, by what is certain."""

from datetime import UTC, datetime, timedelta

import pytest

from invoice_client import InvoiceClient, Span

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("begin", "end", "offset"),
    [(-1, 1, 0), (-10, 10, 0), (5, 6, -5), (-6, -5, 5), (5, -5, None)],
)
def test_clocks_differ_only_by_what_cannot_be_the_time_of_the_call(
    begin: float, end: float, offset: float | None
) -> None:
    invoices = InvoiceClient.__new__(InvoiceClient)
    invoices._clock_offset = None
    span = Span(NOON + timedelta(seconds=begin), NOON + timedelta(seconds=end))
    invoices._compare_clocks(span, NOON)
    assert invoices._clock_offset == offset
