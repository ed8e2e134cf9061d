"""The documents quote the current code."""

import configparser
import json
import plistlib
import re
import textwrap
from pathlib import Path

import pytest

import worker
from support import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text("utf-8")
    for name, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        target = document.parent / name if name else document
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_hosts_get_the_entry_of_the_example() -> None:
    example = json.loads((ROOT / "claude_desktop_config.json").read_text("utf-8"))
    [expected] = example["mcpServers"].values()
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", readme, re.DOTALL)]
    entries = [
        entry for block in blocks for servers in block.values() for entry in servers.values()
    ]
    assert len(entries) == 2
    for entry in entries:
        assert Path(entry["command"]).name == expected["command"]
        assert (entry["args"][0], entry["args"][2:]) == (expected["args"][0], expected["args"][2:])
