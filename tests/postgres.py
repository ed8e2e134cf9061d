"""A PostgreSQL server for the tests, if PostgreSQL is installed."""

import getpass
import shutil
import subprocess
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import psycopg

from support import eventually, free_port

PASSWORD = "s3cret-of-the-tests"


def programs() -> Path | None:
    """Where `initdb` and `postgres` are; Debian keeps them off the `PATH`."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found := shutil.which("initdb"):
        installed.append(Path(found).resolve())
    return installed[-1].parent if installed else None


class PostgreSQL:
    """A server on a free port. It isn't started yet."""

    def __init__(self) -> None:
        found = programs()
        assert found, "no PostgreSQL here"
        self.programs = found
        self.directory = Path(mkdtemp(prefix="postgres-"))
        # The server refuses to run as root.
        self.user = "nobody" if getpass.getuser() == "root" else None
        if self.user:
            shutil.chown(self.directory, self.user)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        password = self.directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = f"-U invoices -E UTF8 -A scram-sha-256 --pwfile {password} --no-sync"
        subprocess.run(
            [self.programs / "initdb", "-D", self.directory / "data", *options.split()],
            user=self.user,
            cwd=self.directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def url(self, database: str = "postgres", user: str = "invoices") -> str:
        return f"postgresql://{user}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    async def start(self) -> None:
        """Starts it, or starts it again on the same data."""

        async def connected() -> bool:
            # After a kill, it can't start until all of its child processes have ended.
            if self.process is None or self.process.poll() is not None:
                self.process = self._run()
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        await eventually(connected, 30)

    def _run(self) -> subprocess.Popen[bytes]:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        options += " -c unix_socket_directories="
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [self.programs / "postgres", "-D", self.directory / "data", *options.split()],
                user=self.user,
                cwd=self.directory,
                stdout=log,
                stderr=log,
            )

    def create_database(self) -> str:
        """Creates a database, and returns its URL."""
        name = f"test-{uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url(name)

    def create_user(self) -> str:
        """Creates a user whose tables are in a schema of its own, and returns its URL.

        That takes a twentieth of the time that a database takes.
        """
        name = f"test-{uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE USER \"{name}\" PASSWORD '{PASSWORD}'".encode())
            connection.execute(f'CREATE SCHEMA AUTHORIZATION "{name}"'.encode())
        return self.url(user=name)

    def end_connections(self) -> None:
        """Ends all connections except its own."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = current_user AND pid <> pg_backend_pid()"
            )

    def kill(self) -> None:
        """kill -9; its children end by themselves."""
        if self.process:
            self.process.kill()
            self.process.wait(10)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
