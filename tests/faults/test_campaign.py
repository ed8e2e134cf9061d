"""A short fault campaign; `uv run tests/campaign.py` is the long one."""

from pathlib import Path

import campaign
import short_campaign
from short_campaign import COURSES, SCALES


def test_the_short_campaigns_have_every_course_and_every_fault() -> None:
    scales = SCALES.values()
    assert set[str]().union(*COURSES.values()) == set(campaign.COURSES)
    assert set[str]().union(*(scale.kinds for scale in scales)) == set(campaign.LONG.kinds)
    assert set[str]().union(*(scale.stretches for scale in scales)) == set(campaign.LONG.stretches)
    assert any(scale.notices_hang for scale in scales)


async def test_every_invoice_ends_as_asked_for_while_everything_is_killed(tmp_path: Path) -> None:
    await short_campaign.run(tmp_path, 2774)
