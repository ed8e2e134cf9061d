"""Paying each line of an invoice once, through any provider, on any number of machines."""
