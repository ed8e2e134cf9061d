"""What earlier submissions of an invoice paid is known from the start, and shown everywhere."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from support import Desk, Refused, Tools, Worker, connect, eventually, paid, tools_in_memory

LINES = [{"item": "Domain", "amount": "10.00"}, {"item": "Server", "amount": "500.00"}]
EARLIER = "2 lines, $510.00: 1 of 2 lines paid earlier, $10.00; $500.00 to pay."


@pytest.fixture(scope="module")
async def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
async def limited(data: Path, new_namespace: Callable[[], str]) -> AsyncIterator[str]:
    """The address of a worker that can't pay more than $50 for a line."""
    address = new_namespace()
    async with Worker(address, data, INVOICE_DECLINE_OVER="50"):
        yield address


@pytest.fixture(scope="module")
async def host(limited: str) -> AsyncIterator[Tools]:
    async with tools_in_memory(limited) as tools:
        yield tools


@pytest.fixture
async def half_paid(host: Tools) -> dict[str, Any]:
    """An invoice whose first line is paid and whose second was declined."""
    invoice = await host.submit(lines=LINES)
    await host("approve_invoice", invoice_id=invoice["id"])
    await host.until(invoice, "failed")
    return invoice


async def test_it_is_shown_for_a_waiting_invoice(host: Tools, half_paid: dict[str, Any]) -> None:
    name = half_paid["id"]
    assert EARLIER in await host("process_invoice", invoice_data=half_paid)
    assert EARLIER in await host("get_invoice_status", invoice_id=name)
    status = await host.status(half_paid)
    assert (status["paid_earlier_lines"], status["paid_earlier_amount"]) == (1, "10.00")

    async def listed() -> bool:
        lines = (await host("list_invoices", status="waiting")).splitlines()
        return any(name in line and "; $10.00 paid, $500.00 to pay;" in line for line in lines)

    assert await eventually(listed)


async def test_it_is_shown_when_the_invoice_is_rejected(
    host: Tools, half_paid: dict[str, Any]
) -> None:
    await host("process_invoice", invoice_data=half_paid)
    text = await host("reject_invoice", invoice_id=half_paid["id"])
    assert "Paid: 1 of 2 lines, $10.00 of $510.00, including $10.00 paid earlier." in text


async def test_it_is_shown_when_the_invoice_fails_again(
    host: Tools, half_paid: dict[str, Any], data: Path
) -> None:
    await host("process_invoice", invoice_data=half_paid)
    await host("approve_invoice", invoice_id=half_paid["id"], total="510.00")
    await host.until(half_paid, "failed")
    text = await host("get_invoice_status", invoice_id=half_paid["id"])
    assert "Payment failed: line 2 of 2, “Server”, $500.00: declined" in text
    assert "Paid: 1 of 2 lines, $10.00 of $510.00, including $10.00 paid earlier." in text
    assert paid(data, half_paid) == [f"invoice-{half_paid['id']}/line-1"]


async def test_it_is_shown_in_the_question(limited: str, half_paid: dict[str, Any]) -> None:
    asked: list[str] = []

    async def person(message: str, *_: Any) -> dict[str, bool]:
        asked.append(message)
        return {"approve": False}

    async with tools_in_memory(limited, elicitation_handler=person) as asking:
        await asking("process_invoice", invoice_data=half_paid)
        with pytest.raises(Refused, match="did not clearly say yes"):
            await asking("approve_invoice", invoice_id=half_paid["id"])
    assert asked[0].splitlines()[1] == "Paid earlier: 1 line, $10.00. To pay: $500.00."


@pytest.mark.parametrize(
    "change",
    [
        {"lines": [{"item": "Domain", "amount": "11.00"}, LINES[1]]},
        {"lines": [{"item": "Domains", "amount": "10.00"}, LINES[1]]},
        {"lines": [LINES[1], LINES[0]]},
        {"currency": "EUR"},
    ],
    ids=["amount", "item", "moved", "currency"],
)
async def test_a_changed_paid_line_fails_at_once_with_the_way_out(
    change: dict[str, Any], host: Tools, half_paid: dict[str, Any], limited: str
) -> None:
    with pytest.raises(Refused) as refusal:
        await host("process_invoice", invoice_data={**half_paid, **change})
    text = str(refusal.value)
    assert (
        "line 1 was paid earlier as “Domain”, $10.00, and has been changed or removed since" in text
    )
    if "currency" in change:
        assert "2 lines, EUR 510.00; this submission paid nothing." in text
    else:
        assert "Paid before the change: 1 line, $10.00." in text
    assert "Submit it with that line as it was when it was paid" in text
    assert "submit only the unpaid lines under a new id" in text
    status = await host.status(half_paid)
    assert (status["state"], status["failure"]) == ("failed", "PaymentConflict")
    with pytest.raises(WorkflowFailureError) as failure:
        await Desk(await connect(limited)).handle(half_paid).result()
    assert isinstance(failure.value.cause, ApplicationError)
    message = "Payment failed: line 1: paid earlier with different content"
    assert failure.value.cause.message == message
    # The way out leads out.
    assert EARLIER in await host("process_invoice", invoice_data=half_paid)
