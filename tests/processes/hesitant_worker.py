"""A worker that pauses after each payment, so that a kill often comes before the ledger has it."""

import os
import random
import time

import activities
import worker
from payments.gateway import Payment
from payments.ledger import open_ledger
from payments.simulated import SimulatedGateway
from startup import data_directory


class HesitantGateway(SimulatedGateway):
    def pay(self, reference: str, payment: Payment) -> None:
        super().pay(reference, payment)
        time.sleep(random.uniform(0, 0.4))


if __name__ == "__main__":
    directory = data_directory()
    payments = (HesitantGateway(directory), open_ledger(directory))
    activities.open_payments = lambda: payments  # type: ignore[assignment]
    os._exit(worker.main())
