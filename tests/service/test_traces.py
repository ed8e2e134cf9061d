"""Traces: one for each invoice, from the tool to each payment, without what the invoice says."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry import context, trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from temporalio.api.common.v1 import Header, Payload, Payloads, WorkflowExecution
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

from invoices.invoice import workflow_id
from support import (
    ROOT,
    Desk,
    Namespace,
    Refused,
    Tools,
    Worker,
    an_invoice,
    environment,
    eventually,
    free_port,
    mcp,
    refused_start,
)


@dataclass
class Collector:
    """An OTLP receiver in this process."""

    url: str
    requests: list[ExportTraceServiceRequest]

    @property
    def env(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url}

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def services(self) -> set[str]:
        return {
            attributes(resource.resource.attributes)["service.name"]
            for request in self.requests
            for resource in request.resource_spans
        }


def attributes(pairs: Iterable[KeyValue]) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in pairs}


@pytest.fixture
def collector() -> Iterator[Collector]:
    requests: list[ExportTraceServiceRequest] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        serving.start()
        yield Collector(url, requests)
        server.shutdown()
        serving.join()


@contextmanager
def host_span() -> Iterator[trace.SpanContext]:
    """A span of a host, which its calls carry as `traceparent`."""
    host = trace.SpanContext(0xABC123, 0xDEF456, True, trace.TraceFlags(trace.TraceFlags.SAMPLED))
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(host)))
    try:
        yield host
    finally:
        context.detach(token)


async def test_one_trace_leads_from_the_tool_to_each_payment_over_a_restart(
    collector: Collector, namespace: Namespace, tmp_path: Path
) -> None:
    invoice = an_invoice()
    call = {"invoice_id": invoice["id"]}
    async with mcp(namespace.address, env=collector.env) as client:
        tools = Tools(client)
        worker = Worker(namespace.address, tmp_path, **collector.env)
        async with worker:
            with host_span() as host:
                await tools("process_invoice", invoice_data=invoice)
            await tools.until(invoice, "waiting")
            assert await worker.end() == 0
            await worker.start()
            await tools("approve_invoice", **call)
            await tools.until(invoice, "completed")
            # As other clients do. To answer, the worker replays the run from its beginning.
            handle = Desk(await namespace.connect()).handle(invoice)
            assert await handle.query("get_status") == "Completed"
            assert await worker.end() == 0
    run_name = "RunWorkflow:InvoiceWorkflow"
    await eventually(lambda: len(collector.named("tools/call approve_invoice")) == 1)

    [run] = collector.named(run_name)
    [tool] = collector.named("tools/call process_invoice")
    assert int.from_bytes(tool.parent_span_id) == host.span_id
    parents = {span.span_id: span for span in collector.spans}

    def path(span: Span) -> list[str]:
        names = [span.name]
        while parent := parents.get(span.parent_span_id):
            names.append(parent.name)
            span = parent
        return names[::-1]

    starts = [tool.name, "StartWorkflow:InvoiceWorkflow", run_name]
    assert path(run) == starts
    payments = collector.named("RunActivity:process_payment")
    for number, payment in enumerate(payments, start=1):
        assert path(payment) == [*starts, "StartActivity:process_payment", payment.name]
        assert int.from_bytes(payment.trace_id) == host.trace_id
        told = attributes(payment.attributes)
        assert told["temporalActivityID"] == f"line-{number}"
        assert told["temporalWorkflowID"] == workflow_id(invoice["id"])
        assert told["invoice.outcome"] == "paid"
    assert len(payments) == 2
    [asked] = collector.named("RunActivity:payments_made")
    assert path(asked)[:3] == starts
    assert attributes(run.attributes)["invoice.outcome"] == "completed"

    [signal] = collector.named("HandleSignal:approve_invoice")
    sent = ["tools/call approve_invoice", "SignalWorkflow:approve_invoice"]
    assert path(signal) == [*sent, signal.name]
    assert signal.trace_id != run.trace_id
    assert [link.span_id for link in run.links] == [signal.span_id]

    assert collector.services() == {"invoice-server", "invoice-worker"}
    [(_, most)] = Counter((span.trace_id, span.span_id) for span in collector.spans).most_common(1)
    assert most == 1


async def test_no_span_has_what_an_invoice_or_a_decision_says(
    collector: Collector, namespace: Namespace, tmp_path: Path
) -> None:
    lines = [
        {"item": "Secret Cables", "amount": "40.31", "description": "Hidden work"},
        {"item": "Secret Server", "amount": "1500.32", "description": "Hidden work"},
    ]
    invoice = an_invoice(lines=lines, customer="cus_hidden", supplier="Hidden Ltd")
    call = {"invoice_id": invoice["id"], "reason": "Hidden reason"}
    env = {"INVOICE_DECLINE_OVER": "1000", **collector.env}
    async with (
        Worker(namespace.address, tmp_path, **env) as worker,
        mcp(namespace.address, env=collector.env) as client,
    ):
        tools = Tools(client)
        await tools("process_invoice", invoice_data=invoice)
        with pytest.raises(Refused, match="Secret Server"):
            await tools("approve_invoice", **call, total="1.00")
        with pytest.raises(Refused):
            await tools("process_invoice", invoice_data={**invoice, "lines": [{"item": "Hidden"}]})
        await tools("approve_invoice", **call)
        status = await tools.until(invoice, "failed")
        assert "Secret Server" in status["status"]
        lines[0]["amount"] = "40.33"
        with pytest.raises(Refused, match="Secret Cables"):
            await tools("process_invoice", invoice_data=invoice)
        assert await worker.end() == 0
    await eventually(lambda: len(collector.named("tools/call process_invoice")) == 3)
    outcomes = {attributes(span.attributes).get("invoice.outcome") for span in collector.spans}
    assert {"paid", "PaymentDeclined", "failed"} <= outcomes
    failed = [span for span in collector.spans if span.status.code == 2]
    assert {"tools/call approve_invoice", "RunWorkflow:InvoiceWorkflow"} <= {
        span.name for span in failed
    }
    everything = "".join(map(str, collector.requests))
    # Not the digits alone, which a time or an id has now and then.
    for word in ("Secret", "idden", "40.3", "1500.3", "1,500", "1,540", "1540.6"):
        assert word not in everything


async def test_headers_of_other_clients_lose_no_decision(
    collector: Collector, namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    desk = Desk(client)
    odd = [
        *(
            Payload(metadata={"encoding": b"json/plain"}, data=data)
            for data in (b"not JSON", b'["traceparent"]', b'{"traceparent": 1}')
        ),
        Payload(metadata={"encoding": b"binary/other"}, data=b"\xff"),
    ]
    async with Worker(namespace.address, tmp_path, **collector.env):
        for payload in odd:
            invoice = await desk.submit()
            await client.workflow_service.signal_workflow_execution(
                SignalWorkflowExecutionRequest(
                    namespace=client.namespace,
                    workflow_execution=WorkflowExecution(workflow_id=workflow_id(invoice.id)),
                    signal_name="approve_invoice",
                    input=Payloads(),
                    header=Header(fields={"_tracer-data": payload}),
                )
            )
            await desk.until(invoice, "completed")


async def test_a_collector_that_is_away_keeps_nothing_from_ending_and_is_not_named(
    namespace: Namespace, tmp_path: Path
) -> None:
    address = f"http://user:hunter2@127.0.0.1:{free_port()}/secret-path?key=secret-key"
    env = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": address,
        "OTEL_EXPORTER_OTLP_HEADERS": "secret header",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path, **env) as worker:
        invoice = await desk.submit_and_approve()
        await desk.until(invoice, "completed")
        await eventually(lambda: "Traces can't be sent" in worker.log.read_text())
        assert await worker.end() == 0
    log = worker.log.read_text()
    assert log.count("Traces can't be sent") == 1
    for word in ("hunter2", "secret", "Traceback"):
        assert word not in log


WITHOUT_PACKAGES = "import sys; sys.modules['opentelemetry.sdk'] = None; "
PROGRAMS = {
    "worker": "import worker; sys.exit(worker.main())",
    "server": "import sys, invoice_server; invoice_server.main()",
}


async def test_a_worker_without_the_packages_says_what_to_install(tmp_path: Path) -> None:
    command = ["-c", WITHOUT_PACKAGES + PROGRAMS["worker"]]
    line = await refused_start(
        *command,
        INVOICE_DATA_DIR=str(tmp_path),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://localhost:4318",
    )
    assert "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, but their packages are missing" in line
    assert "--extra otel" in line


@pytest.mark.parametrize(
    ("before", "endpoint", "reason"),
    [
        (WITHOUT_PACKAGES, "http://localhost:4318", "run uv sync --inexact --extra otel"),
        ("", "localhost:4318", "must be an http or https address"),
    ],
)
def test_a_server_that_cannot_trace_says_so_and_goes_on(
    before: str, endpoint: str, reason: str
) -> None:
    server = subprocess.run(
        [sys.executable, "-c", before + PROGRAMS["server"]],
        env=environment("", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert server.returncode == 0
    assert reason in server.stderr
    assert "Traceback" not in server.stderr
    assert not server.stdout


WORKER_UNTRACED = """
import asyncio, sys
import worker
from temporal_service.connection import connect
from temporal_service.traces import flush_traces, start_traces

start_traces("invoice-worker")
asyncio.run(connect({"target_host": "localhost:1", "namespace": "default"}, lazy=True))
flush_traces()
print(*(name for name in sys.modules if "opentelemetry" in name))
"""
# FastMCP imports the API, whose spans go nowhere without the SDK.
SERVER_UNTRACED = """
import sys
import invoice_server
from temporal_service.traces import flush_traces, start_traces

start_traces("invoice-server")
flush_traces()
heavy = ("opentelemetry.sdk", "opentelemetry.exporter", "temporalio")
print(*(name for name in sys.modules if name.startswith(heavy)))
"""


@pytest.mark.parametrize("program", [WORKER_UNTRACED, SERVER_UNTRACED], ids=["worker", "server"])
def test_without_a_collector_nothing_for_traces_is_imported(program: str) -> None:
    output = subprocess.check_output(
        [sys.executable, "-c", program],
        env=environment("", PYTHONPATH=str(ROOT), OTEL_SERVICE_NAME="unused"),
        text=True,
        timeout=60,
    )
    assert output == "\n"


REPLAY = """
import asyncio
from temporalio.worker import Replayer
from temporal_service.payloads import NO_PAYLOAD, data_converter
from temporal_service.traces import client_plugins, start_traces
from test_replay import FILES, recorded
from workflow import InvoiceWorkflow
from notices import NoticeWorkflow

async def main():
    start_traces("replay")
    replayer = Replayer(
        workflows=[InvoiceWorkflow], plugins=client_plugins(), data_converter=data_converter
    )
    async def histories():
        for file in FILES:
            if file.suffix == ".json":
                yield recorded(file)

    await replayer.replay_workflows(histories())

asyncio.run(main())
"""


def test_runs_recorded_without_traces_replay_with_them(collector: Collector) -> None:
    folders = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "unit")))
    subprocess.run(
        [sys.executable, "-c", REPLAY],
        env=environment("", PYTHONPATH=folders, **collector.env),
        check=True,
        timeout=120,
    )
    assert not collector.spans
