r"""Recorded runs of every kind replay with the present workflow code.

Invoices wait for days, so a worker with new code continues runs that began under old code. To
restore such a run, Temporal replays its event history with the new code. If the new code issues
different commands from those in the history, the run can't continue. To change `workflow.py`:

1. Make the change and run these tests. If they pass, open runs aren't affected and you are done.
   You may change texts, summaries and the content of a memo. You may not add, remove or reorder
   timers, activities and memo updates.
2. If a test fails, keep the old behaviour for runs that have passed this point already:

       if workflow.patched("what-is-new"):
           ...  # new behaviour
       else:
           ...  # old behaviour

   Now the existing histories must replay. Never overwrite them to make a test pass.
3. Record histories with the new behaviour, in a folder of their own, and commit that folder:

       uv run tests/record_histories.py what-is-new

4. Wait until no run from before the change is open, which can take a year
   (`approval_timeout_days`):

       temporal workflow list --query \
           "ExecutionStatus = 'Running' AND StartTime < '2027-01-31T00:00:00Z'"

   Then replace the `if` with `workflow.deprecate_patch("what-is-new")`, and remove the old
   behaviour and the histories recorded before step 3.
5. Wait until no run from before step 4 is open. Then remove `deprecate_patch` and the histories of
   step 3, and record new ones. From then on, queries of closed runs from before step 4 fail. The
   server's tools don't need those queries.
"""

import gzip
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.common import RawValue
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.workflow import NondeterminismError

from record_histories import COURSES, HISTORIES
from temporal_service.payloads import NO_PAYLOAD
from worker import SANDBOX
from workflow import InvoiceWorkflow

FILES = sorted(HISTORIES.rglob("*.json*"))
"""Those in `other-fields` were recorded with 1.1 and versions before and after it: their invoices
have values of any type in fields that have rules since, `supplier`, `supplier_reference`,
`due_date` and `pay_on`.
"""


def recorded(file: Path) -> WorkflowHistory:
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    history = json.loads(content)
    started = history["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(started["workflowId"], history)


async def replay(workflow_class: type, file: Path) -> None:
    # FastMCP, which the tests import, has an import hook that every sandbox would load again.
    restrictions = SANDBOX.restrictions.with_passthrough_modules("beartype")
    runner: WorkflowRunner = replace(SANDBOX, restrictions=restrictions)
    if file.suffix == ".gz":  # without the sandbox, it takes half the time
        runner = UnsandboxedWorkflowRunner()
    replayer = Replayer(workflows=[workflow_class], workflow_runner=runner)
    await replayer.replay_workflow(recorded(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(HISTORIES)))
async def test_recorded_run_replays(file: Path) -> None:
    await replay(InvoiceWorkflow, file)


def test_every_course_is_recorded_in_exactly_one_folder() -> None:
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
