"""Short fault campaigns; `uv run tests/campaign.py` is the long one."""

from pathlib import Path

import pytest

import campaign
from foreign_client import TROUBLES
from postgres import programs

KILLED = {"MCP server", "service", "worker"}
# Each seed has six courses, and both together have all; of the cancellations at the moment of
# payment one comes while the worker ends, and one while it runs.
COURSES = {
    139: {"approve", "cancel, resubmit", "on its day", "poisoned", "submit twice", "two people"},
    156: {"cancel", "deadline", "decline", "race", "reject", "resubmit"},
}


def test_the_short_campaigns_have_every_course() -> None:
    assert set[str]().union(*COURSES.values()) == set(campaign.COURSES)


def assert_all_faults(ended: campaign.Campaign) -> None:
    assert not ended.problems, campaign.table(ended)
    assert {course for course, _ in ended.outcomes} == COURSES[ended.seed] | {"while notices hang"}
    assert ended.cancellations.total() == 1
    assert set(ended.stretches) == {"alone", "beside"}
    assert set(ended.troubles) >= set(TROUBLES)
    assert ended.hook.conduct.total()


async def test_every_invoice_ends_as_asked_for_while_everything_is_killed(tmp_path: Path) -> None:
    ended = await campaign.run(tmp_path, 6, 139, users=6, hosts=2, last_seconds=10)
    assert_all_faults(ended)
    assert set(ended.kills) == KILLED


@pytest.mark.skipif(
    programs() is None, reason="no PostgreSQL server here: apt-get install postgresql"
)
async def test_stripe_charges_what_was_approved_while_two_workers_and_their_database_are_killed(
    tmp_path: Path,
) -> None:
    ended = await campaign.run(
        tmp_path, 6, 156, "postgresql", "stripe", users=6, hosts=2, last_seconds=10
    )
    assert_all_faults(ended)
    assert set(ended.kills) == KILLED | {"PostgreSQL", "connections"}
    assert ended.faults
