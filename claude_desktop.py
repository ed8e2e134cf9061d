"""Puts the MCP server into Claude Desktop's configuration: `uv run claude_desktop.py`.

Everything else in the file stays as it is, the file as it was is kept beside it, and a second run
changes nothing. Variables that the entry has and this shell doesn't set stay in it. `--print` shows
the entry, `--remove` takes it out again, with its variables.
"""

import argparse
import json
import math
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from settings import environment, find_setting

NAME = "invoice-processor"
AS_WRITTEN = f"number {uuid4().hex} "
"""Marks the text of a number until it is written back. Python's own numbers would lose digits."""


class ConfigError(Exception):
    """What is wrong with the configuration or this machine, in words for a person."""


def main(arguments: Sequence[str] | None = None, platform: str = sys.platform) -> int:
    """Does what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Adds the invoice tools to Claude Desktop's configuration."
        " Quit Claude Desktop first: it writes that file too. The entry gets the variables of this"
        " shell that the MCP server reads, and keeps those that it has and this shell doesn't set;"
        " to drop one of them, run this with --remove first."
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print", action="store_true", help="show a new entry, change nothing")
    action.add_argument(
        "--remove", action="store_true", help="take the entry out again, with its variables"
    )
    options = parser.parse_args(arguments)
    try:
        new_entry = None if options.remove else entry()
        if options.print:
            print(json.dumps({"mcpServers": {NAME: new_entry}}, indent=2))
        else:
            install(new_entry, config_files(platform))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename} can't be read or written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def config_files(platform: str) -> list[Path]:
    """Claude Desktop's configuration files on this machine, whether or not they exist."""
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
    one that the server reads.

    Raises:
        ConfigError: there is no uv, or a path or a variable isn't text.
    """
    # `uv run` sets UV, to a path that may not outlive uv's next version: so it comes second.
    uv = shutil.which("uv") or os.environ.get("UV")
    if not uv:
        raise ConfigError(
            "uv isn't on PATH: install it (macOS: brew install uv; Windows: winget install"
            " astral-sh.uv; Linux: docs.astral.sh/uv has the command) and run this again."
        )
    project = Path(__file__).absolute().parent
    new_entry: dict[str, Any] = {
        "command": str(Path(uv).absolute()),
        "args": ["--directory", str(project), "run", "invoice_server.py"],
    }
    if env := _environment():
        new_entry["env"] = env
    try:
        json.dumps(new_entry, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            "A path of uv or of this project, or a TEMPORAL_* variable, isn't text in UTF-8;"
            " change it and run this again."
        ) from error
    return new_entry


def _environment() -> dict[str, str]:
    found = {}
    for name, value in sorted(environment().items()):
        setting = find_setting(name)
        if setting and "server" in setting.readers and value.strip():
            # The server runs in another directory than this command.
            found[name] = str(Path(value).expanduser().absolute()) if setting.is_path else value
    return found


def _is_secret(name: str) -> bool:
    setting = find_setting(name)
    return setting is not None and setting.is_secret


def install(new_entry: dict[str, Any] | None, files: list[Path]) -> None:
    """Puts `new_entry` into every file, or removes the entry if it is None, and prints the result.

    The variables of an entry that is there stay, unless `new_entry` has others for them.

    Raises:
        ConfigError: one of the files isn't such a configuration; then none was changed.
        OSError: a file can't be read or written.
    """
    changed = False
    for file, text, env in [(file, *_new_text(file, new_entry)) for file in files]:
        if text is None:
            what = "has this entry already" if new_entry else f"has no entry {NAME}"
            print(f"{file} {what}; nothing was changed.")
        else:
            changed = True
            found = file.parent.is_dir()
            try:
                backup = _back_up(file) if file.exists() else None
                _write(file, text, private=any(map(_is_secret, env)))
            except OSError as error:
                error.filename = error.filename or file  # a write to a full disk has none
                raise
            print(f"{file}: {NAME} was {'added' if new_entry else 'removed'}.")
            if backup:
                print(f"The file as it was: {backup}")
            if not found:
                print("Claude Desktop was not found there, but the file is ready for it.")
        if new_entry:
            print(f"Variables the server gets: {', '.join(env) or 'none is set here'}.")
            if kept := [name for name in env if name not in new_entry.get("env", ())]:
                print(
                    f"Of these the entry had before, and this shell doesn't set: {', '.join(kept)}."
                    " To drop one, run this with --remove first."
                )
    if changed:
        print(
            "Next: quit Claude Desktop fully (closing its window isn't enough) and start it again."
            " It writes this file too: if it was running just now, run this once more after"
            " quitting it."
        )


def _new_text(file: Path, new_entry: dict[str, Any] | None) -> tuple[bytes | None, dict[str, Any]]:
    """Returns the file's new text, None if nothing would change, and the entry's variables."""
    try:
        config = _parsed(file)
        servers = config.setdefault("mcpServers", {}) if isinstance(config, dict) else None
        if not isinstance(servers, dict):
            raise ConfigError(f"{file} has no object under mcpServers; nothing was changed.")
        old = servers.get(NAME)
        env = _variables(old) | _variables(new_entry) if new_entry else {}
        new = {**new_entry, "env": env} if new_entry and env else new_entry
        if old == new:
            return None, env
        if new:
            servers[NAME] = new
        else:
            del servers[NAME]
        text = json.dumps(config, indent=2, ensure_ascii=False)
        return (re.sub(f'"{AS_WRITTEN}([^"]*)"', r"\1", text) + "\n").encode(), env
    except RecursionError as error:
        raise ConfigError(f"{file} is nested too deeply; nothing was changed.") from error
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{file} has half a character (a lone surrogate); nothing was changed."
        ) from error


def _variables(server: object) -> dict[str, Any]:
    env = server.get("env") if isinstance(server, dict) else None
    return env if isinstance(env, dict) else {}


def _parsed(file: Path) -> Any:
    """The file's value if it can be written back without loss; an empty object without a file."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise ConfigError(f"{file} has {name!r} twice in one object; nothing was changed.")
        return found

    def finite(text: str) -> str:
        if not math.isfinite(float(text)):
            raise ConfigError(f"{file} has {text} for a number; nothing was changed.")
        return AS_WRITTEN + text

    if file.exists() and not file.is_file():  # reading a pipe would never end
        raise ConfigError(f"{file} isn't a regular file; nothing was changed.")
    try:
        # Python finds out the encoding: Windows tools write UTF-8 with a mark, or UTF-16.
        return json.loads(
            file.read_bytes() or b"{}",
            object_pairs_hook=unique,
            parse_float=finite,
            parse_int=AS_WRITTEN.__add__,
            parse_constant=finite,
        )
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{file} isn't valid JSON ({error}); nothing was changed.") from error


def _back_up(file: Path) -> Path:
    """A copy beside the file, for its owner alone; earlier ones with other content stay."""
    number = 1
    backup = file.with_name(f"{file.name}.bak")
    # A symlink may lead anywhere, and to nowhere.
    while os.path.lexists(backup) and not _is_copy(backup, file):
        number += 1
        backup = file.with_name(f"{file.name}.bak{number}")
    if not backup.exists():
        backup.touch(mode=0o600)
        try:
            shutil.copyfile(file, backup)
        except OSError:  # as on a full disk
            backup.unlink()
            raise
    backup.chmod(0o600)  # one of an earlier version has the permissions that the file had
    return backup


def _is_copy(backup: Path, file: Path) -> bool:
    is_file = backup.is_file() and not backup.is_symlink()
    return is_file and backup.read_bytes() == file.read_bytes()


def _write(file: Path, text: bytes, private: bool) -> None:
    """Replaces the file at once and as a whole; a symlink stays, and so do permissions.

    Args:
        private: make it readable by its owner alone.
    """
    target = file.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as folder:
        new = Path(folder) / target.name
        new.touch(mode=0o600)
        new.write_bytes(text)
        if target.exists() and not private:
            shutil.copymode(target, new)
        new.replace(target)


if __name__ == "__main__":
    sys.exit(main())
