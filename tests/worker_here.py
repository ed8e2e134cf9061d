"""Our worker in this process, for tests of what it does that aren't about its process."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from functools import cache
from pathlib import Path

import pytest

import activities
import worker
from support import connect


@contextmanager
def settings_here(settings: dict[str, str]) -> Iterator[pytest.MonkeyPatch]:
    """Gives this process these settings for a while, and no others of ours or of Temporal's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("TEMPORAL_", "INVOICE_", "PAYMENT_", "STRIPE_")):
                patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        yield patch


@asynccontextmanager
async def worker_here(address: str, data: Path, **settings: str) -> AsyncIterator[None]:
    """Runs what `worker.py` runs, and ends it as a signal does: a payment under way is finished.

    A process would take half a second to start, and if it was killed, Temporal would wait 10 s
    before it gave its workflows to another. The settings are those of this process, so that only
    one worker can run here at a time.
    """
    with settings_here({"INVOICE_DATA_DIR": str(data), **settings}) as patch:
        open_payments = cache(activities.open_payments.__wrapped__)
        patch.setattr(activities, "open_payments", open_payments)
        rule = cache(activities.two_people_rule.__wrapped__)
        patch.setattr(activities, "two_people_rule", rule)
        _, ledger = open_payments()
        async with AsyncExitStack() as running:
            running.enter_context(closing(ledger))
            for part in worker._workers(await connect(address)):
                await running.enter_async_context(part)
            yield
