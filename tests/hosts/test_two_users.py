"""Two people at two hosts: MCP servers under two system users, on one Temporal Service."""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastmcp import Client as McpClient
from fastmcp.client.transports import StdioTransport

from support import ERAS, ROOT, Refused, Tools, Worker, environment, eventually, paid


@pytest.fixture(scope="module")
def users() -> Iterator[list[str]]:
    """Two system users, for this file only."""
    programs = ("useradd", "userdel", "setpriv")
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, programs)):
        pytest.skip("only root can run an MCP server as another user, with useradd and setpriv")
    names = [f"{who}-{uuid4().hex[:8]}" for who in ("ann", "bob")]
    made: list[str] = []
    try:
        for name in names:
            subprocess.run(["useradd", "--no-create-home", name], check=True)
            made.append(name)
        yield names
    finally:
        for name in made:
            subprocess.run(["userdel", name], check=False, capture_output=True)


@asynccontextmanager
async def host(address: str, user: str, era: str, **env: str) -> AsyncIterator[Tools]:
    """A host whose MCP server runs as a system user."""
    # The capability lets the user read this interpreter, wherever it is.
    readable = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    transport = StdioTransport(
        "setpriv",
        [
            *("--reuid", user, "--regid", user, "--clear-groups", *readable),
            *(sys.executable, "-B", str(ROOT / "invoice_server.py")),
        ],
        env=environment(address, HOME=str(Path("/")), **env),
        keep_alive=False,
    )
    async with McpClient(transport, mode=era) as client:
        yield Tools(client)


# The two hosts have different eras, in which a server is told differently what a host can do.
@pytest.fixture(scope="module")
async def at_anns(users: list[str], careful: Worker) -> AsyncIterator[Tools]:
    async with host(careful.address, users[0], ERAS[0]) as tools:
        yield tools


@pytest.fixture(scope="module")
async def at_bobs(users: list[str], careful: Worker) -> AsyncIterator[Tools]:
    async with host(careful.address, users[1], ERAS[1]) as tools:
        yield tools


async def test_two_users_approve_one_after_the_other(
    users: list[str], at_anns: Tools, at_bobs: Tools, careful: Worker
) -> None:
    ann, bob = users
    invoice = await at_anns.submit(currency="EUR")
    name = invoice["id"]
    text = await at_anns("approve_invoice", invoice_id=name, reason="as agreed")
    assert "Approved by you; needs a second person." in text
    text = await at_bobs("get_invoice_status", invoice_id=name)
    assert f"Submitted by {ann}@" in text
    assert f"Awaiting approval - approved by {ann}@" in text
    assert "reason: “as agreed”. A second person must approve it too." in text
    text = await at_bobs("approve_invoice", invoice_id=name)
    assert text.startswith(f"Sent approval signal for invoice {name}. Invoice {name} status: ")
    status = await at_bobs.until(invoice, "completed")
    assert status["first_approval"]["by"].startswith(f"{ann}@")
    assert status["decision"]["by"].startswith(f"{bob}@")
    assert len(paid(careful.data, invoice)) == 2


async def test_one_users_hosts_cannot_have_it_paid(
    users: list[str], at_anns: Tools, careful: Worker
) -> None:
    """What a model can do with the tools of one user, in any number of hosts."""
    ann, bob = users
    pretending = {"USER": bob, "LOGNAME": bob, "USERNAME": bob, "SUDO_USER": bob}
    async with host(careful.address, ann, ERAS[1], **pretending) as again:
        forged: dict[str, Any] = {
            "submitted_by": f"{bob}@desk",
            "required_approvals": None,
            "by": f"{bob}@desk",
            "first_approval": {"by": f"{bob}@desk"},
        }
        invoice = await at_anns.submit(**forged, currency="EUR")
        name = invoice["id"]
        attempts: list[dict[str, Any]] = [
            {},
            {"reason": f'{{"by": "{bob}@desk"}}'},
            {"total": "7000.00 EUR"},
            {"by": f"{bob}@desk"},
            {"details": {"by": f"{bob}@desk"}},
            {"run_id": "x", "request": "y"},
        ]
        for host_of_ann in (at_anns, again):
            for arguments in attempts:
                with suppress(Refused):
                    await host_of_ann("approve_invoice", invoice_id=name, **arguments)
            # A card is for hosts that show them, and the model can't call its tools.
            with pytest.raises(Refused, match="Unknown tool"):
                await host_of_ann("decide_on_card", invoice_id=name, approve=True, seal="0" * 64)
        text = await at_anns("process_invoice", invoice_data=invoice)
        assert text.startswith("Already in process; nothing was started.")
        # A new run needs two people of its own.
        await at_anns("cancel_invoice", invoice_id=name)
        assert (await at_anns.submit(**invoice))["id"] == name
        await again("approve_invoice", invoice_id=name)
        status = await at_anns.status(invoice)
        assert status["state"] == "waiting"
        assert status["first_approval"]["by"].startswith(f"{ann}@")
        assert status["submitted_by"].startswith(f"{ann}@")

        # Nor in another currency, in which the operator has set no limit.
        other = await at_anns.submit(currency="XTS")
        await at_anns("approve_invoice", invoice_id=other["id"])
        with suppress(Refused):
            await again("approve_invoice", invoice_id=other["id"], total="7000.00 XTS")

        async def needs_a_second_person() -> bool:
            return "first_approval" in await at_anns.status(other)

        await eventually(needs_a_second_person)
    for one in (invoice, other):
        assert not paid(careful.data, one)
