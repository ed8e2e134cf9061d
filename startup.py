"""What the worker finds out at its start: where its data lies, and what keeps it from starting."""

import os
from pathlib import Path


class StartupError(Exception):
    """What is wrong at the start, in words for the person who can mend it."""


def data_directory(*, make: bool = True) -> Path:
    """`INVOICE_DATA_DIR`, by default `data` beside the code; made private to the user if missing.

    With `make=False` a missing one stays missing, for whoever only reads.

    Raises:
        StartupError: it can't be made, or isn't a directory.
    """
    configured = os.environ.get("INVOICE_DATA_DIR")
    directory = Path(configured) if configured else Path(__file__).parent / "data"
    try:
        directory = directory.expanduser().resolve()
        if make:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home for `~`
        raise StartupError(f"The data directory can't be used: {error}.") from error
    return directory
