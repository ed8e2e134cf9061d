"""The MCP server with a shorter time limit for a host to load a card: a second."""

import invoice_server
from approval import card

card.LOADING_SECONDS = 1

if __name__ == "__main__":
    invoice_server.main()
