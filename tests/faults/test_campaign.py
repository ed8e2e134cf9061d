"""Short fault campaigns; `uv run tests/campaign.py` is the long one."""

from pathlib import Path

import pytest

import campaign
from postgres import programs

KILLED = {"MCP server", "service", "worker"}
# Each seed has six invoices of six courses, and three users who are busy while all is killed.


async def test_every_invoice_ends_as_asked_for_while_everything_is_killed(tmp_path: Path) -> None:
    ended = await campaign.run(tmp_path, invoices=6, seed=40, users=3, hosts=2)
    assert not ended.problems, campaign.table(ended)
    assert set(ended.kills) == KILLED
    assert sum(ended.outcomes.values()) == 6


@pytest.mark.skipif(
    programs() is None, reason="no PostgreSQL server here: apt-get install postgresql"
)
async def test_stripe_charges_what_was_approved_while_two_workers_and_their_database_are_killed(
    tmp_path: Path,
) -> None:
    ended = await campaign.run(
        tmp_path, 6, seed=21, ledger="postgresql", gateway="stripe", users=3, hosts=2
    )
    assert not ended.problems, campaign.table(ended)
    assert set(ended.kills) == KILLED | {"PostgreSQL", "connections"}
    assert ended.faults
    assert sum(ended.outcomes.values()) == 6
