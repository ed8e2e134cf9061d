"""The documents quote the current code."""

import configparser
import plistlib
import re
import textwrap

import worker
from support import ROOT


def test_the_listings_match_the_workflow() -> None:
    workflow = (ROOT / "workflow.py").read_text("utf-8")
    document = (ROOT / "docs" / "from-the-tutorial.md").read_text("utf-8")
    listings = re.findall(r"```python\n(.+?)```", document, re.DOTALL)
    assert len(listings) == 2
    for listing in listings:
        assert textwrap.indent(listing, " " * 12) in workflow


def test_services_give_the_worker_time_to_end() -> None:
    guide = (ROOT / "docs" / "operating.md").read_text("utf-8")
    [unit] = re.findall(r"```ini\n(.*?)```", guide, re.DOTALL)
    [agent] = re.findall(r"```xml\n(.*?)```", guide, re.DOTALL)
    systemd = configparser.ConfigParser()
    systemd.read_string(unit)
    seconds = int(systemd["Service"]["TimeoutStopSec"])
    assert seconds == plistlib.loads(agent.encode())["ExitTimeOut"]
    assert seconds > worker.END_SECONDS + 2  # it takes a second to say that it was cut off
