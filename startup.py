"""What the worker finds out at its start: where its data lies, and what keeps it from starting."""

from pathlib import Path

from settings import read_setting


class StartupError(Exception):
    """What is wrong at the start, in words for the person who can mend it."""


def data_directory(*, make: bool = True) -> Path:
    """`INVOICE_DATA_DIR`, by default `data` beside the code; made private to the user if missing.

    With `make=False` a missing one stays missing, for whoever only reads.

    Raises:
        StartupError: it can't be made, or isn't a directory.
    """
    try:
        directory = Path(read_setting("INVOICE_DATA_DIR")).expanduser().resolve()
        if make:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home for `~`
        raise StartupError(f"The data directory can't be used: {error}.") from error
    return directory
