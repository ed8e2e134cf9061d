"""No secret is in any log, answer or history, whether things go well or fail.

Each setting that can be a secret has a unique value here. All output is searched for these values:
that of the worker, the MCP server and the audit, the tools' answers, and all workflows' histories.
"""

import asyncio
import json
import ssl
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import trustme
from temporalio.client import Client

from hooks import Hook, a_hook, accept, respond
from invoices.invoice import Invoice
from postgres import PASSWORD, PostgreSQL, programs
from stripe_stand_in import TERMS, StripeStandIn
from support import (
    ROOT,
    Desk,
    Namespace,
    Refused,
    Tools,
    Worker,
    eventually,
    free_port,
    mcp,
)
from temporal_service import connection
from tls_proxy import tls_proxy

API_KEY = "api-key-s3cret"
WRONG_KEY = "wrong-key-s3cret"
METADATA = "metadata-s3cret"
STRIPE_KEY = "sk_test_ok"
REFUSED_STRIPE_KEY = "sk_test_refused-s3cret"
NEW_PASSWORD = "n3w-password"
HOOK = "secret-token"
SECRETS = [
    API_KEY, WRONG_KEY, METADATA, STRIPE_KEY, REFUSED_STRIPE_KEY, PASSWORD, NEW_PASSWORD, HOOK
]  # fmt: skip


class Configured:
    """A namespace behind TLS and an API key, and the settings for our programs."""

    def __init__(self, namespace: Namespace, data: Path, **env: str) -> None:
        self.namespace = namespace
        self.data = data
        self.env = env
        self.written: list[str] = []
        key = env["TEMPORAL_TLS_CLIENT_KEY_DATA"]
        self.secrets = [*SECRETS, *(line for line in key.splitlines() if "-----" not in line)]

    def worker(self, **env: str) -> Worker:
        return Worker("", self.data, **{**self.env, **env})

    async def use_tools(self, *invoices: Invoice) -> None:
        """Lists the invoices and gets the status of these, with an MCP server process."""
        log = self.data / "server.log"
        async with mcp("", log=log, env=self.env) as client:
            calls: list[tuple[str, dict[str, str]]] = [("list_invoices", {})]
            for name in [invoice.id for invoice in invoices] or ["INV-1"]:
                calls.append(("get_invoice_status", {"invoice_id": name}))
            for tool, arguments in calls:
                try:
                    self.written.append(await Tools(client)(tool, **arguments))
                except Refused as refusal:
                    self.written.append(str(refusal))

    async def read_books(self) -> None:
        await self.run(str(ROOT / "audit.py"))

    async def run(self, *arguments: str, given: str = "") -> None:
        """Runs Python with the settings of all our programs."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *arguments),
            env=self.worker().environment,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        output, errors = await process.communicate(given.encode())
        self.written += [output.decode(), errors.decode()]

    async def assert_no_secret(self, client: Client) -> None:
        """Searches everything that was printed, and the namespace's histories."""
        written = {str(number): text for number, text in enumerate(self.written)}
        for file in [*self.data.glob("*.log"), *self.data.glob("*.out")]:
            written[file.name] = file.read_text()
        async for run in client.list_workflows():
            handle = client.get_workflow_handle(run.id, run_id=run.run_id)
            # Not as JSON, in which payloads are in Base64.
            written[run.id] = str((await handle.fetch_history()).events)
            # A failure is in the history only after the last attempt.
            written[run.id] += str((await handle.describe()).raw_description)
        for where, text in written.items():
            for secret in self.secrets:
                assert secret not in text, f"in {where}"


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    """A hook for one test, which may change its answers."""
    async with a_hook(accept) as hook:
        yield hook


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    """The URL of a new database; empty if PostgreSQL isn't installed."""
    if programs() is None:
        return ""
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.create_database()


@pytest.fixture
async def configured(
    namespace: Namespace,
    hook: Hook,
    stand_in: StripeStandIn,
    database: str,
    tmp_path: Path,
) -> AsyncIterator[Configured]:
    host, _, name = namespace.address.partition("/")
    authority = trustme.CA()
    certificate = authority.issue_cert("invoices@example.com")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    async with tls_proxy(int(host.partition(":")[2]), tls, API_KEY) as address:
        env = {
            "TEMPORAL_ADDRESS": address,
            "TEMPORAL_NAMESPACE": name,
            "TEMPORAL_API_KEY": API_KEY,
            "TEMPORAL_GRPC_META_X_TOKEN": METADATA,
            "TEMPORAL_TLS_SERVER_CA_CERT_DATA": authority.cert_pem.bytes().decode(),
            "TEMPORAL_TLS_CLIENT_CERT_DATA": certificate.cert_chain_pems[0].bytes().decode(),
            "TEMPORAL_TLS_CLIENT_KEY_DATA": certificate.private_key_pem.bytes().decode(),
            "INVOICE_NOTIFY_URL": hook.url,
            "PAYMENT_GATEWAY": "stripe",
            "STRIPE_API_KEY": STRIPE_KEY,
            "STRIPE_API_BASE": stand_in.url,
        }
        if database:
            env["PAYMENT_LEDGER_URL"] = database
        yield Configured(namespace, tmp_path, **env)


async def attempted_notice(client: Client, failure: str) -> None:
    """Waits until an attempt to post a notice has failed with these words, or for the last time."""

    async def has_failed() -> bool:
        async for run in client.list_workflows("WorkflowType='NoticeWorkflow'"):
            handle = client.get_workflow_handle(run.id, run_id=run.run_id)
            attempts = str((await handle.describe()).raw_description)
            if failure in attempts + str((await handle.fetch_history()).events):
                return True
        return False

    await eventually(has_failed)


async def test_no_secret_is_shown_when_invoices_are_paid_or_stripe_or_a_hook_refuses(
    configured: Configured, hook: Hook
) -> None:
    desk = Desk(await configured.namespace.connect())
    async with configured.worker() as worker:
        for answers, failure in (
            ([], ""),
            ([404] + [500] * 9, "the hook answered with status 500"),
        ):
            hook.answer = respond(*answers)
            paid = await desk.submit_and_approve(**TERMS)
            await desk.until(paid, "completed")
            await attempted_notice(desk.temporal, failure)
        assert await worker.end() == 0
    away = f"http://127.0.0.1:{free_port()}/{HOOK}"
    async with configured.worker(STRIPE_API_KEY=REFUSED_STRIPE_KEY, INVOICE_NOTIFY_URL=away):
        refused = await desk.submit_and_approve(**TERMS)
        await desk.once(refused, lambda status: "Invalid API Key" in status.to_text())
        await attempted_notice(desk.temporal, "(ConnectError)")
        await configured.use_tools(paid, refused)
        await configured.read_books()
    for invoice in (paid, refused):  # in both, the list and the status, and in the books
        assert sum(invoice.id in text for text in configured.written) == 3
    await configured.assert_no_secret(desk.temporal)


async def test_no_secret_is_shown_when_the_database_refuses_the_password(
    configured: Configured,
) -> None:
    if "PAYMENT_LEDGER_URL" not in configured.env:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    desk = Desk(await configured.namespace.connect())
    url = configured.env["PAYMENT_LEDGER_URL"]
    database = url.rpartition("/")[2]
    # A new login, because other tests use the server's.
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE \"{database}\" LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        own = url.replace("invoices:", f"{database}:")
        async with configured.worker(PAYMENT_LEDGER_URL=own):
            invoice = await desk.submit_and_approve(**TERMS)
            await desk.until(invoice, "completed")
            connection.execute(f"ALTER ROLE \"{database}\" PASSWORD '{NEW_PASSWORD}'")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                [database],
            )
            invoice = await desk.submit_and_approve(**TERMS)
            await desk.once(invoice, lambda status: "ledger is unavailable" in status.to_text())
            configured.env["PAYMENT_LEDGER_URL"] = own
            # Both try for some seconds.
            _, ended = await asyncio.gather(
                configured.read_books(), configured.worker().start(), return_exceptions=True
            )
            assert "password authentication failed" in configured.written[-1]
            assert "password authentication failed" in str(ended)
    await configured.assert_no_secret(desk.temporal)


async def test_no_secret_is_shown_when_the_service_refuses_the_key(configured: Configured) -> None:
    configured.env["TEMPORAL_API_KEY"] = WRONG_KEY
    with pytest.raises(AssertionError, match="refuses the credentials"):
        await configured.worker().start()
    await asyncio.gather(configured.use_tools(), configured.read_books())
    assert sum("refuses the credentials" in text for text in configured.written) == 3
    await configured.assert_no_secret(await configured.namespace.connect())


MALFORMED = {
    "TEMPORAL_API_KEY": f"{API_KEY}\n",
    "TEMPORAL_GRPC_META_X_TOKEN": f"{METADATA}\n",
    "TEMPORAL_TLS_CLIENT_KEY_DATA": API_KEY,
    "STRIPE_API_KEY": f"{STRIPE_KEY}\n",
    "INVOICE_NOTIFY_URL": f"http://{HOOK}\N{FULLWIDTH COMMERCIAL AT}host/",
    "PAYMENT_LEDGER_URL": f"postgresql://invoices:{PASSWORD}/more@host/database",
}
# One process for all of them, because most of what a program does here is to start.
ALL_PROGRAMS = """
import asyncio, json, os, sys
from fastmcp import Client
import activities, audit, invoice_server, worker

async def use_tool():
    invoice_server.shared_client = None
    async with Client(invoice_server.mcp) as client:
        print(await client.call_tool_mcp("list_invoices", {}))

for name, value in json.load(sys.stdin).items():
    before = os.environ.get(name, "")
    os.environ[name] = value
    activities.open_payments.cache_clear()
    assert worker.main() == 1, name
    if name.startswith("TEMPORAL_"):  # only the worker has the others
        assert audit.main() == 2, name
        asyncio.run(use_tool())
    os.environ[name] = before
print("That was all", flush=True)
os._exit(0)
"""


async def test_no_secret_is_shown_when_it_is_malformed(configured: Configured) -> None:
    await configured.run("-c", ALL_PROGRAMS, given=json.dumps(MALFORMED))
    output, errors = configured.written
    assert output.endswith("That was all\n"), errors
    assert output.count("is_error=True") == 3
    await configured.assert_no_secret(await configured.namespace.connect())


async def test_no_secret_is_in_the_embedded_services_log(hook: Hook, tmp_path: Path) -> None:
    port = free_port()
    worker = Worker(
        "",
        tmp_path,
        INVOICE_TEMPORAL_PORT=str(port),
        INVOICE_WEB_UI_PORT=str(free_port()),
        INVOICE_NOTIFY_URL=hook.url,
    )
    hook.answer = respond(*[500] * 9)
    async with worker:
        desk = Desk(await connection.connect({"target_host": f"localhost:{port}"}))
        invoice = await desk.submit_and_approve(**TERMS)
        await desk.until(invoice, "completed")
        await attempted_notice(desk.temporal, "the hook answered with status 500")
        assert await worker.end() == 0
    written = [file.read_text() for file in tmp_path.glob("*.log")]
    assert len(written) == 2
    assert not any(HOOK in text for text in written)
