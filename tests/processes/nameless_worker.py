"""`worker.py` on a machine without a name server: looking up `hook.invalid` never ends."""

import os
import socket
import threading
from typing import Any

import worker
from startup import data_directory

look_up = socket.getaddrinfo


def hanging(host: Any, *arguments: Any, **more: Any) -> Any:
    if host in ("hook.invalid", b"hook.invalid"):
        (data_directory() / "looking-up").touch()
        threading.Event().wait()
    return look_up(host, *arguments, **more)


if __name__ == "__main__":
    socket.getaddrinfo = hanging
    os._exit(worker.main())  # worker.py says why
