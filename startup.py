"""The data directory, and the error that keeps a program from starting."""

import re
from pathlib import Path

from settings import read_setting


class StartupError(Exception):
    """Tells a person why the program can't start, and what to do about it."""


def data_directory(*, make: bool = True) -> Path:
    """`INVOICE_DATA_DIR`, by default `data` next to the code.

    Args:
        make: create the directory, readable only by this user, if it doesn't exist.

    Raises:
        StartupError: it can't be created, or isn't a directory.
    """
    try:
        directory = Path(read_setting("INVOICE_DATA_DIR")).expanduser().resolve()
        if make:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: `~` without a home directory
        raise StartupError(f"The data directory can't be used: {error}.") from error
    return directory


def is_web_address(url: str) -> bool:
    """Whether `url` is an http or https address with a host for the client that will use it."""
    import httpx2  # only here, because the MCP server doesn't need it

    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:  # its text may quote a secret
        return False
    # A blank, for example, would become part of the host's name, as %20.
    is_host = re.fullmatch(rb"[\w.-]+|[\w.:%-]*:[\w.:%-]*", parsed.raw_host)
    return parsed.scheme in {"http", "https"} and bool(is_host) and (parsed.port or 0) < 2**16
