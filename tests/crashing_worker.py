"""A worker whose gateway dies once, after its commit and before the activity completes."""

import os
import sys
from pathlib import Path

import activities
import worker
from payments import Confirmation, Payment, SimulatedGateway
from startup import data_directory


class CrashingGateway(SimulatedGateway):
    def pay(self, payment: Payment) -> Confirmation:
        confirmation = super().pay(payment)
        marker = Path(os.environ["INVOICE_DATA_DIR"]) / "crashed"
        if not marker.exists():
            marker.touch()
            os._exit(137)  # what kill -9 leaves: nothing is flushed, closed or reported
        return confirmation


if __name__ == "__main__":
    gateway = CrashingGateway(data_directory())
    activities.gateway = lambda: gateway  # type: ignore[assignment]
    sys.exit(worker.main())
