"""The documents quote the current code."""

import re
import textwrap

from support import ROOT


def test_the_listings_match_the_workflow() -> None:
    workflow = (ROOT / "workflow.py").read_text("utf-8")
    document = (ROOT / "docs" / "from-the-tutorial.md").read_text("utf-8")
    listings = re.findall(r"```python\n(.+?)```", document, re.DOTALL)
    assert len(listings) == 2
    for listing in listings:
        assert textwrap.indent(listing, " " * 12) in workflow
