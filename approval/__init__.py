"""How a person says yes to paying an invoice. Nothing here knows Temporal."""
