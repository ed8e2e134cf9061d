"""A short fault campaign; `uv run tests/campaign.py` is the long one."""

from pathlib import Path

import campaign
import short_campaign
from short_campaign import COURSES, KILLED


def test_the_short_campaigns_have_every_course() -> None:
    assert set[str]().union(*COURSES.values()) == set(campaign.COURSES)


async def test_every_invoice_ends_as_asked_for_while_everything_is_killed(tmp_path: Path) -> None:
    ended = await short_campaign.run(tmp_path, 93)
    assert set(ended.kills) == KILLED
