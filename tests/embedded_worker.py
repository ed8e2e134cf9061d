"""`worker.py` with its embedded service on the ports given, since 7233 may be in use."""

import os
import sys

import temporal_service
import worker

if __name__ == "__main__":
    temporal_service.PORT, temporal_service.UI_PORT = map(int, sys.argv[1:])
    os._exit(worker.main())
