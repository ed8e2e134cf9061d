"""A worker whose gateway takes its time: until the file `go-on` is in the data directory."""

import sys
import time

import activities
import worker
from payments import Confirmation, Payment, SimulatedGateway
from startup import data_directory


class SlowGateway(SimulatedGateway):
    def pay(self, payment: Payment) -> Confirmation:
        directory = data_directory()
        (directory / "paying").touch()
        while not (directory / "go-on").exists():
            time.sleep(0.02)
        return super().pay(payment)


if __name__ == "__main__":
    gateway = SlowGateway(data_directory())
    activities.gateway = lambda: gateway  # type: ignore[assignment]
    sys.exit(worker.main())
