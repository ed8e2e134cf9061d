"""Reaching a Temporal Service, or running one. Nothing here knows invoices."""
