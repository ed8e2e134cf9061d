"""The ledger, in SQLite and in PostgreSQL: the first row always wins, despite any fault."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from payments.gateway import GatewayUnavailable, LedgerEntry, Payment
from payments.ledger import Ledger, PostgreSQLLedger, SQLiteLedger
from payments.pay_once import pay_once
from payments.simulated import SimulatedGateway
from postgres import PASSWORD, PostgreSQL
from startup import StartupError, data_directory
from support import ROOT, payments

PAYMENT = Payment(
    "invoice-INV-1/line-1", "INV-1", "Hosting ☂", Decimal("19.99"), "USD", "cus_A", "pm_A"
)
BEGUN = LedgerEntry(PAYMENT, 1, "provider", "ref-1", "begun", datetime.now(UTC))


@pytest.fixture
def database(postgresql: PostgreSQL) -> str:
    """The URL of a PostgreSQL database, for a new user who has no tables yet."""
    return postgresql.create_user()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The path of a file, or the URL of a database."""
    if request.param == "sqlite":
        return str(tmp_path / "payments.db")
    url: str = request.getfixturevalue("database")
    return url


OPENED: list[Ledger] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def open_at(where: str | Path, *, read_only: bool = False) -> Ledger:
    ledger: Ledger
    if "://" in str(where):
        ledger = PostgreSQLLedger(str(where), read_only=read_only)
    else:
        ledger = SQLiteLedger(Path(where), read_only=read_only)
    OPENED.append(ledger)
    return ledger


def test_an_entry_is_kept_as_it_is(where: str) -> None:
    assert open_at(where).add(BEGUN) == BEGUN
    assert open_at(where).latest(PAYMENT.idempotency_key) == BEGUN
    assert open_at(where).latest("invoice-INV-1/line-2") is None


def test_the_first_of_two_entries_stands(where: str) -> None:
    ledger = open_at(where)
    ledger.add(BEGUN)
    assert ledger.add(replace(BEGUN, reference="ref-2")) == BEGUN


def test_the_latest_attempt_is_found(where: str) -> None:
    ledger = open_at(where)
    ledger.add(replace(BEGUN, state="declined"))
    second = ledger.add(replace(BEGUN, attempt=2, reference="ref-2"))
    assert ledger.latest(PAYMENT.idempotency_key) == second


def test_an_entry_is_settled_once(where: str) -> None:
    ledger = open_at(where)
    ledger.add(BEGUN)
    paid = ledger.settle(replace(BEGUN, state="paid", at=datetime.now(UTC)))
    assert paid.state == "paid"
    assert ledger.settle(replace(BEGUN, state="declined")) == paid
    assert ledger.latest(PAYMENT.idempotency_key) == paid


def test_every_attempt_of_an_invoice_is_found_the_first_one_first(where: str) -> None:
    ledger = open_at(where)
    second = replace(BEGUN, attempt=2, reference="ref-2")
    declined = replace(BEGUN, state="declined")
    other = replace(PAYMENT, idempotency_key="invoice-INV-10/line-1", invoice_id="INV-10")
    for entry in (second, declined, replace(BEGUN, payment=other)):
        ledger.add(entry)
    assert open_at(where, read_only=True).entries("INV-1") == [declined, second]


def test_the_ids_of_all_invoices_are_found_each_one_once(where: str) -> None:
    ledger = open_at(where)
    for invoice_id, line in (("INV-1", 1), ("INV-1", 2), ("ÄRA", 1), ("a", 1), ("A", 1), ("A", 2)):
        key = f"invoice-{invoice_id}/line-{line}"
        payment = replace(PAYMENT, idempotency_key=key, invoice_id=invoice_id)
        ledger.add(replace(BEGUN, payment=payment))
    _, copies = ledger._execute(
        "INSERT INTO payments WITH RECURSIVE n(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n"
        " WHERE n < 2500) SELECT 'invoice-INV-' || n || '/line-1', 1, 'INV-' || n, item, amount,"
        " currency, customer, payment_method, provider, reference, state, at"
        " FROM n, payments WHERE idempotency_key = 'invoice-INV-1/line-1'"
    )
    assert copies == 2499
    ids = [f"INV-{number}" for number in range(1, 2501)] + ["ÄRA", "a", "A"]
    assert sorted(open_at(where, read_only=True).invoice_ids()) == sorted(ids)


def test_a_ledger_opened_to_be_read_takes_no_entry(where: str) -> None:
    ledger = open_at(where)
    reader = open_at(where, read_only=True)
    assert reader.id == ledger.id
    ledger.add(BEGUN)
    with pytest.raises(GatewayUnavailable, match=r"read-?only"):
        reader.settle(replace(BEGUN, state="paid"))
    assert reader.entries("INV-1") == [BEGUN]


def test_a_missing_ledger_is_not_created_when_it_is_only_read(where: str) -> None:
    for _ in range(2):
        with pytest.raises(StartupError, match="can't be used"):
            open_at(where, read_only=True)


def test_a_ledger_keeps_its_unique_id(where: str, tmp_path: Path) -> None:
    ledger = open_at(where)
    assert open_at(where).id == ledger.id
    assert open_at(tmp_path / "other.db").id != ledger.id


def test_a_new_ledger_that_is_opened_many_times_at_once_is_created_once(where: str) -> None:
    together = threading.Barrier(8)

    def open_together() -> str:
        together.wait()
        return open_at(where).id

    with ThreadPoolExecutor(8) as pool:
        opened = [pool.submit(open_together) for _ in range(8)]
    assert len({ledger.result() for ledger in opened}) == 1


def test_a_ledger_that_another_worker_is_creating_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        made = threading.Timer(0.2, other.execute, ["COMMIT"])
        made.start()
        assert open_at(path).id
        made.join()


def test_threads_that_pay_one_line_get_one_entry(where: str, tmp_path: Path) -> None:
    ledger, gateway = open_at(where), SimulatedGateway(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        entries = set(pool.map(lambda _: pay_once(gateway, ledger, PAYMENT), range(50)))
    assert len(entries) == 1


PAY_THIRTY = """
import sys
from decimal import Decimal
from pathlib import Path
from payments.gateway import Payment
from payments.pay_once import pay_once
from payments.ledger import PostgreSQLLedger, SQLiteLedger
from payments.simulated import SimulatedGateway

where, gateway = sys.argv[1], SimulatedGateway(Path("."))
sys.stdin.readline()
ledger = PostgreSQLLedger(where) if "://" in where else SQLiteLedger(Path(where))
for line in range(30):
    payment = Payment(f"invoice-INV-1/line-{line}", "INV-1", "Hosting", Decimal("19.99"), "USD")
    print(ledger.id, pay_once(gateway, ledger, payment))
"""


def start_together(code: str, *arguments: str, processes: int = 3) -> list[str]:
    """Runs `code`, which must wait for a line of input, in several processes at once.

    Returns what each of them prints.
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=60)[0] for process in started]


def test_processes_that_start_at_once_share_one_ledger(where: str) -> None:
    [first, *others] = start_together(PAY_THIRTY, where)
    assert len(first.splitlines()) == 30
    assert others == [first] * 2


# The ledger of version 1.0, which the simulated gateway kept.
VERSION_1 = """CREATE TABLE payments (
    idempotency_key TEXT PRIMARY KEY,
    invoice_id TEXT NOT NULL,
    item TEXT NOT NULL,
    amount TEXT NOT NULL,
    currency TEXT NOT NULL,
    reference TEXT NOT NULL,
    paid_at TEXT NOT NULL
)"""
PAID_AT = "2026-11-20T10:11:12.131415+00:00"


def make_version_1(path: Path, lines: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as ledger:
        ledger.execute("PRAGMA journal_mode=WAL")
        ledger.execute(VERSION_1)
        ledger.execute("BEGIN")
        for n in range(1, lines + 1):
            row = (f"invoice-INV-1/line-{n}", "INV-1", f"Item {n}", "19.99", "EUR", f"s-{n}")
            ledger.execute("INSERT INTO payments VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, PAID_AT))
        ledger.execute("COMMIT")


def test_a_ledger_of_the_first_version_keeps_its_payments(tmp_path: Path) -> None:
    make_version_1(tmp_path / "payments.db", 2)
    ledger = open_at(tmp_path / "payments.db")
    payment = Payment("invoice-INV-1/line-2", "INV-1", "Item 2", Decimal("19.99"), "EUR")
    paid_at = datetime.fromisoformat(PAID_AT)
    assert ledger.latest(payment.idempotency_key) == LedgerEntry(
        payment, 1, "simulated", "s-2", "paid", paid_at
    )
    assert pay_once(SimulatedGateway(tmp_path), ledger, payment).at == paid_at
    assert len(ledger.entries("INV-1")) == 2


OPEN = """
import sys
from pathlib import Path
from payments.ledger import SQLiteLedger

sys.stdin.readline()
ledger = SQLiteLedger(Path(sys.argv[1]))
print(ledger.id, len(ledger.entries("INV-1")))
"""


def test_workers_that_start_at_once_migrate_a_ledger_once(tmp_path: Path) -> None:
    make_version_1(tmp_path / "payments.db", 1000)
    [first, *others] = start_together(OPEN, str(tmp_path / "payments.db"))
    assert first.endswith(" 1000\n")
    assert others == [first] * 2


KILLED_WHILE_MIGRATING = """
import os, sqlite3, sys
from pathlib import Path
from payments import ledger

connect = sqlite3.connect

def connect_until_killed(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(lambda sql: os._exit(137) if sys.argv[2] in sql else None)
    return connection

sqlite3.connect = connect_until_killed
sys.stdin.readline()
ledger.SQLiteLedger(Path(sys.argv[1]))
print("not killed")
"""


@pytest.mark.parametrize("before", ["INSERT INTO payments (", "INSERT INTO payment_ledger"])
def test_a_kill_in_the_middle_of_the_migration_loses_nothing(before: str, tmp_path: Path) -> None:
    make_version_1(tmp_path / "payments.db", 100)
    path = str(tmp_path / "payments.db")
    assert start_together(KILLED_WHILE_MIGRATING, path, before, processes=1) == [""]
    assert len(open_at(tmp_path / "payments.db").entries("INV-1")) == 100


def test_a_ledger_locked_for_too_long_is_unavailable_and_works_again(
    ledger: SQLiteLedger, tmp_path: Path
) -> None:
    ledger._connection.execute("PRAGMA busy_timeout=10")
    with closing(sqlite3.connect(tmp_path / "payments.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(GatewayUnavailable, match=r"unavailable: payments\.db: .*locked"):
            ledger.add(BEGUN)
        other.execute("ROLLBACK")
    assert ledger.add(BEGUN) == BEGUN


def test_threads_do_not_wait_for_a_locked_ledger_one_after_the_other(
    ledger: SQLiteLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments.ledger.WAIT_SECONDS", 0.3)
    ledger._connection.execute("PRAGMA busy_timeout=300")
    with closing(sqlite3.connect(tmp_path / "payments.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(20) as pool:
            began = time.monotonic()
            attempts = [pool.submit(ledger.add, BEGUN) for _ in range(20)]
            for attempt in attempts:
                with pytest.raises(GatewayUnavailable):
                    attempt.result()
            assert time.monotonic() - began < 3  # one after the other they would take 6 s
        other.execute("ROLLBACK")
    assert ledger.add(BEGUN) == BEGUN


def test_commits_are_synchronised_in_full(ledger: SQLiteLedger) -> None:
    assert ledger._execute("PRAGMA synchronous")[0] == [(2,)]  # FULL


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_the_directory_of_the_ledger_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVOICE_DATA_DIR", str(tmp_path / "new" / "data"))
    assert stat.S_IMODE(data_directory().stat().st_mode) == 0o700


def test_a_file_that_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "payments.db").write_text("no database, but as long as the header of one is " * 3)
    with pytest.raises(StartupError, match=r"payments\.db can't be used: file is not") as refusal:
        open_at(tmp_path / "payments.db")
    assert str(tmp_path) in str(refusal.value)


def remove(data: Path) -> None:
    for file in data.glob("payments.db*"):
        file.unlink()


def move_away(data: Path) -> None:
    for file in data.glob("payments.db*"):
        file.rename(data / f"moved-{file.name}")


def replace_by_a_new_one(data: Path) -> None:
    remove(data)
    open_at(data / "payments.db").add(BEGUN)


def replace_by_garbage(data: Path) -> None:
    remove(data)
    (data / "payments.db").write_text("no database, but as long as the header of one is " * 3)


def replace_by_an_empty_file(data: Path) -> None:
    remove(data)
    (data / "payments.db").touch()


not_on_windows = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows keeps open files from being removed"
)


@not_on_windows
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (remove, "payments.db is missing"),
        (move_away, "payments.db is missing"),
        (replace_by_a_new_one, "payments.db is not the ledger it was when the worker started"),
        (replace_by_garbage, "file is not a database"),
        (replace_by_an_empty_file, "no such table"),
    ],
)
def test_a_ledger_removed_or_replaced_pays_nothing_until_it_is_back(
    fault: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    data, backup, gateway = tmp_path / "data", tmp_path / "backup", SimulatedGateway(tmp_path)
    data.mkdir()
    ledger = open_at(data / "payments.db")
    first = pay_once(gateway, ledger, PAYMENT)
    shutil.copytree(data, backup)
    fault(data)
    for payment in (PAYMENT, replace(PAYMENT, idempotency_key="invoice-INV-1/line-2")) * 2:
        with pytest.raises(GatewayUnavailable, match=f"payment ledger is unavailable: .*{reason}"):
            pay_once(gateway, ledger, payment)
    remove(data)
    shutil.copytree(backup, data, dirs_exist_ok=True)
    assert pay_once(gateway, ledger, PAYMENT) == first
    assert pay_once(gateway, ledger, replace(PAYMENT, idempotency_key="invoice-INV-1/line-2"))
    assert len(payments(data)) == 2


@not_on_windows
def test_a_ledger_that_is_moved_away_and_back_goes_on(tmp_path: Path) -> None:
    ledger = open_at(tmp_path / "payments.db")
    ledger.add(BEGUN)
    move_away(tmp_path)
    with pytest.raises(GatewayUnavailable):
        ledger.latest(PAYMENT.idempotency_key)
    for file in tmp_path.glob("moved-*"):
        file.rename(tmp_path / file.name.removeprefix("moved-"))
    assert ledger.latest(PAYMENT.idempotency_key) == BEGUN
    ledger.settle(replace(BEGUN, state="paid"))
    assert len(payments(tmp_path)) == 1


@not_on_windows
def test_payments_survive_the_removal_of_the_files_beside_the_ledger(tmp_path: Path) -> None:
    ledger = open_at(tmp_path / "payments.db")
    ledger.add(BEGUN)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"payments.db{suffix}").unlink()
    assert ledger.latest(PAYMENT.idempotency_key) == BEGUN
    ledger.settle(replace(BEGUN, state="paid"))
    assert len(payments(tmp_path)) == 1
    assert open_at(tmp_path / "payments.db").entries("INV-1")


@not_on_windows
def test_the_files_of_a_ledger_that_took_its_place_are_left_alone(tmp_path: Path) -> None:
    ledger = open_at(tmp_path / "payments.db")
    ledger.add(BEGUN)
    remove(tmp_path)
    other = open_at(tmp_path / "payments.db")
    with pytest.raises(GatewayUnavailable):
        ledger.latest(PAYMENT.idempotency_key)
    other.add(replace(BEGUN, state="paid"))
    ledger.close()
    assert (tmp_path / "payments.db-wal").exists()
    assert len(payments(tmp_path)) == 1


def test_a_ledger_that_is_opened_and_only_read_is_not_taken_for_another(tmp_path: Path) -> None:
    # Closing it removes the file beside it.
    with closing(SQLiteLedger(tmp_path / "payments.db")) as ledger:
        ledger.add(BEGUN)
    with closing(SQLiteLedger(tmp_path / "payments.db")) as ledger:
        connection = ledger._connection
        assert ledger.latest(PAYMENT.idempotency_key)
        ledger.settle(replace(BEGUN, state="paid"))
        assert ledger.entries("INV-1")
        assert ledger._connection is connection


def test_payments_go_on_when_all_connections_were_ended(database: str) -> None:
    ledger = open_at(database)
    ledger.add(BEGUN)
    with psycopg.connect(database) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = current_user AND pid <> pg_backend_pid()"
        )
    assert ledger.latest(PAYMENT.idempotency_key) == BEGUN


def test_a_database_that_is_too_slow_is_unavailable_and_works_again(database: str) -> None:
    ledger = open_at(f"{database}?options=-c%20statement_timeout%3D200ms")
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE payments")
        with pytest.raises(GatewayUnavailable, match="due to statement timeout"):
            ledger.add(BEGUN)
    assert ledger.add(BEGUN) == BEGUN


async def test_a_database_that_hangs_is_unavailable_and_its_connection_replaced(
    database: str, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server or network that doesn't answer any more doesn't occupy a thread."""
    monkeypatch.setattr("payments.ledger.ANSWER_SECONDS", 0.5)
    async with silenced(postgresql.port) as (port, silence):
        url = database.replace(f":{postgresql.port}/", f":{port}/")
        ledger = await asyncio.to_thread(open_at, url)
        await asyncio.to_thread(ledger.add, BEGUN)
        silence()
        found = await asyncio.wait_for(
            asyncio.to_thread(ledger.latest, PAYMENT.idempotency_key), 20
        )
        assert found == BEGUN


def test_a_statement_that_gets_no_answer_is_given_up(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments.ledger.ANSWER_SECONDS", 0.3)
    ledger = open_at(database)
    with pytest.raises(GatewayUnavailable, match=r"unavailable: no answer within 0\.3 s"):
        ledger._execute("SELECT pg_sleep(4)")
    assert ledger.add(BEGUN) == BEGUN


def test_a_database_that_hangs_at_the_start_is_reported(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example to the audit, which would otherwise wait for ever."""
    open_at(database)
    monkeypatch.setattr("payments.ledger.ANSWER_SECONDS", 0.3)
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE payment_ledger")
        with pytest.raises(StartupError, match=r"can't be used: no answer within 0\.3 s"):
            open_at(database, read_only=True)


@asynccontextmanager
async def silenced(port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """Yields the port of a proxy, and a function that makes its open connections hang."""
    talking: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        ends.append(back)
        ends.append(writer)
        talking.add(asyncio.create_task(pump(reader, back)))
        talking.add(asyncio.create_task(pump(there, writer)))

    def silence() -> None:
        for task in talking:
            task.cancel()

    ends: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], silence
    finally:
        silence()
        server.close()
        for end in ends:
            end.close()


def test_recreated_tables_are_not_taken_for_the_ledger(database: str) -> None:
    ledger = open_at(database)
    ledger.add(replace(BEGUN, state="paid"))
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE payments, payment_ledger")
    with pytest.raises(GatewayUnavailable, match="does not exist"):
        ledger.latest(PAYMENT.idempotency_key)
    assert open_at(database).id != ledger.id
    with pytest.raises(GatewayUnavailable, match="is not the ledger it was when the worker star"):
        ledger.latest(PAYMENT.idempotency_key)


def test_a_payment_is_on_disk_once_it_is_confirmed(database: str) -> None:
    ledger = open_at(database)
    assert ledger._execute("SHOW synchronous_commit") == ([("on",)], 1)


@pytest.mark.parametrize(
    "url",
    [
        "s3cret",
        "mysql://user:s3cret@host/database",
        "postgresql://user:s3cret%zz@host/database",
        "postgresql://user:p@s3cret@host/database",
        "postgresql://user:p/s3cret@host/database",
        "postgresql://user:p?s3cret@host/database",
        "postgresql://user:\udcffs3cret@host/database",
        "postgresql://user:p@host/database?s3cret",
        "host=host user=user password=s3cret",
    ],
)
def test_an_invalid_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(StartupError, match="PAYMENT_LEDGER_URL must be like") as refusal:
        PostgreSQLLedger(url)
    assert "s3cret" not in "".join(traceback.format_exception(refusal.value))


def test_a_database_that_refuses_is_reported_without_the_password(postgresql: PostgreSQL) -> None:
    cannot = r"^The payment ledger .* can't be used: "
    for url, reason in (
        (postgresql.url("nowhere"), 'database "nowhere" does not exist'),
        (postgresql.url().replace(PASSWORD, "wr0ng-one"), "password authentication failed"),
        (f"postgresql://user:{PASSWORD}@127.0.0.1:1/there", "Connection refused"),
    ):
        with pytest.raises(StartupError, match=cannot) as refusal:
            PostgreSQLLedger(url)
        told = "".join(traceback.format_exception(refusal.value))
        assert reason in told
        assert PASSWORD not in told
        assert "wr0ng-one" not in told
        assert "\n" not in str(refusal.value)
