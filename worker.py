"""Runs `InvoiceWorkflow` and `process_payment`, on an embedded Temporal dev server if no Temporal
Service is configured or running.

    uv run worker.py

Ctrl-C or SIGTERM ends it once the payment under way, if any, is finished, and within 35 seconds.
"""

import gc
import os
import signal

if __name__ == "__main__":
    # Ctrl-C ends the worker without a traceback, also during the imports, which take half a second.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    # Garbage collection would take a tenth of the start. What is imported is never garbage, and
    # `main` excludes it from later collections.
    gc.disable()

import argparse
import asyncio
import logging
import shlex
import sys
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig
from temporalio.worker.workflow_sandbox import SandboxRestrictions

import activities
from notices import NOTICE_TASK_QUEUE, NoticeWorkflow, notify_url, post_notice
from reports import SEARCH_ATTRIBUTES
from settings import describe_settings, read_setting
from startup import StartupError, data_directory
from temporal_service import connection
from temporal_service.dev_server import connect_or_start, kill_started_servers, listens
from temporal_service.executions import list_executions
from temporal_service.sandbox import SandboxWithoutContexts
from temporal_service.traces import flush_traces, start_traces
from workflow import TASK_QUEUE, InvoiceWorkflow

PAYMENTS_AT_ONCE = 20
NOTICES_AT_ONCE = 10
SANDBOX = SandboxWithoutContexts(
    # Otherwise each run would load its own copy of these two. The rest is imported once anyway. For
    # all of them, the linter (TID251 in `pyproject.toml`) refuses what the sandbox would refuse.
    SandboxRestrictions.default.with_passthrough_modules("workflow", "notices")
)
DRAIN_SECONDS = 27
"""Longer than the activities' own limits. After that, the embedded service has 5 s to end."""
END_SECONDS = 33
"""The time from the signal to the end of the process, even if something hangs."""

log = logging.getLogger("worker")


def main() -> int:
    """Runs the worker; returns the exit code: 0 when asked to end, 1 when something is wrong."""
    gc.freeze()
    gc.enable()
    argparse.ArgumentParser(
        description=__doc__,
        epilog=describe_settings("worker"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("temporalio.worker").setLevel(logging.WARNING)
    # Hide warnings about answers to queries that nobody waits for any more.
    logging.getLogger("temporal.core").addFilter(
        lambda record: "query task not found" not in record.getMessage()
    )
    # Hide activities that were cut off when the worker ended; the next worker runs them again.
    logging.getLogger("temporalio.activity").addFilter(
        lambda record: (
            not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
        )
    )
    # The log has one short line for each event of an invoice, without the context as a dictionary.
    activity.logger.activity_info_on_message = False
    workflow.logger.workflow_info_on_message = False
    code = 1
    try:
        asyncio.run(run())
    except* asyncio.CancelledError:
        code = 0
    except* StartupError as problems:
        log.error("%s", problems.exceptions[0])
    flush_traces()
    return code


async def run() -> None:
    """Runs the worker until a signal asks it to end.

    Raises:
        StartupError: there is no Temporal Service to work for, or the data directory, the ledger or
            a setting is broken; within an ExceptionGroup once the worker runs.
    """
    _end_on_signal()
    start_traces("invoice-worker")
    directory = data_directory()
    gateway, ledger = activities.open_payments()
    notify_url()
    activities.two_people_rule()
    metrics_address = read_setting("INVOICE_METRICS_ADDRESS") or None
    async with connect_or_start(directory, SEARCH_ATTRIBUTES, metrics_address) as client:
        address = client.service_client.config.target_host
        log.info("Temporal Service  %s, namespace %s", address, client.namespace)
        ui_port = connection.web_ui_port()
        if address == f"localhost:{connection.service_port()}" and await listens(ui_port):
            log.info("Web UI            http://localhost:%s", ui_port)
        log.info("Data              %s", directory)
        log.info("Payments          %s, ledger %s in %s", gateway.name, ledger.id[:8], ledger.name)
        workers = _workers(client)
        async with AsyncExitStack() as running:
            for worker in workers:
                await running.enter_async_context(worker)
            # All at once, because each waits for what is under way. The context would end them one
            # after the other.
            running.push_async_callback(_shut_down, workers)
            while not all(worker.is_running for worker in workers):
                await asyncio.sleep(0.005)
            try:
                print("Worker started. Listening for invoice workflows...", flush=True)
            except OSError as error:
                raise StartupError(f"Standard output can't be written to: {error}.") from error
            await _log_open_invoices(client)
            await _warn_if_without_work(client)
            await asyncio.Event().wait()


def _workers(client: Client) -> list[Worker]:
    """A worker for invoices, and if there is a web hook, another one for notices."""
    workers = [
        Worker(
            client,
            task_queue=TASK_QUEUE,
            workflows=[InvoiceWorkflow, NoticeWorkflow],
            activities=[
                activities.process_payment,
                activities.payment_outcome,
                activities.payments_made,
                activities.decision_in_time,
                activities.cancellation_request,
                post_notice,  # version 1.1 scheduled notices on this task queue
            ],
            workflow_runner=SANDBOX,
            deployment_config=_deployment(),
            # More at once wouldn't be faster. After a restart with many open invoices, each would
            # take so long that Temporal would time it out and try again.
            max_concurrent_workflow_tasks=8,
            max_concurrent_activities=PAYMENTS_AT_ONCE,
            # Otherwise only every 8 s, and one that is late would end the attempt.
            max_heartbeat_throttle_interval=timedelta(seconds=activities.HEARTBEAT_SECONDS),
            graceful_shutdown_timeout=timedelta(seconds=DRAIN_SECONDS),
        )
    ]
    if notify_url():
        workers.append(
            Worker(
                client,
                task_queue=NOTICE_TASK_QUEUE,
                activities=[post_notice],
                # Without a version, because Temporal refuses to make a version current that lacks a
                # task queue of the one before. You couldn't go back to a worker without a hook.
                max_concurrent_activities=NOTICES_AT_ONCE,
                # The next worker posts those again that are cut off.
                graceful_shutdown_timeout=timedelta(seconds=5),
            )
        )
    return workers


async def _shut_down(workers: list[Worker]) -> None:
    await asyncio.gather(*(worker.shutdown() for worker in workers))


def _deployment() -> WorkerDeploymentConfig | None:
    """Worker Versioning, if `TEMPORAL_DEPLOYMENT_NAME` and `TEMPORAL_WORKER_BUILD_ID` are set.

    Open invoices move to the newest version, because the workflow's code is patched for them.
    """
    name = read_setting("TEMPORAL_DEPLOYMENT_NAME")
    build_id = read_setting("TEMPORAL_WORKER_BUILD_ID")
    if not name and not build_id:
        return None
    if not name or not build_id:
        raise StartupError(
            "TEMPORAL_DEPLOYMENT_NAME and TEMPORAL_WORKER_BUILD_ID go together: set both or none."
        )
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(name, build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


async def _warn_if_without_work(client: Client) -> None:
    """Warns if Worker Versioning gives the work to others, with the command to change that."""
    try:
        queue = await client.workflow_service.describe_task_queue(
            DescribeTaskQueueRequest(
                namespace=client.namespace,
                task_queue=TaskQueue(name=TASK_QUEUE),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            ),
            timeout=timedelta(seconds=5),
        )
    except RPCError:
        return
    routing = queue.versioning_info
    current = routing.current_deployment_version  # empty for workers without a version
    targets = [(current.deployment_name, current.build_id)]
    if routing.ramping_version_percentage:
        ramping = routing.ramping_deployment_version
        targets.append((ramping.deployment_name, ramping.build_id))
    deployment = _deployment()
    version = deployment.version if deployment else WorkerDeploymentVersion("", "")
    if (version.deployment_name, version.build_id) in targets:
        return
    to = f"version {current.build_id} of {current.deployment_name}" if current.build_id else ""
    target = f"--build-id {shlex.quote(version.build_id)}" if deployment else "--unversioned"
    log.warning(
        "This worker gets no work: invoices go to %s. To give them to %s: temporal worker"
        " deployment set-current-version --deployment-name %s %s --yes",
        to or "workers without a version",
        "this version" if deployment else "workers without a version",
        shlex.quote(version.deployment_name or current.deployment_name),
        target,
    )


def _end_on_signal() -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task
    numbers = [signal.SIGINT, signal.SIGTERM]
    # A closed terminal sends SIGHUP, which nohup has set to be ignored. Windows has none.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    asked_to_end = threading.Event()

    def cut_off() -> None:
        asked_to_end.wait()
        time.sleep(END_SECONDS)
        _end_at_once()

    # Started now, because a signal handler could wait for ever to start a thread, if the signal has
    # interrupted the start of another one.
    threading.Thread(target=cut_off, name="end", daemon=True).start()

    def end() -> None:
        log.info("Ending; a payment under way is finished first.")
        task.cancel()

    def on_signal(*_: object) -> None:
        # Ignore a second Ctrl-C, which must not cut off the payment that the first one waits for.
        for number in numbers:
            signal.signal(number, lambda *_: None)
        asked_to_end.set()
        if not loop.is_closed():  # as it is when the worker has ended by itself just now
            loop.call_soon_threadsafe(end)

    # Not `loop.add_signal_handler`, which Windows lacks.
    for number in numbers:
        signal.signal(number, on_signal)


def _end_at_once() -> None:
    """Ends the process, with the embedded service, without waiting for anything."""
    kill_started_servers()
    # In a thread, since standard error may be what hangs.
    text = "Not finished %s s after it was asked to end: cut off. The next worker tries it again."
    telling = threading.Thread(target=log.warning, args=(text, END_SECONDS), daemon=True)
    telling.start()
    telling.join(1)
    os._exit(0)


async def _log_open_invoices(client: Client) -> None:
    query = "WorkflowType='InvoiceWorkflow' AND ExecutionStatus='Running'"
    states: Counter[str] = Counter()
    with suppress(RPCError, TimeoutError):
        async with asyncio.timeout(5):
            async for page in list_executions(client, query):
                states.update(str(run.memo.get("state")) for run in page)
        paying, scheduled = states["paying"], states["scheduled"]
        waiting = states.total() - paying - scheduled
        later = f", {scheduled} to be paid on their day" if scheduled else ""
        log.info("Open invoices     %s waiting, %s being paid%s", waiting, paying, later)


if __name__ == "__main__":
    status = main()
    # Not sys.exit: the SDK's threads can abort the interpreter while it shuts down
    # (temporalio/sdk-python issue 300), which would turn a clean end into a crash.
    os._exit(status)
