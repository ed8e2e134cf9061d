"""What an invoice is, where it stands, and the words for both. Knows no Temporal, no MCP."""
