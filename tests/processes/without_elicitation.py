"""The MCP server for a host that shows cards and doesn't ask.

It removes the host's declaration that it can ask.
"""

import json
import subprocess
import sys
from pathlib import Path

CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"

root = Path(__file__).parents[2]
server = subprocess.Popen(
    [sys.executable, str(root / "invoice_server.py")], stdin=subprocess.PIPE, text=True
)
assert server.stdin
for line in sys.stdin:
    message = json.loads(line)
    params = message.get("params", {})
    for capabilities in (params.get("capabilities"), params.get("_meta", {}).get(CAPABILITIES)):
        if capabilities:
            capabilities.pop("elicitation", None)
    server.stdin.write(json.dumps(message) + "\n")
    server.stdin.flush()
server.stdin.close()
server.wait()
