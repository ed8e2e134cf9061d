"""How a person approves an invoice. Nothing here uses Temporal."""
