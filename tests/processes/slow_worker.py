"""A worker whose gateway doesn't answer until there is a file `go-on` in the data directory.

It pays one line at a time. `HEARTBEAT_TIMEOUT` in its environment replaces the limit in seconds.
"""

import os
import time
from datetime import timedelta

import activities

if seconds := os.environ.get("HEARTBEAT_TIMEOUT"):  # before the workflow's code takes it over
    activities.HEARTBEAT_TIMEOUT = timedelta(seconds=float(seconds))
    activities.HEARTBEAT_SECONDS = float(seconds) / 10

import worker
from payments.gateway import Payment
from payments.ledger import open_ledger
from payments.simulated import SimulatedGateway
from startup import data_directory


class SlowGateway(SimulatedGateway):
    def pay(self, reference: str, payment: Payment) -> None:
        directory = data_directory()
        (directory / "paying").touch()
        while not (directory / "go-on").exists():
            time.sleep(0.02)
        super().pay(reference, payment)


if __name__ == "__main__":
    # Without a free one it waits for no other payment, which would be lost while it is frozen.
    worker.PAYMENTS_AT_ONCE = 1
    directory = data_directory()
    payments = (SlowGateway(directory), open_ledger(directory))
    activities.open_payments = lambda: payments  # type: ignore[assignment]
    os._exit(worker.main())  # worker.py says why
