"""The MCP server of another person, as on another desk."""

import invoice_server
from temporal_service import connection

connection.whoami = lambda: "second@another-desk"

if __name__ == "__main__":
    invoice_server.main()
