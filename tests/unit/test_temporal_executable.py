"""Where the executable of the embedded Temporal Service comes from."""

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import temporalio.service
from temporalio.client import Client

from startup import StartupError
from support import (
    PROCESSES,
    Worker,
    connect,
    free_port,
)
from temporal_service import connection, dev_server

unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Embedded:
    """Workers that share the ports of one embedded service."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port, self.ui_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.workers: list[Worker] = []

    def worker(self, data: Path | None = None, **env: str) -> Worker:
        script = PROCESSES / "embedded_worker.py"
        ports = [str(self.port), str(self.ui_port)]
        worker = Worker("", data or self.data, script, arguments=ports, **env)
        self.workers.append(worker)
        return worker

    async def client(self) -> Client | None:
        """Once the service answers."""
        try:
            return await connect(self.address)
        except StartupError:
            return None

    def servers(self) -> list[psutil.Process]:
        """The processes of dev servers for these ports."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            arguments = process.info["cmdline"] or []
            if "start-dev" in arguments and str(self.port) in arguments:
                found.append(process)
        return found

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()
        for server in self.servers():  # left behind on purpose
            server.kill()

    async def has_server(self) -> bool:
        return bool(self.servers())

    async def has_no_server(self) -> bool:
        return not self.servers()


@pytest.fixture
def here(unconfigured: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[Embedded], None]:
    """Gives this process the ports of an embedded service, and no address."""

    def use(embedded: Embedded) -> None:
        monkeypatch.setattr(connection, "PORT", embedded.port)
        monkeypatch.setattr(connection, "UI_PORT", embedded.ui_port)

    return use


def executable_in(folder: Path, content: str = "#!/bin/sh\n") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / ("temporal.exe" if sys.platform == "win32" else "temporal")
    file.write_text(content)
    file.chmod(0o700)
    return file


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `environment`, `path` and `cache` may have an executable; none has yet."""
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "environment"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(dev_server, "user_cache_path", lambda _: tmp_path / "cache")

    async def no_download(directory: Path) -> str:
        return "no network"

    monkeypatch.setattr(dev_server, "download", no_download)
    return tmp_path


async def test_the_executable_of_the_environment_comes_before_that_on_path(sources: Path) -> None:
    on_path = executable_in(sources / "path")
    assert await dev_server.temporal_executable() == on_path
    in_environment = executable_in(sources / "environment")
    assert await dev_server.temporal_executable() == in_environment


async def test_an_executable_on_a_relative_path_is_found_from_any_folder(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = executable_in(sources / "path")
    monkeypatch.chdir(sources)
    monkeypatch.setenv("PATH", "path")
    assert await dev_server.temporal_executable() == on_path


async def test_without_any_other_the_executable_is_downloaded_once(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []

    async def download(directory: Path) -> str:
        downloads.append(directory)
        suffix = ".exe" if sys.platform == "win32" else ""
        (directory / f"temporal-sdk-python-1.35.0{suffix}").touch()
        return ""

    monkeypatch.setattr(dev_server, "download", download)
    monkeypatch.setattr(temporalio.service, "__version__", "1.35.0")
    first = await dev_server.temporal_executable()
    assert first == await dev_server.temporal_executable()
    assert first.is_file()
    assert downloads == [sources / "cache"]


async def test_without_any_executable_the_ways_to_get_one_are_named(sources: Path) -> None:
    with pytest.raises(StartupError, match=r"can't be downloaded \(no network\).*brew install"):
        await dev_server.temporal_executable()


async def test_a_cache_that_cannot_be_written_is_named(sources: Path) -> None:
    (sources / "cache").touch()
    with pytest.raises(StartupError, match=r"can't be downloaded \(.*cache"):
        await dev_server.temporal_executable()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no program", "can't be started: .*temporal"),
        ("#!/bin/sh\necho another program\nexit 1\n", "doesn't start: another program"),
    ],
)
@unix
async def test_a_temporal_that_is_no_temporal_is_named(
    content: str,
    reason: str,
    sources: Path,
    here: Callable[[Embedded], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executable_in(sources / "path", content)
    here(Embedded(sources))
    monkeypatch.setattr(dev_server, "START_ATTEMPTS", 1)
    with pytest.raises(StartupError, match=reason):
        async with dev_server.connect_or_start(sources, "InvoiceState"):
            pytest.fail("it started")
