"""The ledger of payments, in SQLite on one machine or in PostgreSQL for several.

Both use the same SQL, and each change is a single statement. So no transaction stays open during a
call to a provider, and if two workers pay the same line, the first to write wins.
"""

import re
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from payments.gateway import GatewayUnavailable, LedgerEntry, Payment
from settings import read_setting
from startup import StartupError

if TYPE_CHECKING:
    import psycopg

_COLUMNS = (
    "idempotency_key, attempt, invoice_id, item, amount, currency, customer, payment_method,"
    " provider, reference, state, at"
)
_TABLES = (
    """CREATE TABLE IF NOT EXISTS payments (
        idempotency_key TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        invoice_id TEXT NOT NULL,
        item TEXT NOT NULL,
        amount TEXT NOT NULL,
        currency TEXT NOT NULL,
        customer TEXT,
        payment_method TEXT,
        provider TEXT NOT NULL,
        reference TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('begun', 'paid', 'declined')),
        at TEXT NOT NULL,
        PRIMARY KEY (idempotency_key, attempt)
    )""",
    "CREATE INDEX IF NOT EXISTS payments_of_invoice ON payments (invoice_id)",
    """CREATE TABLE IF NOT EXISTS payment_ledger (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id TEXT NOT NULL
    )""",
)
WAIT_SECONDS = 5
"""How long a statement waits for this process's other threads, and then for other processes."""
ANSWER_SECONDS = 8
"""How long to wait for PostgreSQL. The server itself ends a statement after 5 s unless it hangs."""
_INSERT_ID = "INSERT INTO payment_ledger (one, id) VALUES (1, ?) ON CONFLICT DO NOTHING"
_SELECT_ID = "SELECT id FROM payment_ledger"


def open_ledger(directory: Path, *, read_only: bool = False) -> "Ledger":
    """Opens the ledger at `PAYMENT_LEDGER_URL`, or by default `payments.db` in `directory`.

    Creates or migrates it if necessary, unless it is `read_only`.

    Raises:
        StartupError: it can't be used.
    """
    if url := read_setting("PAYMENT_LEDGER_URL"):
        return PostgreSQLLedger(url, read_only=read_only)
    return SQLiteLedger(directory / "payments.db", read_only=read_only)


class Ledger(ABC):
    """A permanent record of every attempt to pay.

    Threads may share a `Ledger`, and processes its database. A row is never deleted. It changes
    only once, from `begun` to `paid` or `declined`.

    Raises:
        GatewayUnavailable: the ledger can't be used now, or isn't the one that was opened.
    """

    id: str
    """A unique id of this ledger: 32 hexadecimal digits."""
    name: str
    """Where the ledger is, in words for people."""

    def latest(self, idempotency_key: str) -> LedgerEntry | None:
        """The line's latest attempt."""
        entries = self._select("idempotency_key = ?", idempotency_key)
        return entries[0] if entries else None

    def add(self, entry: LedgerEntry) -> LedgerEntry:
        """Adds an entry and returns it, or the same attempt's entry that was added first."""
        payment = entry.payment
        _, added = self._execute(
            f"INSERT INTO payments ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            payment.idempotency_key,
            entry.attempt,
            payment.invoice_id,
            payment.item,
            str(payment.amount),
            payment.currency,
            payment.customer,
            payment.payment_method,
            entry.provider,
            entry.reference,
            entry.state,
            entry.at.isoformat(),
        )
        return entry if added else self._recorded(entry)

    def settle(self, entry: LedgerEntry) -> LedgerEntry:
        """Changes a begun entry's state and time to those of `entry`.

        Returns `entry`, or the one in the ledger if that was already settled.
        """
        _, settled = self._execute(
            "UPDATE payments SET state = ?, at = ?"
            " WHERE idempotency_key = ? AND attempt = ? AND state = 'begun'",
            entry.state,
            entry.at.isoformat(),
            entry.payment.idempotency_key,
            entry.attempt,
        )
        return entry if settled else self._recorded(entry)

    def providers(self, invoice_id: str) -> set[str]:
        """The providers of an invoice's payments that were begun or made, not of declined ones."""
        rows = self._look_up(
            "DISTINCT provider", "invoice_id = ? AND state IN ('begun', 'paid')", invoice_id
        )
        return {str(row[0]) for row in rows if row[0] is not None}

    def entries(self, invoice_id: str) -> list[LedgerEntry]:
        """Every attempt to pay a line of an invoice, earlier attempts first."""
        return self._select("invoice_id = ?", invoice_id)[::-1]

    def invoice_ids(self) -> Iterator[str]:
        """The ids of all invoices with entries, read a thousand at a time."""
        after = ""
        while rows := self._execute(
            "SELECT DISTINCT invoice_id FROM payments WHERE invoice_id > ?"
            " ORDER BY invoice_id LIMIT 1000",
            after,
        )[0]:
            yield from (str(row[0]) for row in rows)
            after = rows[-1][0]

    @abstractmethod
    def close(self) -> None:
        """Closes the connections. The ledger can't be used after that."""

    def _recorded(self, entry: LedgerEntry) -> LedgerEntry:
        [recorded] = self._select(
            "idempotency_key = ? AND attempt = ?", entry.payment.idempotency_key, entry.attempt
        )
        return recorded

    def _select(self, condition: str, *values: object) -> list[LedgerEntry]:
        rows = self._look_up(_COLUMNS, condition, *values, order=" ORDER BY attempt DESC")
        return [_entry(row, self.id) for row in rows if row[0] is not None]

    def _look_up(
        self, columns: str, condition: str, *values: object, order: str = ""
    ) -> list[Sequence[Any]]:
        """The rows of `payments`, or a single row of NULLs if there are none.

        It also checks the ledger's id.
        """
        rows, _ = self._execute(
            f"SELECT {columns}, id FROM payment_ledger LEFT JOIN payments ON {condition}{order}",
            *values,
        )
        self._expect_id([row[-1:] for row in rows])
        return [row[:-1] for row in rows]

    def _expect_id(self, rows: Sequence[Sequence[object]]) -> None:
        if not rows or rows[0][0] != self.id:
            raise GatewayUnavailable(
                f"the payment ledger is unavailable: {self.name} is not the ledger it was when the"
                " worker started"
            )

    @abstractmethod
    def _execute(self, statement: str, *values: object) -> tuple[list[Sequence[Any]], int]:
        """Runs and commits one statement. Returns its rows, and how many rows it changed.

        Raises:
            GatewayUnavailable: it failed, or it isn't known whether it was committed.
        """


def _entry(row: Sequence[Any], ledger: str) -> LedgerEntry:
    key, attempt, invoice_id, item, amount, currency, customer, payment_method, *rest = row
    provider, reference, state, at = rest
    payment = Payment(key, invoice_id, item, Decimal(amount), currency, customer, payment_method)
    entered = datetime.fromisoformat(at)
    return LedgerEntry(payment, attempt, provider, reference, state, entered, ledger)


class SQLiteLedger(Ledger):
    """A ledger in one file. A statement returns once its change is on disk (`synchronous=FULL`).

    If the file is removed or replaced, the ledger is unavailable. SQLite itself would continue to
    write to the removed file.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Opens the ledger. Creates or migrates it unless it is `read_only`.

        Raises:
            StartupError: it can't be opened, or isn't a ledger.
        """
        self.name = path.name
        self._path = path
        self._read_only = read_only
        self._wal = path.with_name(f"{path.name}-wal")
        self._lock = threading.Lock()
        try:
            with _closed_on_error(self._connect()) as self._connection:
                if not read_only:
                    _use_write_ahead_log(self._connection)
                    _make_tables(self._connection)
                [(self.id,)] = self._connection.execute(_SELECT_ID).fetchall()
                self._opened = self._files()
        except (sqlite3.Error, OSError) as error:
            raise StartupError(f"The payment ledger {path} can't be used: {error}.") from error

    def close(self) -> None:
        self._connection.close()

    def _look_up(
        self, columns: str, condition: str, *values: object, order: str = ""
    ) -> list[Sequence[Any]]:
        # Checking it here is enough, because every payment begins by looking something up.
        with self._turn(), self._errors():
            if self._files() != self._opened:
                self._reopen()
        return super()._look_up(columns, condition, *values, order=order)

    def _execute(self, statement: str, *values: object) -> tuple[list[Sequence[Any]], int]:
        with self._turn(), self._errors():
            cursor = self._connection.execute(statement, values)
            return cursor.fetchall(), cursor.rowcount

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # Without this limit, a thread would wait for all threads before it, which may take
        # `WAIT_SECONDS` each.
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise GatewayUnavailable(f"the payment ledger is unavailable: {self.name} is busy")
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = f"{self.name} is missing" if missing else f"{self.name}: {error}"
            raise GatewayUnavailable(f"the payment ledger is unavailable: {reason}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=ro" if self._read_only else self._path,
            uri=self._read_only,
            timeout=WAIT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        with _closed_on_error(connection):
            connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _files(self) -> list[tuple[int, int]]:
        """Identifies the database file and the write-ahead log, which has the latest commits."""
        named = [self._path.stat()]
        with suppress(FileNotFoundError):
            named.append(self._wal.stat())
        return [(file.st_dev, file.st_ino) for file in named]

    def _reopen(self) -> None:
        # If only the -wal file was removed, this saves its commits into the database file.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(FULL)")
        with _closed_on_error(self._connect()) as connection:
            self._expect_id(connection.execute(_SELECT_ID).fetchall())
        self._connection.close()
        self._connection, self._opened = connection, self._files()


@contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # While another worker creates the same ledger, this statement fails at once. For all others,
    # SQLite waits.
    give_up_at = time.monotonic() + 5
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


def _make_tables(connection: sqlite3.Connection) -> None:
    """Creates the tables, or migrates a ledger of an earlier version."""
    with connection:  # commits, or rolls back on an error
        # IMMEDIATE takes the write lock before the check, so that only one worker migrates.
        connection.execute("BEGIN IMMEDIATE")
        columns = {name for _, name, *_ in connection.execute("PRAGMA table_info(payments)")}
        migrate = bool(columns) and "attempt" not in columns
        if migrate:
            connection.execute("ALTER TABLE payments RENAME TO payments_1")
        for statement in _TABLES:
            connection.execute(statement)
        if migrate:
            connection.execute(
                f"INSERT INTO payments ({_COLUMNS})"
                " SELECT idempotency_key, 1, invoice_id, item, amount, currency, NULL, NULL,"
                " 'simulated', reference, 'paid', paid_at FROM payments_1"
            )
            connection.execute("DROP TABLE payments_1")
        connection.execute(_INSERT_ID, (uuid4().hex,))


class PostgreSQLLedger(Ledger):
    """A ledger in a PostgreSQL database, for workers on any number of machines."""

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        """Connects once. Creates missing tables unless it is `read_only`.

        Raises:
            StartupError: the driver is missing, or the database can't be used. The message doesn't
                contain the password.
        """
        try:
            import psycopg
            from psycopg_pool import ConnectionPool
        except ImportError:
            raise StartupError(
                "PAYMENT_LEDGER_URL needs the PostgreSQL driver: uv run --extra postgres worker.py,"
                " or audit.py"
            ) from None
        self._error = psycopg.Error
        settings = _connection_settings(url)
        if read_only:
            settings["options"] += " -c default_transaction_read_only=on"
        self.name = f"{settings.get('dbname', 'PostgreSQL')} on {settings.get('host', 'localhost')}"
        try:
            # First without the pool, which doesn't say why it can't connect.
            with _limited_connection().connect(**settings) as connection:
                if not read_only:
                    # Without a lock, two workers that create a table at the same time would fail.
                    connection.execute("SELECT pg_advisory_xact_lock(hashtext('payment_ledger'))")
                    for statement in _TABLES:
                        connection.execute(statement)
                    connection.execute(_INSERT_ID.replace("?", "%s"), (uuid4().hex,))
                [(self.id,)] = connection.execute(_SELECT_ID).fetchall()
        except psycopg.Error as error:
            raise StartupError(
                f"The payment ledger {self.name} can't be used: {' '.join(str(error).split())}."
            ) from None
        self._pool = ConnectionPool(
            connection_class=_limited_connection(),
            kwargs={**settings, "autocommit": True},
            min_size=0,
            max_size=20,
            timeout=5,
            check=ConnectionPool.check_connection,  # they are dead after a restart
            open=True,
        )

    def close(self) -> None:
        self._pool.close()

    def _execute(self, statement: str, *values: object) -> tuple[list[Sequence[Any]], int]:
        try:
            with self._pool.connection() as connection:
                cursor = connection.execute(statement.replace("?", "%s"), values)
                return list(cursor) if cursor.description else [], cursor.rowcount
        except self._error as error:
            reason = " ".join(str(error).split())
            raise GatewayUnavailable(f"the payment ledger is unavailable: {reason}") from None


@cache
def _limited_connection() -> "type[psycopg.Connection[Any]]":
    """A class of connections that give up a statement after `ANSWER_SECONDS`, and are then closed.

    The server's own limits don't help if it hangs, or if its answer is lost on the way.
    """
    import psycopg

    class Connection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
            return super().wait(self._limited(gen), *arguments, **named)

        def _limited(self, gen: Any) -> Any:
            give_up_at = time.monotonic() + ANSWER_SECONDS
            try:
                wait_for = next(gen)
                while True:
                    ready = yield wait_for
                    # psycopg continues here several times a second, even if nothing is ready.
                    if not ready and time.monotonic() > give_up_at:
                        self.close()
                        raise psycopg.OperationalError(f"no answer within {ANSWER_SECONDS} s")
                    wait_for = gen.send(ready)
            except StopIteration as end:
                return end.value

    return Connection


def _connection_settings(url: str) -> dict[str, Any]:
    """The settings in `url`, with defaults for limits that keep a payment within its 30 s."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    rule = StartupError(
        "PAYMENT_LEDGER_URL must be like postgresql://user:password@host:5432/database, with"
        " special characters in the user's name and the password percent-encoded."
    )
    # If a special character isn't encoded, part of the password would be taken as the host name.
    scheme, _, rest = url.partition("://")
    if scheme not in {"postgresql", "postgres"} or "@" in re.sub("^[^/?@]*@", "", rest):
        raise rule
    try:
        configured = conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError):  # its text may quote the password
        raise rule from None
    return {
        "connect_timeout": 5,
        "tcp_user_timeout": 10_000,
        "options": "-c statement_timeout=5s -c synchronous_commit=on",
        **configured,
    }
