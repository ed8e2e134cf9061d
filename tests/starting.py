"""Starts that end at once."""

import asyncio
import sys

from support import (
    ROOT,
    environment,
)


async def refused(*command: str, stdout: int = asyncio.subprocess.PIPE, **env: str) -> str:
    """The one line a worker says that ends at once with exit code 1."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(command or (str(ROOT / "worker.py"),)),
        env=environment("", PYTHONPATH=str(ROOT)) | env,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert process.returncode == 1
    assert not output
    [line] = [line for line in errors.decode().splitlines() if " INFO " not in line]
    return line
