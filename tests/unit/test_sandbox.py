"""The sandbox in which the worker runs workflows."""

from temporalio.converter import WithSerializationContext, WorkflowSerializationContext

from temporal_service.payloads import data_converter


def test_nothing_that_converts_payloads_depends_on_the_contexts_that_it_leaves_out() -> None:
    context = WorkflowSerializationContext(namespace="default", workflow_id="invoice-INV-1")
    payloads = data_converter.payload_converter
    # The SDK's own is only a composition of converters that could.
    assert isinstance(payloads, WithSerializationContext)
    assert payloads.with_context(context) is payloads
    assert not isinstance(data_converter.failure_converter, WithSerializationContext)
    assert (data_converter.payload_codec, data_converter.external_storage) == (None, None)
