"""The smallest difference between two clocks that is certain."""

from datetime import UTC, datetime, timedelta

import pytest

from temporal_service.clock import CallTimes, ServiceClock

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("begin", "end", "offset"),
    [(-1, 1, 0), (-10, 10, 0), (5, 6, -5), (-6, -5, 5), (5, -5, None)],
)
def test_clocks_differ_only_by_what_cannot_be_the_time_of_the_call(
    begin: float, end: float, offset: float | None
) -> None:
    clock = ServiceClock()
    call = CallTimes(NOON + timedelta(seconds=begin), NOON + timedelta(seconds=end))
    clock.compare(call, NOON)
    assert clock.offset_seconds == offset
