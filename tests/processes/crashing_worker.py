"""A worker that dies once, after the ledger has its payment and before the activity completes."""

import os
from pathlib import Path

import activities
import worker
from payments.gateway import LedgerEntry
from payments.ledger import SQLiteLedger
from payments.simulated import SimulatedGateway
from startup import data_directory


class CrashingLedger(SQLiteLedger):
    def settle(self, entry: LedgerEntry) -> LedgerEntry:
        entry = super().settle(entry)
        marker = Path(os.environ["INVOICE_DATA_DIR"]) / "crashed"
        if not marker.exists():
            marker.touch()
            os._exit(137)  # what kill -9 leaves: nothing is flushed, closed or reported
        return entry


if __name__ == "__main__":
    directory = data_directory()
    payments = (SimulatedGateway(directory), CrashingLedger(directory / "payments.db"))
    activities.open_payments = lambda: payments  # type: ignore[assignment]
    os._exit(worker.main())  # worker.py says why
