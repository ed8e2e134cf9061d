"""Downloads the Temporal CLI: python download_cli.py FOLDER

The SDK downloads it only in order to start a server, which writes a banner to standard output; so
this runs in a process of its own, which can also be ended.
"""

import asyncio
import sys

from temporalio.testing import WorkflowEnvironment


async def main(folder: str) -> None:
    async with await WorkflowEnvironment.start_local(download_dest_dir=folder):
        pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
