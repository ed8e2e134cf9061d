"""A worker that pauses after each payment, so that a kill often comes before the ledger has it.

It pays `PAYMENTS_AT_ONCE` lines at once, from its environment.
"""

import os
import random
import time
from functools import cache

import activities
import worker
from payments.gateway import Payment, PaymentGateway
from payments.ledger import Ledger

open_payments = activities.open_payments


@cache
def open_hesitant_payments() -> tuple[PaymentGateway, Ledger]:
    gateway, ledger = open_payments()
    pay = gateway.pay

    def pay_and_pause(reference: str, payment: Payment) -> None:
        pay(reference, payment)
        time.sleep(random.uniform(0, 0.4))

    gateway.pay = pay_and_pause  # type: ignore[method-assign]
    return gateway, ledger


if __name__ == "__main__":
    worker.PAYMENTS_AT_ONCE = int(os.environ["PAYMENTS_AT_ONCE"])
    activities.open_payments = open_hesitant_payments
    os._exit(worker.main())
