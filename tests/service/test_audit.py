"""The books, with a real service and a real worker's ledger, and with edited copies of that."""

import asyncio
import csv
import io
import json
import os
import shutil
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Self

import pytest
import temporalio.worker
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowFailureError

import activities
import audit
from invoice_runs import InvoiceRuns
from payments.gateway import Payment
from payments.ledger import SQLiteLedger
from payments.pay_once import pay_once
from payments.simulated import SimulatedGateway
from postgres import PostgreSQL
from support import (
    PROCESSES,
    ROOT,
    Desk,
    Namespace,
    Worker,
    an_invoice,
    connect,
    environment,
    eventually,
    payments,
)
from temporal_service.connection import whoami
from worker_here import settings_here, worker_here

AGREE, DISAGREE, UNREADABLE = 0, 1, 2


@dataclass
class Books:
    """What `audit.py` printed."""

    code: int
    printed: str
    problems: list[str]
    """The lines about invoices that disagree, or what else there is if there are none."""
    sums: list[str]

    def of(self, invoice_id: str) -> list[dict[str, str]]:
        return [
            row
            for row in csv.DictReader(io.StringIO(self.printed))
            if row["invoice_id"] == invoice_id
        ]

    @classmethod
    def read(cls, code: int, out: bytes, err: bytes) -> Self:
        problems, _, rest = err.decode().partition("Lines in the books")
        *sums, summary = rest.splitlines() or [""]
        return cls(code, out.decode(), problems.splitlines() or [summary], sums)


async def audited(address: str, data: Path, *arguments: str, **env: str) -> Books:
    """Runs `audit.py` in this process."""
    out, err = io.BytesIO(), io.BytesIO()
    with settings_here(environment(address, INVOICE_DATA_DIR=str(data), **env)) as patch:
        patch.setattr(sys, "argv", ["audit.py", *arguments])
        patch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
        patch.setattr(sys, "stderr", io.TextIOWrapper(err, "utf-8", write_through=True))
        code = await asyncio.to_thread(audit.main)
        return Books.read(code, out.getvalue(), err.getvalue())


@dataclass
class Office:
    """The service and the ledger of some invoices."""

    address: str
    directory: Path
    """The folder with the ledger."""


@pytest.fixture(scope="module")
async def books(
    new_namespace: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Office:
    """An office with an invoice of every kind. No worker runs."""
    office = Office(new_namespace(), tmp_path_factory.mktemp("books"))
    folder = office.directory
    desk = Desk(await connect(office.address))
    lines = [{"item": "Domain", "amount": "9.90"}, {"item": "=1+1", "amount": "6000.01"}]
    async with worker_here(office.address, folder, INVOICE_DECLINE_OVER="6000"):
        paid, rejected, timed_out, declined = await asyncio.gather(
            desk.submit(id="PAID", customer="=cmd|calc", supplier="=1+1", due_date="2026-12-31"),
            desk.submit(id="REJECTED"),
            desk.submit(id="TIMED-OUT", approval_timeout_days=1 / 24 / 3600),
            desk.submit(id="DECLINED", lines=lines),
        )
        await asyncio.gather(
            desk.approve(paid, reason="Hours checked"),
            desk.reject(rejected),
            desk.approve(declined),
        )
        for invoice, state in (
            (paid, "completed"),
            (rejected, "rejected"),
            (timed_out, "timed_out"),
            (declined, "failed"),
        ):
            await desk.until(invoice, state)
    async with Worker(office.address, folder, PROCESSES / "slow_worker.py"):
        (folder / "go-on").touch()
        await desk.submit_and_approve(id="DECLINED", lines=lines)
        await desk.until(declined, "completed")
        (folder / "go-on").unlink()
        (folder / "paying").unlink()
        await desk.submit_and_approve(id="UNDER-WAY")
        await eventually((folder / "paying").exists)
    await desk.submit(id="WAITING")
    # An invoice that Temporal never had stands for one whose retention is over.
    with closing(sqlite3.connect(folder / "payments.db")) as ledger, ledger:
        ledger.execute(
            "INSERT INTO payments SELECT replace(idempotency_key, 'PAID', 'FORGOTTEN'),"
            " attempt, 'FORGOTTEN', item, amount, currency, customer, payment_method, provider,"
            " reference, state, at FROM payments WHERE invoice_id = 'PAID'"
        )
    return office


@pytest.fixture(scope="module")
async def agreed(books: Office) -> Books:
    """What the process prints."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, str(ROOT / "audit.py")],
        env=environment(books.address, INVOICE_DATA_DIR=str(books.directory)),
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Books.read(process.returncode, out, err)


@pytest.fixture
def copy(books: Office, tmp_path: Path) -> Path:
    """A folder with a copy of the ledger, to be edited."""
    for file in books.directory.glob("payments.db*"):
        shutil.copy(file, tmp_path)
    return tmp_path


async def problems(address: str, data: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Runs the audit, and returns its lines about invoices that disagree."""
    with closing(SQLiteLedger(data / "payments.db", read_only=True)) as ledger:
        await audit.audit(InvoiceRuns(await connect(address)), ledger, lambda row: None)
    return capsys.readouterr().err.partition("Lines in the books")[0].splitlines()


def edit(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "payments.db")) as ledger, ledger:
        assert ledger.execute(statement).rowcount == 1


async def test_books_that_agree_say_so(agreed: Books) -> None:
    assert (agreed.code, agreed.problems) == (AGREE, ["7 invoices, 0 with disagreements"])


async def test_a_paid_line_has_the_decision_and_the_reference(agreed: Books) -> None:
    first, second = agreed.of("PAID")
    assert (first["line"], first["item"], first["amount"]) == ("1", "Web Development", "5000.00")
    assert (first["description"], first["due_date"]) == ("Frontend work", "2026-12-31")
    assert (first["decision"], first["decided_by"]) == ("approved", whoami())
    assert (first["reason"], first["state"]) == ("Hours checked", "completed")
    assert (first["payment"], first["payment_amount"]) == ("paid", "5000.00")
    assert first["payment_currency"] == "USD"
    assert first["reference"].startswith("simulated-")
    assert second["reference"].startswith("simulated-")
    assert first["submitted_at"] <= first["decided_at"] <= first["payment_at"]
    assert first["payment_at"].endswith("Z")


async def test_invoices_that_are_not_paid_are_in_the_books(agreed: Books) -> None:
    [rejected, _], [timed_out, _], [waiting, _] = map(
        agreed.of, ["REJECTED", "TIMED-OUT", "WAITING"]
    )
    assert (rejected["state"], rejected["decision"]) == ("rejected", "rejected")
    assert (timed_out["state"], timed_out["decision"]) == ("timed_out", "")
    assert (waiting["state"], waiting["payment"]) == ("waiting", "")


async def test_every_attempt_is_in_the_books_with_the_run_that_made_it(agreed: Books) -> None:
    rows = agreed.of("DECLINED")
    assert [(row["state"], row["line"], row["payment"], row["attempt"]) for row in rows] == [
        ("failed", "1", "paid", "1"),
        ("failed", "2", "declined", "1"),
        ("completed", "1", "paid_earlier", ""),
        ("completed", "2", "paid", "2"),
    ]


async def test_a_payment_under_way_is_shown_and_does_not_disagree(agreed: Books) -> None:
    first, second = agreed.of("UNDER-WAY")
    assert (first["state"], first["payment"]) == ("paying", "begun")
    assert (second["payment"], second["reference"]) == ("", "")


async def test_an_invoice_that_temporal_no_longer_has_is_shown_as_such(agreed: Books) -> None:
    rows = agreed.of("FORGOTTEN")
    assert [(row["state"], row["payment"]) for row in rows] == [("not_in_temporal", "paid")] * 2


async def test_json_lines_have_the_same_rows_exactly(books: Office, agreed: Books) -> None:
    found = await audited(books.address, books.directory, "--format", "jsonl")
    rows = [json.loads(line) for line in found.printed.splitlines()]
    table = list(csv.DictReader(io.StringIO(agreed.printed)))
    assert len(rows) == len(table) == 16
    assert [list(row) for row in rows] == [list(row) for row in table]
    assert {row["item"] for row in rows if row["invoice_id"] == "DECLINED"} == {"Domain", "=1+1"}


async def test_the_books_end_with_sums(agreed: Books) -> None:
    assert agreed.sums == [
        ":",
        "completed: 4 lines, $13,009.91; $13,000.01 paid",
        "failed: 2 lines, $6,009.91; $9.90 paid",
        "not_in_temporal: 2 lines, $7,000.00; $7,000.00 paid",
        "paying: 2 lines, $7,000.00; $0.00 paid",
        "rejected: 2 lines, $7,000.00; $0.00 paid",
        "timed_out: 2 lines, $7,000.00; $0.00 paid",
        "waiting: 2 lines, $7,000.00; $0.00 paid",
    ]


async def test_the_books_for_a_period_have_its_rows_and_every_disagreement(
    books: Office, copy: Path
) -> None:
    edit(copy, f"UPDATE payments SET at = '2020-01-31T23:59:59.9+00:00' WHERE {KEY}")
    edit(copy, "UPDATE payments SET state = 'declined' WHERE idempotency_key LIKE '%PAID/line-2'")
    january, february = [
        await audited(books.address, copy, "--since", since, "--until", until)
        for since, until in (("2020-01-31", "2020-01-31"), ("2020-02-01", "2020-02-29"))
    ]
    [row] = csv.DictReader(io.StringIO(january.printed))
    assert (row["invoice_id"], row["line"], row["payment_at"][:10]) == ("PAID", "1", "2020-01-31")
    first = " from 2020-01-31 until 2020-01-31:"
    assert january.sums == [first, "completed: 1 line, $5,000.00; $5,000.00 paid"]
    assert february.printed.split() == [",".join(audit.COLUMNS)]
    assert february.sums == [" from 2020-02-01 until 2020-02-29:", "none"]
    assert january.code == february.code == DISAGREE
    assert january.problems == february.problems
    assert january.problems[0].startswith("PAID: line 2: ")


async def test_no_text_becomes_a_formula(agreed: Books) -> None:
    assert agreed.of("PAID")[0]["customer"] == "'=cmd|calc"
    assert agreed.of("PAID")[0]["supplier"] == "'=1+1"
    assert agreed.of("DECLINED")[1]["item"] == "'=1+1"


KEY = "idempotency_key = 'invoice-PAID/line-1'"


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (
            f"DELETE FROM payments WHERE {KEY}",
            "line 1: paid as “Web Development” for $5,000.00 in the history of run",
        ),
        (f"UPDATE payments SET state = 'declined' WHERE {KEY}", "declined in the ledger"),
        (
            f"UPDATE payments SET amount = '5000.01' WHERE {KEY}",
            "“Web Development” for $5,000.01 (",
        ),
        (f"UPDATE payments SET currency = 'EUR' WHERE {KEY}", "for EUR 5,000.00 ("),
        (
            "INSERT INTO payments SELECT 'invoice-PAID/line-3', 1, invoice_id, item, amount,"
            " currency, customer, payment_method, provider, reference, state, at FROM payments"
            f" WHERE {KEY}",
            "line 3: paid as “Web Development” for $5,000.00 (",
        ),
        (
            "INSERT INTO payments SELECT idempotency_key, 2, invoice_id, item, amount,"
            " currency, customer, payment_method, provider, reference, state, at FROM payments"
            f" WHERE {KEY}",
            "line 1: paid twice in the ledger: ",
        ),
        ("UPDATE payment_ledger SET id = 'another-ledger'", "more than one ledger: "),
    ],
)
async def test_a_ledger_that_was_changed_disagrees(
    statement: str,
    problem: str,
    books: Office,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(copy, statement)
    texts = await problems(books.address, copy, capsys)
    [text] = [text for text in texts if text.startswith("PAID: ")]
    assert problem in text


async def test_a_payment_of_an_invoice_that_was_rejected_disagrees(
    books: Office, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "invoice-REJECTED/line-1"
    edit(copy, f"UPDATE payments SET invoice_id='REJECTED', idempotency_key='{key}' WHERE {KEY}")
    paid, rejected = await problems(books.address, copy, capsys)
    assert paid.startswith("PAID: line 1: ")
    assert rejected.startswith("REJECTED: line 1: paid as “Web Development” for $5,000.00 (")
    assert rejected.endswith(" in the ledger, in no history")


async def test_a_payment_that_a_terminated_run_had_begun_disagrees(
    namespace: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(await namespace.connect())
    async with Worker(namespace.address, tmp_path, PROCESSES / "crashing_worker.py") as worker:
        invoice = await desk.submit_and_approve(id="CRASHED")
        assert worker.process
        await asyncio.to_thread(worker.process.wait, 20)
    assert len(payments(tmp_path)) == 1
    assert not await problems(namespace.address, tmp_path, capsys)  # it is tried again

    await desk.handle(invoice).terminate()
    found = await audited(namespace.address, tmp_path)
    assert found.code == DISAGREE
    [text] = found.problems
    assert "line 1: paid as “Web Development” for $5,000.00" in text
    assert "begun and not completed in run" in text
    assert text.endswith("(terminated)")


async def test_a_payment_repeated_after_a_reset_is_in_the_books_once(
    namespace: Namespace, tmp_path: Path
) -> None:
    client = await namespace.connect()
    desk = Desk(client)
    async with worker_here(namespace.address, tmp_path):
        invoice = await desk.submit_and_approve(id="RESET")
        await desk.until(invoice, "completed")
        handle = desk.handle(invoice)
        before = [event async for event in handle.fetch_history_events()]
        paying = next(
            event.activity_task_scheduled_event_attributes
            for event in before
            if event.HasField("activity_task_scheduled_event_attributes")
        )
        await client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=WorkflowExecution(
                    workflow_id=handle.id, run_id=(await handle.describe()).run_id
                ),
                workflow_task_finish_event_id=paying.workflow_task_completed_event_id,
                request_id="a test",
                reason="a test",
            )
        )
        await desk.until(invoice, "completed")
    found = await audited(namespace.address, tmp_path)
    assert (found.code, found.problems) == (AGREE, ["1 invoice, 0 with disagreements"])
    assert [(row["line"], row["payment"], row["attempt"]) for row in found.of("RESET")] == [
        ("1", "paid", "1"),
        ("2", "paid", "1"),
        ("1", "paid_earlier", ""),
        ("2", "paid_earlier", ""),
    ]


async def test_runs_on_two_ledgers_that_both_paid_disagree(
    namespace: Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk = Desk(await namespace.connect())
    invoice = an_invoice(id="TWICE")
    for name in ("one", "other"):
        async with worker_here(namespace.address, tmp_path / name):
            # The tutorial's client doesn't say which ledger the invoice belongs to.
            handle = await desk.start(invoice)
            await handle.signal("approve_invoice")
            await desk.until(invoice, "completed")
    found = await problems(namespace.address, tmp_path / "one", capsys)
    assert [text.split(": ")[1] for text in found] == [
        "more than one ledger",
        "line 1",
        "line 2",
    ]
    assert found[1].count("(completed)") == 2
    other = str(tmp_path / "other" / "payments.db")
    both = await audited(namespace.address, tmp_path / "one", "--ledger", other)
    assert both.code == DISAGREE
    twice = [text for text in both.problems if "paid in more than one ledger" in text]
    assert [text.split(": ")[1] for text in twice] == ["line 1", "line 2"]
    assert [row["payment"] for row in both.of("TWICE")] == ["paid"] * 4
    assert both.sums[1:] == ["completed: 4 lines, $14,000.00; $14,000.00 paid"]


async def test_the_books_of_a_shared_ledger_agree(
    namespace: Namespace, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    url = postgresql.create_database()
    desk = Desk(await namespace.connect())
    async with worker_here(namespace.address, tmp_path, PAYMENT_LEDGER_URL=url):
        invoice = await desk.submit_and_approve(id="SHARED")
        await desk.until(invoice, "completed")
    found = await audited(namespace.address, tmp_path, PAYMENT_LEDGER_URL=url)
    assert (found.code, found.problems) == (AGREE, ["1 invoice, 0 with disagreements"])
    assert [row["payment"] for row in found.of("SHARED")] == ["paid", "paid"]

    # An invoice that began with the file stays with it.
    async with worker_here(namespace.address, tmp_path):
        earlier = await desk.submit_and_approve(id="EARLIER")
        await desk.until(earlier, "completed")
    found = await audited(namespace.address, tmp_path, PAYMENT_LEDGER_URL=url)
    assert found.code == DISAGREE
    assert [text.split(": ")[0] for text in found.problems] == ["EARLIER"] * 3
    files = ["--ledger", str(tmp_path / "payments.db")] * 2
    found = await audited(namespace.address, tmp_path, *files, PAYMENT_LEDGER_URL=url)
    assert (found.code, found.problems) == (AGREE, ["2 invoices, 0 with disagreements"])
    assert found.sums[1:] == ["completed: 4 lines, $14,000.00; $14,000.00 paid"]
    assert len(found.of("EARLIER")) == 2


@workflow.defn(name="Payer `x`", sandboxed=False)
class Payer:
    """Requests a payment under an invoice's id, without an approval."""

    @workflow.run
    async def run(self, line: dict[str, str]) -> None:
        await workflow.execute_activity(
            "process_payment",
            line,
            activity_id="line-1",
            schedule_to_close_timeout=timedelta(seconds=10),
        )


@activity.defn(name="process_payment")
async def pay_for_anybody(line: dict[str, str]) -> None:
    """Does as our activity did before it checked its caller."""


@pytest.mark.parametrize("refused", [True, False])
async def test_a_payment_for_another_type_of_workflow_disagrees(
    refused: bool,
    namespace: Namespace,
    ledger: SQLiteLedger,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = await namespace.connect()
    line = {"item": "Pen", "amount": "1.00"}
    pay = activities.process_payment if refused else pay_for_anybody
    async with temporalio.worker.Worker(
        client, task_queue="payer", workflows=[Payer], activities=[pay]
    ):
        handle = await client.start_workflow(
            Payer.run, line, id="invoice-OTHER", task_queue="payer"
        )
        with suppress(WorkflowFailureError):
            await handle.result()
    assert not await problems(namespace.address, tmp_path, capsys)  # it isn't in the books at all

    key = "invoice-OTHER/line-1"
    pay_once(SimulatedGateway(tmp_path), ledger, Payment(key, "OTHER", "Pen", Decimal(1), "USD"))
    [text] = await problems(namespace.address, tmp_path, capsys)
    assert text.startswith("OTHER: line 1: paid as “Pen” for $1.00 (simulated-")
    assert "for a workflow of the type “Payer " in text
    assert text.endswith(f", run {handle.result_run_id}")
    assert "`" not in text


async def test_a_payment_of_a_workflow_without_an_invoices_id_disagrees(
    books: Office, ledger: SQLiteLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payment = Payment("OTHER/line-1", "OTHER", "Pen", Decimal(1), "USD")
    pay_once(SimulatedGateway(tmp_path), ledger, payment)
    texts = await problems(books.address, tmp_path, capsys)
    [text] = [text for text in texts if text.startswith("OTHER: ")]
    assert text.endswith("for a workflow that isn't an invoice's")


async def test_what_cannot_be_read_is_reported_in_a_sentence(books: Office, tmp_path: Path) -> None:
    missing = await audited(books.address, tmp_path / "missing")
    away = await audited("127.0.0.1:9", books.directory)
    unknown = await audited(books.address, books.directory, TEMPORAL_NAMESPACE="books")
    assert (missing.code, missing.printed) == (UNREADABLE, "")
    path = tmp_path / "missing" / "payments.db"
    assert f"{path} can't be used: unable to open database file" in missing.problems[0]
    assert not (tmp_path / "missing").exists()
    assert away.code == UNREADABLE
    assert "The Temporal Service at 127.0.0.1:9 can't be reached" in away.problems[0]
    assert unknown.code == UNREADABLE
    assert "has no namespace 'books'" in unknown.problems[0]


async def test_wrong_arguments_are_reported_before_anything_is_read(tmp_path: Path) -> None:
    SQLiteLedger(tmp_path / "payments.db").close()
    missing = tmp_path / "none.db"
    a_date = await audited("127.0.0.1:9", tmp_path, "--since", "yesterday")
    a_ledger = await audited("127.0.0.1:9", tmp_path, "--ledger", str(missing))
    an_address = await audited("localhost:72333", tmp_path)
    assert a_date.problems == ["--since must be a date such as 2026-11-30, not “yesterday”."]
    assert a_ledger.problems == [
        f"The payment ledger {missing} can't be used: unable to open database file."
    ]
    assert an_address.problems == [
        "TEMPORAL_ADDRESS must be host:port, such as localhost:7233 or [::1]:7233, and is"
        " 'localhost:72333'."
    ]
    assert [a_date.code, a_ledger.code, an_address.code] == [UNREADABLE] * 3
    assert a_date.printed + a_ledger.printed + an_address.printed == ""
    assert not missing.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
async def test_the_audit_ends_quietly_without_a_reader(books: Office) -> None:
    async def code(lost: str, **env: str) -> int | None:
        reader, writer = os.pipe()
        os.close(reader)
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, str(ROOT / "audit.py")],
            env=environment(books.address, INVOICE_DATA_DIR=str(books.directory)) | env,
            stdout=writer if lost == "stdout" else PIPE,
            stderr=writer if lost == "stderr" else PIPE,
        )
        os.close(writer)
        _, told = await asyncio.wait_for(process.communicate(), 60)
        assert b"Traceback" not in (told or b"")
        return process.returncode

    # The SDK's threads run once there is a connection, and can abort the interpreter at its end.
    assert await code("stderr", TEMPORAL_NAMESPACE="books") == UNREADABLE
    assert await code("stderr", TEMPORAL_ADDRESS="127.0.0.1:9") == UNREADABLE
    assert await code("stderr") == UNREADABLE
    assert await code("stdout") == UNREADABLE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
async def test_books_that_cannot_be_written_are_reported(books: Office) -> None:
    with Path("/dev/full").open("w") as full:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, str(ROOT / "audit.py")],
            env=environment(books.address, INVOICE_DATA_DIR=str(books.directory)),
            stdout=full,
            stderr=PIPE,
        )
        _, told = await process.communicate()
    assert process.returncode == UNREADABLE
    assert told.decode().splitlines()[-1].startswith("The books can't be written: ")


async def test_without_standard_error_nothing_but_the_books_is_printed(
    books: Office, agreed: Books
) -> None:
    command = f"{sys.executable} {ROOT / 'audit.py'} 2>&-"
    process = await asyncio.create_subprocess_shell(
        command,
        env=environment(books.address, INVOICE_DATA_DIR=str(books.directory)),
        stdout=PIPE,
    )
    printed, _ = await process.communicate()
    assert (process.returncode, printed.decode()) == (AGREE, agreed.printed)


async def test_the_ledger_is_left_as_it_is(
    books: Office, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(books.address, INVOICE_DATA_DIR=str(copy)).items():
        monkeypatch.setenv(name, value)
    before = content(copy)
    assert await audit.run(audit._csv_writer) == 0
    assert "PAID" in capsys.readouterr().out
    assert content(copy) == before


def content(folder: Path) -> bytes:
    """The content of the ledger's file, after SQLite's write-ahead log was moved into it."""
    file = folder / "payments.db"
    with closing(sqlite3.connect(file)) as ledger:
        ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no wait4")
async def test_memory_does_not_grow_with_the_invoices(books: Office, copy: Path) -> None:
    async def peak() -> int:
        """The peak memory of one audit. The unit differs between systems."""
        process = await asyncio.to_thread(start)
        _, status, usage = await asyncio.to_thread(os.wait4, process, 0)
        assert os.waitstatus_to_exitcode(status) == AGREE
        return usage.ru_maxrss

    def start() -> int:
        command = [sys.executable, str(ROOT / "audit.py")]
        env = environment(books.address, INVOICE_DATA_DIR=str(copy))
        null = os.open(os.devnull, os.O_WRONLY)
        return os.posix_spawn(
            sys.executable, command, env, file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)]
        )

    few = await peak()
    with closing(sqlite3.connect(copy / "payments.db")) as ledger, ledger:
        ledger.execute(
            "INSERT INTO payments WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n"
            " WHERE n < 500) SELECT 'invoice-OLD-' || n || '/line-1', 1, 'OLD-' || n,"
            # Items of 100 kB: 50 MB if all were kept.
            " hex(zeroblob(50000)),"
            " amount, currency, customer, payment_method, provider, reference, state, at"
            f" FROM n, payments WHERE {KEY}"
        )
    assert await peak() < few * 1.1
