"""A worker whose gateway takes its time: until the file `go-on` is in the data directory.

It has one slot for payments, and another limit for heartbeats if `HEARTBEAT_TIMEOUT` says so.
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
