"""Connects to a Temporal Service, or runs one. Nothing in this package depends on invoices."""
