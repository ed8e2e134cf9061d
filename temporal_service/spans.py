"""What the traces consist of. Only imported where traces are on.

The spans are those of Temporal's SDK and of FastMCP. Both record errors with their messages, which
can have the content of an invoice. So only what is known to have none leaves the process.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import temporalio.client
import temporalio.worker
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, Status
from temporalio.api.common.v1 import Payload
from temporalio.client import Plugin
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin, create_tracer_provider
from temporalio.converter import PayloadConverter
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    HandleQueryInput,
    HandleSignalInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

OUTCOME = "invoice.outcome"
"""How a run or an activity ended: a state, `paid`, or the type of an error."""
KEPT_ATTRIBUTES = {
    OUTCOME,
    "error.type",
    "gen_ai.operation.name",
    "gen_ai.tool.name",
    "mcp.method.name",
    "mcp.protocol.version",
    "rpc.response.status_code",
    "temporalActivityID",
    "temporalRunID",
    "temporalWorkflowID",
}
EXCEPTION_TYPE = "exception.type"
HEADER = "_tracer-data"
"""The header in which Temporal's SDK hands on a span's context."""

log = logging.getLogger("traces")


class Tracing:
    """The process's tracer provider. One process makes only one."""

    def __init__(self, service_name: str, endpoint: str) -> None:
        # What OpenTelemetry logs about headers and addresses can have secrets.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._provider = create_tracer_provider(resource=_resource(service_name))
        exporter = _WithoutContent(OTLPSpanExporter(endpoint=endpoint))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(self._provider)
        self.plugins: list[Plugin] = [
            SimplePlugin("readable-headers", interceptors=[_ReadableHeaders()]),
            OpenTelemetryPlugin(add_temporal_spans=True),
            SimplePlugin("links-to-signals", interceptors=[_LinksToSignals()]),
        ]

    def record_outcome(self, outcome: str) -> None:
        trace.get_current_span().set_attribute(OUTCOME, outcome)

    def flush(self) -> None:
        self._provider.force_flush()


def _resource(service_name: str) -> Resource:
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service_name}))
    return resource


class _WithoutContent(SpanExporter):
    """Exports spans without error messages and without attributes that could have content."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._last_result = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export([_without_content(span) for span in spans])
        if result is not self._last_result:
            if result is SpanExportResult.SUCCESS:
                log.info("Traces can be sent again.")
            else:
                log.warning(
                    "Traces can't be sent to their endpoint. Until they can, they are lost."
                )
        self._last_result = result
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _without_content(span: ReadableSpan) -> ReadableSpan:
    attributes = span.attributes or {}
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes={key: attributes[key] for key in attributes.keys() & KEPT_ATTRIBUTES},
        events=[_without_message(event) for event in span.events],
        links=[Link(link.context) for link in span.links],
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _without_message(event: Event) -> Event:
    attributes = event.attributes or {}
    kept = {key: attributes[key] for key in attributes.keys() & {EXCEPTION_TYPE}}
    return Event(event.name, kept, event.timestamp)


class _ReadableHeaders(temporalio.client.Interceptor, temporalio.worker.Interceptor):
    """Drops another client's header that the SDK's interceptor couldn't read.

    The SDK's would raise, which fails the workflow's tasks forever. This one is a client's too, so
    that it comes before the SDK's.
    """

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor]:
        return _WorkflowWithReadableHeaders

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _ActivityWithReadableHeaders(next)


class _WorkflowWithReadableHeaders(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        input.headers = _readable(input.headers)
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        input.headers = _readable(input.headers)
        await super().handle_signal(input)

    async def handle_query(self, input: HandleQueryInput) -> Any:
        input.headers = _readable(input.headers)
        return await super().handle_query(input)


class _ActivityWithReadableHeaders(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        input.headers = _readable(input.headers)
        return await super().execute_activity(input)


def _readable(headers: Mapping[str, Payload]) -> Mapping[str, Payload]:
    if HEADER not in headers or _is_readable(headers[HEADER]):
        return headers
    return {name: payload for name, payload in headers.items() if name != HEADER}


def _is_readable(header: Payload) -> bool:
    try:
        [carrier] = PayloadConverter.default.from_payloads([header])
    except Exception:  # temporal_service/payloads.py lists what converters raise
        return False
    return isinstance(carrier, dict) and all(isinstance(value, str) for value in carrier.values())


class _LinksToSignals(temporalio.worker.Interceptor):
    """Links the span of a run to those of its signals, which belong to their senders' traces."""

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor]:
        return _WorkflowWithLinks


class _WorkflowWithLinks(WorkflowInboundInterceptor):
    def __init__(self, next: WorkflowInboundInterceptor) -> None:
        super().__init__(next)
        self._run: Span | None = None
        self._early_signals: list[SpanContext] = []
        """Handled before the run began, since they arrived before a worker ran."""

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        self._run = trace.get_current_span()
        for signal in self._early_signals:
            self._run.add_link(signal)
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        signal = trace.get_current_span().get_span_context()
        if self._run:
            self._run.add_link(signal)
        else:
            self._early_signals.append(signal)
        await super().handle_signal(input)
