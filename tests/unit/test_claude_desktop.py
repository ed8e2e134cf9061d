"""What `claude_desktop.py` does to Claude Desktop's configuration, on made-up machines."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import claude_desktop
from settings import SETTINGS
from support import (
    ROOT,
)

FOLDER = {
    "darwin": "Library/Application Support/Claude",
    "win32": "AppData/Roaming/Claude",
    "linux": ".config/Claude",
}
STORE = "AppData/Local/Packages/Claude_pzs8sxrjxfjjc/LocalCache/Roaming/Claude"
OTHERS = '{"théme": "dark",\n "mcpServers": {"ours": {"command": "x"}},\n "last": [1.5, null]}'

WORKERS_OWN = [setting.name for setting in SETTINGS if "server" not in setting.readers]

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions and symlinks")


class Machine:
    """A home folder, with only uv on PATH."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.home = folder / "home"
        self.uv = folder / "bin" / ("uv.exe" if os.name == "nt" else "uv")
        self.uv.parent.mkdir()
        self.uv.touch(mode=0o755)
        for name in list(os.environ):
            if name.split("_")[0] in ("TEMPORAL", "INVOICE", "PAYMENT", "STRIPE", "XDG", "UV"):
                patch.delenv(name)
        patch.setenv("HOME", str(self.home))
        patch.setenv("USERPROFILE", str(self.home))
        patch.setenv("APPDATA", str(self.home / "AppData" / "Roaming"))
        patch.setenv("LOCALAPPDATA", str(self.home / "AppData" / "Local"))
        patch.setenv("PATH", str(self.uv.parent))

    def file(self, folder: str = FOLDER["linux"], content: str | None = None) -> Path:
        """The configuration in one of Claude Desktop's folders. Writes `content` to it if given."""
        file = self.home / folder / "claude_desktop_config.json"
        if content is not None:
            file.parent.mkdir(parents=True)
            file.write_bytes(content.encode())
        return file


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def run(*arguments: str, platform: str = "linux") -> int:
    return claude_desktop.main(arguments, platform)


def servers(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["mcpServers"]
    return found


def ours(file: Path) -> dict[str, Any]:
    entry: dict[str, Any] = servers(file)["invoice-processor"]
    return entry


@pytest.mark.parametrize("platform", FOLDER)
def test_each_system_has_its_file(machine: Machine, platform: str) -> None:
    assert run(platform=platform) == 0
    assert ours(machine.file(FOLDER[platform]))


def test_linux_honours_xdg_config_home(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(machine.home / "elsewhere"))
    run()
    assert ours(machine.file("elsewhere/Claude"))
    assert not machine.file().exists()


def test_windows_store_location_is_used_where_it_exists(machine: Machine) -> None:
    store = machine.file(STORE, "{}")
    run(platform="win32")
    assert ours(store)
    assert not machine.file(FOLDER["win32"]).exists()


def test_both_windows_locations_are_written_where_both_exist(machine: Machine) -> None:
    both = machine.file(STORE, "{}"), machine.file(FOLDER["win32"], "{}")
    run(platform="win32")
    assert all(ours(file) for file in both)


def test_neither_windows_location_is_written_if_one_is_broken(machine: Machine) -> None:
    store, roaming = machine.file(STORE, "{}"), machine.file(FOLDER["win32"], "{broken")
    assert run(platform="win32") == 1
    assert store.read_text() == "{}"
    assert roaming.read_text() == "{broken"


def test_entry_starts_the_server_by_absolute_paths(machine: Machine) -> None:
    run()
    assert ours(machine.file()) == {
        "command": str(machine.uv),
        "args": ["--directory", str(ROOT), "run", "invoice_server.py"],
    }


def test_without_uv_on_path_the_running_uv_is_used(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("UV", str(machine.uv))
    run()
    assert ours(machine.file())["command"] == str(machine.uv)


def test_missing_uv_is_reported_with_how_to_install_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert run() == 1
    assert "brew install uv" in capsys.readouterr().err
    assert not machine.file().exists()


def test_entry_passes_on_the_variables_of_the_server_only(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "cluster:7233")
    monkeypatch.setenv("TEMPORAL_GRPC_META_TEAM", "accounts")
    monkeypatch.setenv("INVOICE_APPROVAL_CARD", "required")
    monkeypatch.setenv("INVOICE_TEMPORAL_PORT", "7300")
    for name in WORKERS_OWN:
        monkeypatch.setenv(name, "worker")
    run()
    assert ours(machine.file())["env"] == {
        "INVOICE_APPROVAL_CARD": "required",
        "INVOICE_TEMPORAL_PORT": "7300",
        "TEMPORAL_ADDRESS": "cluster:7233",
        "TEMPORAL_GRPC_META_TEAM": "accounts",
    }


def test_variables_of_the_entry_stay_where_the_shell_sets_none(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "cluster:7233")
    monkeypatch.setenv("TEMPORAL_API_KEY", "secret")
    run()
    monkeypatch.delenv("TEMPORAL_API_KEY")
    monkeypatch.setenv("TEMPORAL_ADDRESS", "other:7233")
    monkeypatch.setenv("INVOICE_APPROVAL_CARD", "required")
    capsys.readouterr()
    run()
    assert ours(machine.file())["env"] == {
        "INVOICE_APPROVAL_CARD": "required",
        "TEMPORAL_ADDRESS": "other:7233",
        "TEMPORAL_API_KEY": "secret",
    }
    output = capsys.readouterr().out
    assert "the entry had before, and this shell doesn't set: TEMPORAL_API_KEY." in output
    assert "secret" not in output

    for name in ("TEMPORAL_ADDRESS", "INVOICE_APPROVAL_CARD"):
        monkeypatch.delenv(name)
    before = machine.file().read_text()
    run()
    assert machine.file().read_text() == before
    assert "nothing was changed" in capsys.readouterr().out


def test_variables_are_dropped_with_the_entry(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "cluster:7233")
    run()
    monkeypatch.delenv("TEMPORAL_ADDRESS")
    run("--remove")
    run()
    assert "env" not in ours(machine.file())


def test_each_windows_file_keeps_its_own_variables(machine: Machine) -> None:
    names = {STORE: "TEMPORAL_NAMESPACE", FOLDER["win32"]: "TEMPORAL_ADDRESS"}
    for folder, name in names.items():
        old = {"invoice-processor": {"command": "uv", "env": {name: "mine"}}}
        machine.file(folder, json.dumps({"mcpServers": old}))
    run(platform="win32")
    for folder, name in names.items():
        assert ours(machine.file(folder))["env"] == {name: "mine"}


@posix_only
def test_file_that_keeps_a_secret_becomes_private(machine: Machine) -> None:
    old = {"invoice-processor": {"command": "uv", "env": {"TEMPORAL_API_KEY": "secret"}}}
    file = machine.file(content=json.dumps({"mcpServers": old}))
    file.chmod(0o644)
    run()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("env", [None, [], "text", {}])
def test_variables_that_are_not_an_object_are_replaced(machine: Machine, env: object) -> None:
    old = {"invoice-processor": {"command": "uv", "env": env}}
    file = machine.file(content=json.dumps({"mcpServers": old}))
    run()
    assert "env" not in ours(file)


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_variable_of_spaces_is_left_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, empty: str
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", empty)
    run()
    assert "env" not in ours(machine.file())


@posix_only
def test_variable_that_is_not_text_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = machine.file(content="{}")
    monkeypatch.setenv("TEMPORAL_NAMESPACE", os.fsdecode(b"\xff"))
    assert run() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "isn't text" in line
    assert [file.read_text() for file in file.parent.iterdir()] == ["{}"]


@pytest.mark.parametrize("name", ["TEMPORAL_CONFIG_FILE", "TEMPORAL_TLS_CLIENT_CERT_PATH"])
def test_relative_paths_are_made_absolute(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "here/it.is")
    run()
    assert ours(machine.file())["env"] == {name: str(tmp_path / "here" / "it.is")}


def test_values_of_variables_are_not_printed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEMPORAL_API_KEY", "secret")
    run()
    output = capsys.readouterr().out
    assert "TEMPORAL_API_KEY" in output
    assert "secret" not in output


def test_other_content_stays_in_its_order(machine: Machine) -> None:
    file = machine.file(content=OTHERS)
    run()
    text = file.read_text(encoding="utf-8")
    config = json.loads(text)
    assert list(config) == ["théme", "mcpServers", "last"]
    assert list(config["mcpServers"]) == ["ours", "invoice-processor"]
    del config["mcpServers"]["invoice-processor"]
    assert config == json.loads(OTHERS)
    assert "théme" in text


NUMBERS: list[Any] = [
    *["0.12345678901234567890123", "-0", "-0.0", "1.10", "1E5", "1e-400", "12345678901234567890"],
    pytest.param("9" * 5000, id="5000 digits"),
]


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_stays_as_it_was_written(machine: Machine, number: str) -> None:
    old = f'{{"command": "uv", "env": {{"TEMPORAL_NAMESPACE": {number}}}}}'
    content = f'{{"a": [{number}], "mcpServers": {{"invoice-processor": {old}}}, "text": "1.10"}}'
    file = machine.file(content=content)
    for _ in range(2):
        assert run() == 0
        texts: dict[str, Any] = json.loads(
            file.read_text(), parse_float=lambda text: [text], parse_int=lambda text: [text]
        )
        assert (texts["a"], texts["text"]) == ([[number]], "1.10")
        env = texts["mcpServers"]["invoice-processor"]["env"]
        assert env == {"TEMPORAL_NAMESPACE": [number]}
    assert len(list(file.parent.iterdir())) == 2  # the second run changed nothing


def test_old_entry_is_replaced_in_its_place(machine: Machine) -> None:
    old = {"invoice-processor": {"command": "uv"}, "other": {}}
    file = machine.file(content=json.dumps({"mcpServers": old}))
    run()
    assert list(servers(file)) == ["invoice-processor", "other"]
    assert ours(file)["command"] == str(machine.uv)


def test_file_as_it_was_is_kept_beside_it(machine: Machine) -> None:
    file = machine.file(content=OTHERS)
    run()
    assert file.with_name("claude_desktop_config.json.bak").read_bytes() == OTHERS.encode()


def test_earlier_backup_is_not_overwritten(machine: Machine) -> None:
    file = machine.file(content=OTHERS)
    run()
    file.write_text("{}")
    run()
    assert file.with_name("claude_desktop_config.json.bak").read_bytes() == OTHERS.encode()
    assert file.with_name("claude_desktop_config.json.bak2").read_text() == "{}"


@posix_only
@pytest.mark.parametrize("target", ["missing", "same", "other"])
def test_a_symlink_in_the_backups_place_is_left_alone(
    machine: Machine, tmp_path: Path, target: str
) -> None:
    file = machine.file(content=OTHERS)
    elsewhere = tmp_path / "elsewhere"
    if target != "missing":
        elsewhere.write_bytes(OTHERS.encode() if target == "same" else b"{}")
        elsewhere.chmod(0o644)
    link = file.with_name(f"{file.name}.bak")
    link.symlink_to(elsewhere)
    before = elsewhere.exists() and (elsewhere.read_bytes(), elsewhere.stat().st_mode)
    run()
    backup = file.with_name(f"{file.name}.bak2")
    assert backup.read_bytes() == OTHERS.encode()
    assert not backup.is_symlink()
    assert link.is_symlink()
    assert before == (elsewhere.exists() and (elsewhere.read_bytes(), elsewhere.stat().st_mode))


def test_same_content_is_backed_up_once(machine: Machine) -> None:
    file = machine.file(content=OTHERS)
    for arguments in ([], ["--remove"], [], ["--remove"], []):
        run(*arguments)
    assert len(list(file.parent.glob("*.bak*"))) == 3  # as it was, with the entry, without it


def test_second_run_changes_nothing_and_says_so(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    file = machine.file(content=OTHERS)
    run()
    before = file.stat()
    capsys.readouterr()
    assert run() == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(list(file.parent.iterdir())) == 2  # the file and one backup


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{broken", "isn't valid JSON"),
        ("[]", "no object under mcpServers"),
        ('{"mcpServers": []}', "no object under mcpServers"),
        (r'{"mcpServers": {"invoice-processor": {}}, "theme": "\ud800"}', "lone surrogate"),
        ('{"theme": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"last": 1e999}', "1e999"),
        ('{"last": [NaN]}', "NaN"),
        ('{"mcpServers": {"ours": {"command": "x"}, "ours": {}}}', "'ours' twice"),
    ],
)
def test_unusable_file_is_refused_in_one_sentence(
    machine: Machine, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    file = machine.file(content=content)
    assert run() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(file) in line
    assert run("--remove") == 1
    assert [file.read_text() for file in file.parent.iterdir()] == [content]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("arguments", [[], ["--remove"]])
def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(
    machine: Machine, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    file = machine.file(content="")
    file.unlink()
    os.mkfifo(file)
    assert run(*arguments) == 1
    assert capsys.readouterr().err == f"{file} isn't a regular file; nothing was changed.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk_is_reported_with_the_file_and_leaves_no_partial_copy(machine: Machine) -> None:
    file = machine.file(content=OTHERS)
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    program = f"{limited}; import claude_desktop; sys.exit(claude_desktop.main([], 'linux'))"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"{file} can't be read or written: ")
    assert file.read_bytes() == OTHERS.encode()
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark_is_tolerated(machine: Machine, encoding: str) -> None:
    file = machine.file(content="")
    file.write_bytes(OTHERS.encode(encoding))
    assert run() == 0
    assert list(servers(file)) == ["ours", "invoice-processor"]
    assert not file.read_bytes().startswith(b"\xef\xbb\xbf")  # Claude Desktop wouldn't read it


def test_empty_file_is_an_empty_configuration(machine: Machine) -> None:
    file = machine.file(content="")
    assert run() == 0
    assert ours(file)


@pytest.mark.parametrize("mode", [0o600, 0o640])
@posix_only
def test_permissions_are_kept(machine: Machine, mode: int) -> None:
    file = machine.file(content="{}")
    file.chmod(mode)
    run()
    assert ours(file)
    assert file.stat().st_mode & 0o777 == mode


@posix_only
def test_new_file_is_private(machine: Machine) -> None:
    run()
    assert machine.file().stat().st_mode & 0o777 == 0o600


@posix_only
@pytest.mark.parametrize(
    "name", ["TEMPORAL_API_KEY", "TEMPORAL_TLS_CLIENT_KEY_DATA", "TEMPORAL_GRPC_META_AUTHORIZATION"]
)
def test_file_that_gets_a_secret_becomes_private(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "secret")
    file = machine.file(content="{}")
    file.chmod(0o644)
    run()
    assert ours(file)["env"] == {name: "secret"}
    assert file.stat().st_mode & 0o777 == 0o600


@posix_only
def test_backups_are_private(machine: Machine) -> None:
    file = machine.file(content="{}")
    file.chmod(0o644)
    earlier = file.with_name(f"{file.name}.bak")
    earlier.write_text("{}")
    earlier.chmod(0o644)
    run()
    run("--remove")
    backups = list(file.parent.glob("*.bak*"))
    assert len(backups) == 2
    assert {backup.stat().st_mode & 0o777 for backup in backups} == {0o600}


@posix_only
def test_symlink_stays_and_its_target_is_written(machine: Machine, tmp_path: Path) -> None:
    link = machine.file(content="{}")
    target = tmp_path / "dotfiles" / "claude.json"
    target.parent.mkdir()
    link.rename(target)
    link.symlink_to(target)
    run()
    assert link.is_symlink()
    assert ours(target)


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_failed_write_leaves_the_file_whole(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    file = machine.file(content=OTHERS)

    def full(path: Path, _: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, step, full)
    assert run() == 1
    assert "No space left on device" in capsys.readouterr().err
    assert file.read_bytes() == OTHERS.encode()
    assert {file.name for file in file.parent.iterdir()} == {file.name, f"{file.name}.bak"}


def test_absent_claude_desktop_is_reported(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert "Claude Desktop was not found there, but the file is ready" in capsys.readouterr().out
    assert ours(machine.file())


def test_output_names_the_file_and_the_next_step(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    file = machine.file(content="{}")
    run()
    output = capsys.readouterr().out
    assert str(file) in output
    assert "quit Claude Desktop fully" in output
    assert "not found" not in output


def test_print_shows_the_entry_and_changes_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--print") == 0
    shown = json.loads(capsys.readouterr().out)
    assert not machine.file().exists()
    run()
    assert shown == {"mcpServers": {"invoice-processor": ours(machine.file())}}


def test_remove_takes_out_our_entry_only(machine: Machine) -> None:
    file = machine.file(content=OTHERS)
    run()
    assert run("--remove") == 0
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(OTHERS)


@pytest.mark.parametrize("content", [None, "{}", OTHERS])
def test_remove_of_what_is_not_there_changes_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    file = machine.file(content=content)
    assert run("--remove") == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert file.exists() is (content is not None)
    assert content is None or file.read_bytes() == content.encode()


def test_remove_needs_no_uv(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    file = machine.file(content=OTHERS)
    run()
    monkeypatch.setenv("PATH", "")
    assert run("--remove") == 0
    assert "invoice-processor" not in servers(file)


def test_command_needs_only_the_settings_and_no_package(machine: Machine) -> None:
    machine.home.mkdir()
    for name in ("claude_desktop.py", "settings.py"):
        shutil.copy(ROOT / name, machine.home)
    command = [sys.executable, "-S", str(machine.home / "claude_desktop.py"), "--print"]
    subprocess.run(command, check=True, cwd=machine.home)


def test_tutorials_example_has_its_shape() -> None:
    example = json.loads((ROOT / "claude_desktop_config.json").read_text())
    project = "/ABSOLUTE/PATH/TO/invoice-processor"
    assert example == {
        "mcpServers": {
            "invoice-processor": {
                "command": "uv",
                "args": ["--directory", project, "run", "invoice_server.py"],
            }
        }
    }
