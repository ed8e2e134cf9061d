"""A worker whose gateway doesn't answer until there is a file `go-on` in the data directory."""

import os
import time

import activities
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
    directory = data_directory()
    payments = (SlowGateway(directory), open_ledger(directory))
    activities.open_payments = lambda: payments  # type: ignore[assignment]
    os._exit(worker.main())  # worker.py says why
