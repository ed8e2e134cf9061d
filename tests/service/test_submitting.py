"""Everything that can happen to a submission, including races."""

import asyncio
import json
import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import Client, WorkflowFailureError

import invoice_client
from invoice_client import InvoiceClient
from invoice_runs import InvoiceRuns
from invoices.invoice import Invoice, workflow_id
from invoices.refusals import InvoiceError, NamedTotal, content_code
from invoices.status import RunProgress
from support import Desk, Refused, Tools, Worker, an_invoice, eventually, paid, tools_in_memory
from worker_here import worker_here
from workflow import TASK_QUEUE


@pytest.fixture
def tools(tools_here: Tools) -> Tools:
    return tools_here


async def runs(client: Client, name: str) -> int:
    query = f"WorkflowId='invoice-{name}'"
    return (await client.count_workflows(query)).count


async def test_the_same_invoice_again_changes_nothing(tools: Tools, client: Client) -> None:
    invoice = an_invoice()
    await tools("process_invoice", invoice_data=invoice)
    text = await tools("process_invoice", invoice_data=invoice)
    assert "nothing was started" in text
    assert f"Invoice {invoice['id']} status: Awaiting approval" in text
    assert await eventually(lambda: runs(client, invoice["id"])) == 1


async def test_the_same_invoice_in_another_spelling_is_the_same(tools: Tools) -> None:
    invoice = an_invoice()
    await tools("process_invoice", invoice_data=invoice)
    for line in invoice["lines"]:
        line["amount"] = float(line["amount"])
    text = await tools("process_invoice", invoice_data=json.dumps({"currency": "USD", **invoice}))
    assert "nothing was started" in text


async def test_another_invoice_under_the_same_id_is_refused(tools: Tools) -> None:
    invoice = an_invoice()
    await tools("process_invoice", invoice_data=invoice)
    with pytest.raises(Refused, match=r"in use by a different invoice: 2 lines, \$7,000\.00"):
        await tools("process_invoice", invoice_data={**invoice, "currency": "EUR"})
    assert (await tools.status(invoice))["currency"] == "USD"


async def test_a_new_id_that_looks_like_another_is_refused(tools: Tools, client: Client) -> None:
    invoice = an_invoice(id=f"О-{uuid4().hex}-INV")
    rule = r"^Nothing was done\. invoice_data\.id: must not mix Cyrillic and Latin letters"
    with pytest.raises(Refused, match=rule):
        await tools("process_invoice", invoice_data=invoice)
    with pytest.raises(Refused, match=f"There is no invoice {invoice['id']}"):
        await tools("get_invoice_status", invoice_id=invoice["id"])


async def test_an_invoice_whose_id_looks_like_another_goes_on(
    tools: Tools, worker: Worker, client: Client
) -> None:
    invoice = an_invoice(id=f"О-{uuid4().hex}-INV")
    # As earlier versions did, without this check.
    await Desk(client).start(invoice)
    text = await tools("process_invoice", invoice_data=invoice)
    assert text.startswith("Already in process; nothing was started.")
    assert "must not mix Cyrillic and Latin letters" in text
    await tools("reject_invoice", invoice_id=invoice["id"])
    await tools.until(invoice, "rejected")
    text = await tools("process_invoice", invoice_data=invoice)
    assert text.startswith(f"Started processing invoice {invoice['id']}")
    code = await code_of_content(tools, invoice)
    total = "7000.00 USD"
    await tools("approve_invoice", invoice_id=invoice["id"], total=total, content_code=code)
    await tools.until(invoice, "completed")


async def test_a_paid_invoice_is_refused(tools: Tools, worker: Worker, client: Client) -> None:
    invoice = an_invoice()
    await tools("process_invoice", invoice_data=invoice)
    await tools("approve_invoice", invoice_id=invoice["id"])
    await tools.until(invoice, "completed")
    with pytest.raises(Refused, match=r"already paid on 20.*: 2 lines, \$7,.*Nothing was started"):
        await tools("process_invoice", invoice_data=invoice)
    with pytest.raises(Refused, match=r"a different invoice, which was paid on 20.*another id"):
        await tools("process_invoice", invoice_data={**invoice, "currency": "EUR"})
    assert await eventually(lambda: runs(client, invoice["id"])) == 1


@pytest.mark.parametrize("end", ["rejected", "timed_out", "cancelled", "terminated"])
async def test_an_invoice_that_ended_unpaid_may_be_submitted_again(
    end: str, tools: Tools, client: Client, worker: Worker
) -> None:
    days = 1 / 86400 if end == "timed_out" else 5
    invoice = an_invoice(approval_timeout_days=days)
    await tools("process_invoice", invoice_data=invoice)
    handle = client.get_workflow_handle(f"invoice-{invoice['id']}")
    if end == "rejected":
        await tools("reject_invoice", invoice_id=invoice["id"])
    elif end == "cancelled":
        await handle.cancel()
    elif end == "terminated":
        await handle.terminate()
    await tools.until(invoice, end)
    again = {**invoice, "approval_timeout_days": 5}
    assert (await tools("process_invoice", invoice_data=again)).startswith("Started processing")
    code = await code_of_content(tools, invoice) if again != invoice else None
    total = "7000.00 USD"
    await tools("approve_invoice", invoice_id=invoice["id"], total=total, content_code=code)
    await tools.until(invoice, "completed")
    assert len(paid(worker.data, invoice)) == 2


async def test_a_hundred_submissions_at_once_give_one_run(client: Client, worker: Worker) -> None:
    invoice = Invoice.model_validate(an_invoice())
    submitted = await asyncio.gather(*(InvoiceClient(client).submit(invoice) for _ in range(100)))
    assert sum(one.outcome == "started" for one in submitted) == 1
    assert {one.state for one in submitted} == {"waiting"}
    assert await eventually(lambda: runs(client, invoice.id)) == 1


async def test_nothing_is_paid_again_after_the_service_lost_its_data(
    new_namespace: Callable[[], str], tmp_path: Path
) -> None:
    invoice = an_invoice()
    other = an_invoice(id=invoice["id"], lines=[{"item": "Something else", "amount": "1.00"}])
    # An empty namespace stands for a service that has lost its database.
    first, second, third = [new_namespace() for _ in range(3)]
    rows = []
    for address in (first, second):
        async with worker_here(address, tmp_path), tools_in_memory(address) as tools:
            text = await tools("process_invoice", invoice_data=invoice)
            assert text.startswith("Started processing")
            await tools("approve_invoice", invoice_id=invoice["id"])
            await tools.until(invoice, "completed")
        rows.append(ledger_rows(tmp_path, invoice["id"]))
    assert len(rows[0]) == 2
    assert rows[0] == rows[1]
    async with worker_here(third, tmp_path), tools_in_memory(third) as tools:
        with pytest.raises(Refused, match=r"line 1 was paid earlier as “Web Development”"):
            await tools("process_invoice", invoice_data=other)
    assert ledger_rows(tmp_path, invoice["id"]) == rows[0]


def ledger_rows(data: Path, name: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(data / "payments.db", timeout=10)) as ledger:
        query = "SELECT * FROM payments WHERE invoice_id = ? ORDER BY idempotency_key"
        return ledger.execute(query, (name,)).fetchall()


@pytest.mark.parametrize(("kind", "content"), [("Another", {}), ("InvoiceWorkflow", 5)])
async def test_an_open_run_that_is_not_an_invoice_is_reported_without_a_worker(
    kind: str, content: Any, tools: Tools, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoice = an_invoice()
    handle = await client.start_workflow(
        kind, content, id=workflow_id(invoice["id"]), task_queue="of-nobody"
    )
    with monkeypatch.context() as patch:
        patch.delattr(InvoiceRuns, "ask_worker")  # so that asking a worker would fail
        with pytest.raises(Refused, match=r"isn't an invoice.*Nothing was started.*terminate"):
            await tools("process_invoice", invoice_data=invoice)
    await handle.terminate()
    assert "Started processing" in await tools("process_invoice", invoice_data=invoice)


async def test_content_that_was_swapped_under_an_id_needs_its_total(
    tools: Tools, worker: Worker
) -> None:
    invoice = an_invoice(lines=[{"item": "Pens", "amount": "10.00"}])
    swapped = {**invoice, "lines": [{"item": "Pens", "amount": "9999999.00"}]}
    await tools("process_invoice", invoice_data=invoice)
    await tools("reject_invoice", invoice_id=invoice["id"])
    text = await tools("process_invoice", invoice_data=swapped)
    assert "The last submission with this id was different: 1 line, $10.00." in text
    with pytest.raises(Refused, match=r"is for \$9,999,999\.00, not \$10\.00"):
        await tools("approve_invoice", invoice_id=invoice["id"], total="10.00")
    code = await code_of_content(tools, invoice)
    for incomplete in ({"content_code": code}, {"total": "9999999.00"}):
        with pytest.raises(Refused, match=r"before with different content.*for \$9,999,999\.00"):
            await tools("approve_invoice", invoice_id=invoice["id"], **incomplete)
    assert not paid(worker.data, invoice)
    total = "9999999.00 USD"
    await tools("approve_invoice", invoice_id=invoice["id"], total=total, content_code=code)
    await tools.until(invoice, "completed")


TEA = [{"item": f"Tea, box {number}", "amount": f"{number}.00"} for number in range(1, 26)]
GOLD = [{"item": "Gold", "amount": "325.00"}]


async def test_the_same_total_of_other_content_is_refused_with_its_lines(
    tools: Tools, worker: Worker
) -> None:
    """The person was shown tea in yen. Gold in dinars has the same number and the same id."""
    tea = an_invoice(lines=TEA, currency="JPY")
    gold = an_invoice(id=tea["id"], lines=GOLD, currency="KWD", customer="cus_other")
    await tools("process_invoice", invoice_data=tea)
    await tools("reject_invoice", invoice_id=tea["id"])
    await tools("process_invoice", invoice_data=gold)
    with pytest.raises(Refused, match=r"is for KWD 325\.00; a total without its currency means"):
        await tools("approve_invoice", invoice_id=tea["id"], total=325)
    with pytest.raises(Refused, match=r"is for KWD 325\.00, not JPY 325\.00"):
        await tools("approve_invoice", invoice_id=tea["id"], total="325.00 JPY")
    with pytest.raises(Refused, match="used before with different content") as refusal:
        await tools("approve_invoice", invoice_id=tea["id"], total="325.00 KWD")
    assert "Charged: customer “cus_other”. Lines: 1. KWD 325.00 for “Gold”." in str(refusal.value)
    code_of_gold = await code_of_content(tools, gold)
    await tools("reject_invoice", invoice_id=tea["id"])
    await tools("process_invoice", invoice_data=tea)
    with pytest.raises(Refused) as refusal:  # the first submission's content again, and its total
        await tools(
            "approve_invoice",
            invoice_id=tea["id"],
            total="325.00 JPY",
            content_code=code_of_gold,
        )
    text = str(refusal.value)
    assert text.count("“Tea, box ") == 20
    assert "25. JPY 25.00 for “Tea, box 25”; and 5 more lines of JPY 6.00 at most" in text
    assert "together JPY 15.00." in text
    code = await code_of_content(tools, tea)
    text = await tools(
        "approve_invoice", invoice_id=tea["id"], total="jpy 325", content_code=code.upper()
    )
    assert text.startswith("Sent approval signal")


async def test_an_invoice_submitted_too_often_to_compare_needs_the_code(
    client: Client, monkeypatch: pytest.MonkeyPatch, worker: Worker
) -> None:
    monkeypatch.setattr(invoice_client, "EARLIER_RUNS", 1)
    invoice = Invoice.model_validate(an_invoice())
    invoices = InvoiceClient(client)
    for _ in range(2):
        await invoices.submit(invoice)
        await invoices.decide(invoice.id, approve=False)
    await invoices.submit(invoice)

    async def listed() -> bool:
        return await runs(client, invoice.id) == 3

    await eventually(listed)
    total = NamedTotal(invoice.total, "USD")
    with pytest.raises(InvoiceError, match=r"submitted more than 1 times before.*content_code"):
        await invoices.decide(invoice.id, approve=True, total=total)
    code = content_code(invoice, (await invoices.runs.get_run(invoice.id)).id)
    approved = await invoices.decide(invoice.id, approve=True, total=total, code=code)
    assert approved.outcome == "approved"


async def test_an_id_that_may_look_like_another_needs_the_code(tools: Tools) -> None:
    """The id is Cyrillic, and looks like one in Latin letters."""
    invoice = an_invoice(id=f"\u0410\u0421\u0415-{random.randrange(10**9)}")
    await tools("process_invoice", invoice_data=invoice)
    total = "7000.00 USD"
    with pytest.raises(Refused, match="has letters that may look like others") as refusal:
        await tools("approve_invoice", invoice_id=invoice["id"], total=total)
    assert "Lines: 1. $5,000.00 for “Web Development”: “Frontend work”; 2. " in str(refusal.value)
    code = await code_of_content(tools, invoice)
    text = await tools("approve_invoice", invoice_id=invoice["id"], total=total, content_code=code)
    assert text.startswith("Sent approval signal")


async def test_a_code_is_valid_for_one_submission_only(tools: Tools) -> None:
    """Otherwise somebody could make two contents with the same short code."""
    codes = set()
    pens, ink = ([{"item": item, "amount": "5.00"}] for item in ("Pens", "Ink"))
    invoice = an_invoice(lines=pens)
    for lines in (pens, ink, pens, ink):
        await tools("process_invoice", invoice_data={**invoice, "lines": lines})
        if lines is ink:
            codes.add(await code_of_content(tools, invoice))
        await tools("reject_invoice", invoice_id=invoice["id"])
        await tools.until(invoice, "rejected")
    assert len(codes) == 2


async def code_of_content(tools: Tools, invoice: dict[str, Any]) -> str:
    """The code from the refusal of an approval."""
    with pytest.raises(Refused) as refusal:
        await tools("approve_invoice", invoice_id=invoice["id"])
    found = re.search(r"content_code “([0-9a-f]{12})”", str(refusal.value))
    assert found, refusal.value
    return found[1]


async def test_a_memo_of_payments_that_were_never_made_is_not_believed(
    tools: Tools, client: Client
) -> None:
    invoice = Invoice.model_validate(an_invoice())
    memo = RunProgress.of(invoice).to_memo()
    memo |= {"state": "completed", "status": "Completed", "paid_lines": 2, "paid_amount": "7000.00"}
    handle = await client.start_workflow(
        "InvoiceWorkflow", 5, id=workflow_id(invoice.id), task_queue=TASK_QUEUE, memo=memo
    )
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    text = await tools("get_invoice_status", invoice_id=invoice.id)
    assert "Invalid invoice: invoice: must be an object. This submission paid nothing." in text
    content = json.loads(invoice.to_json())
    assert "Started processing" in await tools("process_invoice", invoice_data=content)
