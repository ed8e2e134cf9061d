"""A short fault campaign with Stripe's stand-in and two workers that share a database."""

from pathlib import Path

import pytest

import short_campaign
from postgres import programs


@pytest.mark.skipif(
    programs() is None, reason="no PostgreSQL server here: apt-get install postgresql"
)
async def test_stripe_charges_what_was_approved_while_two_workers_and_their_database_are_killed(
    tmp_path: Path,
) -> None:
    ended = await short_campaign.run(tmp_path, 1876, ledger="postgresql", gateway="stripe")
    assert ended.faults
