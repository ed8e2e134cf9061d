"""Downloads the Temporal CLI: python download_cli.py FOLDER

The SDK downloads it only to start a server, and the server writes a banner to standard output. So
this runs in a process of its own, which can also be killed if it hangs.
"""

import asyncio
import sys

from temporalio.testing import WorkflowEnvironment


async def main(folder: str) -> None:
    async with await WorkflowEnvironment.start_local(download_dest_dir=folder):
        pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
