"""A short fault campaign; `uv run tests/campaign.py` is the long one."""

from pathlib import Path

import pytest

import campaign


@pytest.mark.slow
async def test_every_invoice_ends_as_asked_for_while_everything_is_killed(tmp_path: Path) -> None:
    ended = await campaign.run(tmp_path, invoices=10, seed=1)
    assert not ended.problems, campaign.table(ended)
    assert set(ended.kills) == {"MCP server", "service", "worker"}
    assert sum(ended.outcomes.values()) == 10
