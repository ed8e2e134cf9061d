"""The sandbox in which the worker runs workflows, and what takes the place of its restrictions."""

import re
import tomllib

from temporalio.converter import WithSerializationContext, WorkflowSerializationContext

from support import ROOT
from temporal_service.payloads import data_converter


def test_no_converter_of_payloads_depends_on_the_contexts_that_the_sandbox_leaves_out() -> None:
    context = WorkflowSerializationContext(namespace="default", workflow_id="invoice-INV-1")
    payloads = data_converter.payload_converter
    # It is composed of other converters, and changes if one of them depends on the context.
    assert isinstance(payloads, WithSerializationContext)
    assert payloads.with_context(context) is payloads
    assert not isinstance(data_converter.failure_converter, WithSerializationContext)
    assert (data_converter.payload_codec, data_converter.external_storage) == (None, None)


def test_the_linter_keeps_clocks_and_random_numbers_out_of_what_a_workflow_runs() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    [exempt] = [k for k, rules in ruff["per-file-ignores"].items() if rules == ["TID251"]]
    checked = set(exempt.removeprefix("!{").removesuffix("}.py").split(","))
    run = {"workflow", "decisions", "reports", "notices"}
    while more := {imported for name in run for imported in _imports(name)} - run:
        run |= more
    assert checked == run


def _imports(name: str) -> list[str]:
    source = (ROOT / f"{name}.py").read_text("utf-8")
    return [f"invoices/{module}" for module in re.findall(r"from invoices\.(\w+) import", source)]
