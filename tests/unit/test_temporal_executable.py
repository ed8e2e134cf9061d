"""Where the executable of the embedded Temporal Service comes from."""

import sys
import sysconfig
from pathlib import Path

import pytest
import temporalio.service

from reports import SEARCH_ATTRIBUTES
from startup import StartupError
from support import (
    free_port,
)
from temporal_service import dev_server

unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def executable_in(folder: Path, content: str = "#!/bin/sh\n") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / ("temporal.exe" if sys.platform == "win32" else "temporal")
    file.write_text(content)
    file.chmod(0o700)
    return file


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `environment`, `path` and `cache`, in which no executable is yet."""
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
async def test_an_executable_that_is_not_temporals_is_named(
    content: str,
    reason: str,
    sources: Path,
    unconfigured: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executable_in(sources / "path", content)
    monkeypatch.setenv("INVOICE_TEMPORAL_PORT", str(free_port()))
    monkeypatch.setenv("INVOICE_WEB_UI_PORT", str(free_port()))
    monkeypatch.setattr(dev_server, "START_ATTEMPTS", 1)
    with pytest.raises(StartupError, match=reason):
        async with dev_server.connect_or_start(sources, SEARCH_ATTRIBUTES):
            pytest.fail("it started")
