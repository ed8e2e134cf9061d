"""What answers say, without a service."""

from invoices.answers import InvoiceList


def test_a_state_without_invoices_is_told() -> None:
    nothing = InvoiceList.of([], not_shown=0, exact=True)
    assert nothing.to_text("timed_out") == "There are no timed out invoices."
