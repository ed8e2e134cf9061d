"""Puts the MCP server into Claude Desktop's configuration: `uv run claude_desktop.py`.

Everything else in the file stays as it is, the file as it was is kept beside it, and a second run
changes nothing. `--print` shows the entry, `--remove` takes it out again.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

NAME = "invoice-processor"


class ConfigError(Exception):
    """What is wrong with the configuration or this machine, in words for a person."""


def main(arguments: Sequence[str] | None = None, platform: str = sys.platform) -> int:
    """Does what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Adds the invoice tools to Claude Desktop's configuration."
        " Quit Claude Desktop first: it writes that file too."
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print", action="store_true", help="show the entry, change nothing")
    action.add_argument("--remove", action="store_true", help="take the entry out again")
    options = parser.parse_args(arguments)
    try:
        wanted = None if options.remove else entry()
        if options.print:
            print(json.dumps({"mcpServers": {NAME: wanted}}, indent=2))
        else:
            install(wanted, config_files(platform))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename} can't be read or written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def config_files(platform: str) -> list[Path]:
    """Where Claude Desktop has its configuration on this machine, there or not."""
    home = Path.home()
    if platform == "darwin":
        folders = [home / "Library" / "Application Support"]
    elif platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
        roaming = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
        # Claude Desktop from the Microsoft Store sees its own copy of the second.
        store = local / "Packages" / "Claude_pzs8sxrjxfjjc" / "LocalCache" / "Roaming"
        there = [folder for folder in (store, roaming) if (folder / "Claude").is_dir()]
        folders = there or [roaming]
    else:
        folders = [Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")]
    return [folder / "Claude" / "claude_desktop_config.json" for folder in folders]


def entry() -> dict[str, Any]:
    """How Claude Desktop starts the server: by absolute paths, since its `PATH` is a poor one.

    It passes on next to nothing of the environment either, so the entry has the variables of this
    one that concern the server.

    Raises:
        ConfigError: there is no uv.
    """
    # `uv run` sets UV, to a path that may not outlive uv's next version: so it comes second.
    uv = shutil.which("uv") or os.environ.get("UV")
    if not uv:
        raise ConfigError(
            "uv isn't on PATH: install it (macOS: brew install uv; Windows: winget install"
            " astral-sh.uv; Linux: docs.astral.sh/uv has the command) and run this again."
        )
    project = Path(__file__).absolute().parent
    wanted: dict[str, Any] = {
        "command": str(Path(uv).absolute()),
        "args": ["--directory", str(project), "run", "invoice_server.py"],
    }
    if env := _environment():
        wanted["env"] = env
    return wanted


def _environment() -> dict[str, str]:
    # The server runs in another directory than this command.
    return {
        name: str(Path(value).expanduser().absolute())
        if name.endswith(("_FILE", "_PATH", "_DIR"))
        else value
        for name, value in sorted(os.environ.items())
        if name.startswith(("TEMPORAL_", "INVOICE_")) and value
    }


def install(wanted: dict[str, Any] | None, files: list[Path]) -> None:
    """Puts `wanted` into every file, or takes the entry out if it is None, and tells about it.

    Raises:
        ConfigError: one of the files isn't such a configuration; then none was changed.
        OSError: a file can't be read or written.
    """
    changed = False
    for file, text in [(file, _new_text(file, wanted)) for file in files]:
        if text is None:
            what = "has this entry already" if wanted else f"has no entry {NAME}"
            print(f"{file} {what}; nothing was changed.")
            continue
        changed = True
        found = file.parent.is_dir()
        backup = _back_up(file) if file.exists() else None
        _write(file, text)
        print(f"{file}: {NAME} was {'added' if wanted else 'removed'}.")
        if backup:
            print(f"The file as it was: {backup}")
        if not found:
            print("Claude Desktop was not found there, but the file is ready for it.")
    if wanted and changed:
        passed_on = ", ".join(wanted.get("env", ())) or "none is set here"
        print(f"TEMPORAL_* and INVOICE_* variables the server gets: {passed_on}.")
    if changed:
        print(
            "Next: quit Claude Desktop fully (closing its window isn't enough) and start it again."
            " It writes this file too: if it was running just now, run this once more after"
            " quitting it."
        )


def _new_text(file: Path, wanted: dict[str, Any] | None) -> str | None:
    """The file's text with the entry as wanted; None if it is so already."""
    try:
        # Python finds out the encoding: Windows tools write UTF-8 with a mark, or UTF-16.
        config = json.loads(file.read_bytes() or b"{}")
    except FileNotFoundError:
        config = {}
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON ({error}); nothing was changed.") from error
    servers = config.setdefault("mcpServers", {}) if isinstance(config, dict) else None
    if not isinstance(servers, dict):
        raise ConfigError(f"{file} has no object under mcpServers; nothing was changed.")
    if servers.get(NAME) == wanted:
        return None
    if wanted:
        servers[NAME] = wanted
    else:
        del servers[NAME]
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _back_up(file: Path) -> Path:
    """A copy beside the file; earlier ones with other content stay."""
    number = 1
    backup = file.with_name(f"{file.name}.bak")
    while backup.exists() and backup.read_bytes() != file.read_bytes():
        number += 1
        backup = file.with_name(f"{file.name}.bak{number}")
    if not backup.exists():
        shutil.copy2(file, backup)
    return backup


def _write(file: Path, text: str) -> None:
    """Replaces the file at once and as a whole; its permissions stay, and so does a symlink."""
    target = file.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as folder:
        new = Path(folder) / target.name
        new.touch(mode=0o600)  # the entry may have an API key
        new.write_bytes(text.encode())
        if target.exists():
            shutil.copymode(target, new)
        new.replace(target)


if __name__ == "__main__":
    sys.exit(main())
