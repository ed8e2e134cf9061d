"""The largest invoices that are accepted are paid to the last line."""

from typing import Any

import pytest

from invoices.invoice import MAX_JSON_BYTES, MAX_LINES, Invoice
from support import (
    Desk,
    Worker,
    an_invoice,
    connect,
    paid,
)


def filled_up(invoice: dict[str, Any]) -> Invoice:
    """An invoice just below the size limit, because of the description of its last line.

    Activity arguments are sent with ASCII escapes, which triple the size of this description.
    """

    def described(description: str) -> Invoice:
        line = {**invoice["lines"][-1], "description": description}
        return Invoice.model_validate({**invoice, "lines": [*invoice["lines"][:-1], line]})

    room = MAX_JSON_BYTES - 1 - len(described("").to_json())
    return described("Ж" * (room // len("Ж".encode())))


@pytest.mark.parametrize("ledger_away", [False, True])
async def test_the_largest_accepted_invoice_is_paid_to_the_last_line(
    ledger_away: bool, own_worker: Worker
) -> None:
    desk, data = Desk(await connect(own_worker.address)), own_worker.data
    invoice = filled_up(an_invoice())
    assert len(invoice.to_json()) > MAX_JSON_BYTES - 3
    if ledger_away:  # if so, it is asked again before paying, in another way
        (data / "payments.db").rename(data / "away.db")
    await desk.client.submit(invoice)
    await desk.approve(invoice)
    if ledger_away:
        await desk.until(invoice, "paying")
        (data / "away.db").rename(data / "payments.db")
    await desk.until(invoice, "completed")
    assert len(paid(data, invoice)) == 2


async def test_the_maximum_number_of_lines_with_the_longest_items_is_paid(
    own_worker: Worker,
) -> None:
    desk = Desk(await connect(own_worker.address))
    widest = "\N{PERSON WITH BALL}"
    lines = [{"item": widest * 200, "amount": "9999999999.99"} for _ in range(MAX_LINES)]
    terms = {"customer": widest * 255, "payment_method": widest * 255}
    invoice = filled_up(an_invoice(lines=lines, **terms))
    await desk.client.submit(invoice)
    await desk.pay(invoice)
    assert len(paid(own_worker.data, invoice)) == MAX_LINES
    # Another client starts it again, and the ledger reports everything that was paid.
    handle = await desk.start(invoice)
    await handle.signal("approve_invoice")
    text = (await desk.until(invoice, "completed")).to_text()
    assert "including $4,999,999,999,995.00 paid earlier" in text
