"""Compares the Temporal Service's clock, which decides, with this computer's clock."""

import time
from dataclasses import dataclass
from datetime import datetime
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
