"""The worker: runs `InvoiceWorkflow` and `process_payment`, on an embedded Temporal dev server if
no service is configured or running.

    uv run worker.py

Ctrl-C or SIGTERM ends it once the payment under way, if any, is finished.
"""

import asyncio
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio.worker import Worker

import activities
from startup import StartupError, data_directory
from temporal_service import connection
from temporal_service.dev_server import connect_or_start
from workflow import TASK_QUEUE, InvoiceWorkflow

PAYMENTS_AT_ONCE = 20

log = logging.getLogger("worker")


async def run() -> None:
    """Runs the worker until a signal asks it to end.

    Raises:
        StartupError: there is no Temporal Service to work for, or the data directory, the ledger or
            a setting is broken.
    """
    _end_on_signal()
    # A thread for each payment under way, so that none waits for one within its 30 s.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(PAYMENTS_AT_ONCE))
    directory = data_directory()
    gateway, ledger = activities.open_payments()
    async with connect_or_start(directory) as client:
        address = client.service_client.config.target_host
        log.info("Temporal Service  %s, namespace %s", address, client.namespace)
        if address == f"localhost:{connection.PORT}":
            log.info("Web UI            http://localhost:%s", connection.UI_PORT)
        log.info("Data              %s", directory)
        log.info("Payments          %s, ledger %s in %s", gateway.name, ledger.id[:8], ledger.name)
        worker = Worker(
            client,
            task_queue=TASK_QUEUE,
            workflows=[InvoiceWorkflow],
            activities=[activities.process_payment, activities.payments_made],
            # More at once would not be faster, but after a restart with many open invoices each
            # would take so long that Temporal gives it up and tries again.
            max_concurrent_workflow_tasks=8,
            max_concurrent_activities=PAYMENTS_AT_ONCE,
            # A payment has 30 s; one under way is waited for.
            graceful_shutdown_timeout=timedelta(seconds=35),
        )
        async with worker:
            while not worker.is_running:
                await asyncio.sleep(0.05)
            print("Worker started. Listening for invoice workflows...", flush=True)
            await asyncio.Event().wait()


def _end_on_signal() -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task

    def end(*_: object) -> None:
        # Once: a second Ctrl-C must not cut off the payment that the first one waits for.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        log.info("Ending; a payment under way is finished first.")
        loop.call_soon_threadsafe(task.cancel)

    # Not `loop.add_signal_handler`, which Windows lacks.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


class _Format(logging.Formatter):
    """Time and message; warnings and errors say so, in colour on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno < logging.WARNING:
            return super().format(record)
        record.levelname = record.levelname.lower()
        line = super().format(record).replace(" ", f" {record.levelname}: ", 1)
        return f"\x1b[33m{line}\x1b[0m" if sys.stderr.isatty() else line


def main() -> int:
    """Runs the worker; returns the exit code: 0 when asked to end, 1 when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("temporalio.worker").setLevel(logging.WARNING)
    code = 1
    try:
        asyncio.run(run())
    except* asyncio.CancelledError:
        code = 0
    except* StartupError as problems:
        log.error("%s", problems.exceptions[0])
    return code


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Not sys.exit: the SDK's threads can abort the interpreter while it shuts down
    # (temporalio/sdk-python issue 300), which would turn a clean end into a crash.
    os._exit(status)
