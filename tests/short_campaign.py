"""The short fault campaigns. Each is in a file of its own, so that they run at the same time."""

from pathlib import Path

import campaign
from foreign_client import TROUBLES

KILLED = {"MCP server", "service", "worker"}
# Each seed has six courses, and both together have all; of the cancellations at the moment of
# payment one comes while the worker ends, and one while it runs.
COURSES = {
    93: {"approve", "cancel", "deadline", "poisoned", "reject", "resubmit"},
    10: {"approve", "cancel, resubmit", "decline", "poisoned", "race", "submit twice"},
}


async def run(
    directory: Path, seed: int, *, ledger: str = "sqlite", gateway: str = "simulated"
) -> campaign.Campaign:
    """Runs a campaign of six invoices, and asserts that it had all of its faults."""
    ended = await campaign.run(
        directory, 6, seed, ledger, gateway, users=6, hosts=2, last_seconds=10
    )
    assert not ended.problems, campaign.table(ended)
    assert {course for course, _ in ended.outcomes} == COURSES[seed] | {"while notices hang"}
    assert ended.cancellations.total() == 1
    assert set(ended.stretches) == {"alone", "beside"}
    assert set(ended.troubles) >= set(TROUBLES)
    assert ended.hook.conduct.total()
    return ended
