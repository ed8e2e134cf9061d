"""`worker.py` with its embedded service on the given ports, because 7233 may be in use."""

import os
import sys

import worker
from temporal_service import connection

if __name__ == "__main__":
    connection.PORT, connection.UI_PORT = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    os._exit(worker.main())
