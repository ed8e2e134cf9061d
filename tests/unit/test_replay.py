r"""Recorded runs of every course go on under the workflow as it is now.

Invoices wait for days, so a worker with new code finds runs that began under the old. Temporal
brings such a run to where it was by running the new code over its history; where that asks for
something else than the history has, the run is stuck. To change `workflow.py`:

1. Change it and run these tests. Green: runs under way aren't affected, go ahead. (Texts, summaries
   and the content of a memo are free. Timers, activities and memo updates that are added, left out
   or put in another order are not.)
2. Red: keep the old way for runs that are past this point already,

       if workflow.patched("what-is-new"):
           ...  # the new way
       else:
           ...  # the old way

   until the histories there are replay. Never record over them to get there.
3. Record the new way beside them, in a folder of its own, and commit that:

       uv run tests/record_histories.py what-is-new

4. Once no run from before is open any more, which may take a year (`approval_timeout_days`),

       temporal workflow list --query \
           "ExecutionStatus = 'Running' AND StartTime < '2027-01-31T00:00:00Z'"

   `workflow.deprecate_patch("what-is-new")` takes the place of the `if`, and the old way goes, with
   the histories recorded before step 3. Once no run from before that is open, that line goes too,
   with the histories of step 3; record anew. Queries of closed runs from before then fail; the
   server's tools don't need them.
"""

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.common import RawValue
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import NondeterminismError

from record_histories import COURSES, HISTORIES
from temporal_service.payloads import NO_PAYLOAD
from workflow import InvoiceWorkflow

FILES = sorted(HISTORIES.rglob("*.json*"))


def recorded(file: Path) -> WorkflowHistory:
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    history = json.loads(content)
    started = history["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(started["workflowId"], history)


async def replay(workflow_class: type, file: Path) -> None:
    # FastMCP, which the tests import, brings an import hook that every sandbox would load anew.
    restrictions = SandboxRestrictions.default.with_passthrough_modules("beartype")
    runner: WorkflowRunner = SandboxedWorkflowRunner(restrictions=restrictions)
    if file.suffix == ".gz":  # so long that the sandbox, which the others see, takes half the time
        runner = UnsandboxedWorkflowRunner()
    replayer = Replayer(workflows=[workflow_class], workflow_runner=runner)
    await replayer.replay_workflow(recorded(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HISTORIES)))
async def test_recorded_run_replays(file: Path) -> None:
    await replay(InvoiceWorkflow, file)


def test_every_course_is_recorded_in_one_folder_and_no_other_course_in_any() -> None:
    folders: defaultdict[Path, set[str]] = defaultdict(set)
    for file in FILES:
        folders[file.parent].add(file.name.partition(".")[0])
    assert set().union(*folders.values()) == set(COURSES)
    assert set(COURSES) in folders.values()


@workflow.defn(name="InvoiceWorkflow", sandboxed=False)
class WithAnotherTimer(InvoiceWorkflow):
    @workflow.run
    async def run(self, invoice: RawValue = NO_PAYLOAD) -> str:
        await workflow.sleep(1)
        return await super().run(invoice)


@workflow.defn(name="InvoiceWorkflow", sandboxed=False)
class WithAnotherTimerForNewRuns(InvoiceWorkflow):
    @workflow.run
    async def run(self, invoice: RawValue = NO_PAYLOAD) -> str:
        if workflow.patched("another-timer"):
            await workflow.sleep(1)
        return await super().run(invoice)


async def test_changed_workflow_does_not_replay() -> None:
    with pytest.raises(NondeterminismError):
        await replay(WithAnotherTimer, HISTORIES / "completed.json")


async def test_workflow_changed_behind_a_patch_replays() -> None:
    await replay(WithAnotherTimerForNewRuns, HISTORIES / "completed.json")
