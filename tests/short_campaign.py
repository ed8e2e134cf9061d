"""The short fault campaigns. Each is in a file of its own, so that they run at the same time."""

from pathlib import Path

import campaign
from campaign import Course, Scale
from foreign_client import TROUBLES

# Both together have every course and every fault. Of the cancellations at the moment of payment one
# comes while the worker ends, and one while it runs.
COURSES: dict[int, set[Course]] = {
    2774: {"approve", "cancel", "deadline", "on its day", "poisoned", "two people"},
    1876: {"cancel, resubmit", "decline", "race", "reject", "resubmit", "submit twice"},
}
"""Those of each seed."""
SCALES = {
    2774: Scale(
        users=6,
        hosts=2,
        kinds=("service", "MCP server"),
        stretches=("alone",),  # for which the workers are killed
        pace=0.35,
        last_seconds=2,
        payments_at_once=5,
    ),
    1876: Scale(
        users=6,
        hosts=2,
        kinds=("worker", "PostgreSQL", "connections"),
        stretches=("beside",),
        pace=0.35,
        last_seconds=2,
        notices_hang=False,
    ),
}


async def run(
    directory: Path, seed: int, *, ledger: str = "sqlite", gateway: str = "simulated"
) -> campaign.Campaign:
    """Runs a campaign of six invoices, and asserts that it had all of its faults."""
    scale = SCALES[seed]
    ended = await campaign.run(directory, 6, seed, ledger, gateway, scale)
    assert not ended.problems, campaign.table(ended)
    courses = COURSES[seed] | ({"while notices hang"} if scale.notices_hang else set())
    assert {course for course, _ in ended.outcomes} == courses
    assert set(ended.kills) == {*scale.kinds, "worker"}
    assert ended.cancellations.total() == 1
    assert set(ended.stretches) == set(scale.stretches)
    assert set(ended.troubles) >= set(TROUBLES)
    assert ended.hook.conduct.total()
    return ended
