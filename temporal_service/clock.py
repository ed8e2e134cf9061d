"""Compares the Temporal Service's clock, which decides, with this computer's clock."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from typing import NamedTuple


class CallTimes(NamedTuple):
    """When a call was sent and when it was answered, by this computer's clock."""

    sent: datetime
    answered: datetime


@dataclass
class ServiceClock:
    """How far the service's clock is ahead of this computer's, as measured by calls."""

    offset_seconds: float | None = None
    """None until the clocks have been compared."""
    _compared_at: float = -inf
    """By the monotonic clock."""

    @property
    def now(self) -> datetime:
        """The service's time as far as that is known, otherwise this computer's."""
        return self.service_time(datetime.now(UTC))

    def service_time(self, moment: datetime) -> datetime:
        """A moment by this computer's clock, as the service's clock has it, as far as is known."""
        return moment + timedelta(seconds=self.offset_seconds or 0)

    @property
    def is_compared_lately(self) -> bool:
        """Whether the clocks were compared within the last minute."""
        return time.monotonic() - self._compared_at < 60

    def compare(self, call: CallTimes, at: datetime) -> None:
        """Adjusts the offset by the smallest amount that agrees with the call's times.

        Args:
            at: when the service did something during `call`, by its own clock.
        """
        self._compared_at = time.monotonic()
        least = (at - call.answered).total_seconds()
        most = (at - call.sent).total_seconds()
        if least <= most:  # otherwise this computer's clock was changed during the call
            self.offset_seconds = min(max(self.offset_seconds or 0.0, least), most)
