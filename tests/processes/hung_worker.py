"""A worker whose gateway never answers.

Its arguments are `DRAIN_SECONDS` and `END_SECONDS`.
"""

import os
import sys
import time

import activities
import worker
from payments.gateway import Payment
from payments.ledger import open_ledger
from payments.simulated import SimulatedGateway
from startup import data_directory


class HungGateway(SimulatedGateway):
    def pay(self, reference: str, payment: Payment) -> None:
        (data_directory() / "paying").touch()
        while True:
            time.sleep(60)


if __name__ == "__main__":
    worker.DRAIN_SECONDS, worker.END_SECONDS = map(int, sys.argv[1:])
    del sys.argv[1:]
    directory = data_directory()
    payments = (HungGateway(directory), open_ledger(directory))
    activities.open_payments = lambda: payments  # type: ignore[assignment]
    os._exit(worker.main())  # worker.py says why
