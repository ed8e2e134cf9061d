"""The Temporal Service's clock, which counts, against this computer's, which may be wrong."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class CallTimes(NamedTuple):
    """When a call was sent and when it had been answered, by this computer's clock."""

    sent: datetime
    answered: datetime


@dataclass
class ServiceClock:
    """How far the service's clock is ahead of this computer's, as far as calls have shown it."""

    offset_seconds: float | None = None
    """None while nothing has been compared."""

    def compare(self, call: CallTimes, at: datetime) -> None:
        """Takes over by how much the clocks differ at least.

        Args:
            at: something that the service did during `call`, by its own clock.
        """
        least = (at - call.answered).total_seconds()
        most = (at - call.sent).total_seconds()
        if least <= most:  # else this computer's clock was set meanwhile
            self.offset_seconds = min(max(self.offset_seconds or 0.0, least), most)
