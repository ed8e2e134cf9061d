"""What the workflow and its activities send each other, as JSON.

The tutorial's workflow sends less, and other clients may send anything: each activity validates,
and its failure ends the run. The workflow doesn't: an error there would only fail its tasks, again
and again.
"""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from invoices.invoice import FromOthers, Invoice, LineItem, storable
from invoices.status import RequiredApprovals
from invoices.wording import format_money, sanitized_quote

MAX_TERM = 1000
"""Characters of a customer or payment method. Newer runs have 255 at most; those from before 1.1
may have any number, and no provider takes such a one."""
MAX_AMOUNT = 40
"""Characters of an amount."""


def _exact(value: Any) -> Decimal:
    text = str(value)
    try:
        # Bounded twice, since making a number of a long text takes time without end, and so does
        # making a whole number of 1e999999.
        if len(text) <= MAX_AMOUNT and 0 <= (amount := Decimal(text)) < 10**13:
            return amount
    except InvalidOperation:
        pass
    raise PydanticCustomError("amount", "must be a number, not negative")


Text = Annotated[str, BeforeValidator(str), AfterValidator(storable)]
Currency = Annotated[
    str,
    Field(pattern="^[A-Z]{3}$"),
    BeforeValidator(lambda value: "USD" if value is None else value),
]
OptionalText = Annotated[
    Text | None, BeforeValidator(lambda value: None if value is None else str(value))
]
Name = Annotated[str, AfterValidator(storable)]
Amount = Annotated[Decimal, BeforeValidator(_exact)]


class LineToPay(FromOthers):
    """What a line of an invoice says to whoever pays it."""

    item: Text = "Unknown"
    amount: Amount = Decimal("0.0")


class PricedLine(LineToPay):
    """A line to pay with its currency."""

    currency: Currency = "USD"

    def __str__(self) -> str:
        return f"{sanitized_quote(self.item)} for {format_money(self.amount, self.currency)}"


class Terms(FromOthers):
    """What an invoice says for all of its lines, and what its run is bound to."""

    currency: Currency = "USD"
    customer: OptionalText = None
    payment_method: OptionalText = None
    ledger: OptionalText = None
    """The id of the payment ledger that the run began with."""
    bound_to_gateway: OptionalText = None
    """The name of the payment gateway that the run began with.

    Not `gateway`: 1.1 sends an activity all fields of a line, of which one may have that name.
    """

    @classmethod
    def of(cls, invoice: Invoice, ledger: str | None, gateway: str | None) -> "Terms":
        """No other fields of the invoice, which may be of any size: what is sent to an activity is
        escaped to ASCII, and more than 2 MiB of that is never sent.
        """
        customer, payment_method = (
            None if value is None or len(text := str(value)) > MAX_TERM else text
            for value in (invoice.customer, invoice.payment_method)
        )
        return cls.model_construct(
            currency=invoice.currency,
            customer=customer,
            payment_method=payment_method,
            ledger=ledger,
            bound_to_gateway=gateway,
        )


class PaymentRequest(PricedLine, Terms):
    """What `process_payment` and `payment_outcome` take."""

    ledger_attempt: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Of the ledger's attempts to pay the line, the one that this run may make. None from a run
    that a worker before 1.2 told what was paid.

    Not `attempt`, as with `bound_to_gateway`.
    """

    @classmethod
    def of_line(cls, line: LineItem, terms: Terms, attempt: int | None) -> "PaymentRequest":
        return cls.model_construct(
            item=line.item, amount=line.amount, ledger_attempt=attempt, **terms.model_dump()
        )

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class LedgerQuestion(Terms):
    """What `payments_made` takes: an invoice as far as payments know it."""

    id: str
    lines: list[LineToPay]

    @classmethod
    def about(cls, invoice: Invoice, terms: Terms) -> "LedgerQuestion":
        lines = [
            LineToPay.model_construct(item=line.item, amount=line.amount) for line in invoice.lines
        ]
        return cls.model_construct(id=invoice.id, lines=lines, **terms.model_dump())

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


class PaidLine(PricedLine):
    """A line that is paid according to the ledger."""

    item: str = "Unknown"
    """Version 1.0 also paid for what isn't a `Text`."""
    line: Annotated[int, Field(ge=1)]
    """Its number in the invoice, counted from 1."""


class LedgerAnswer(FromOthers):
    """What `payments_made` answers: the worker's ledger and gateway, and what is paid.

    Without `ledger` and `lines` where the ledger was away at the run's first question. With
    `required_approvals` alone where the invoice belongs to a different ledger or gateway.
    """

    ledger: Name | None = None
    gateway: Name | None = None
    """None from a worker before 1.2."""
    lines: list[PaidLine] | None = None
    declined: dict[int, int] | None = None
    """By its number, how many attempts to pay a line were declined, where there are any. None from
    a worker before 1.2."""
    notify: bool = False
    """Whether this worker sends notices."""
    required_approvals: RequiredApprovals | None = None
    """What this worker's limit requires for the invoice, if anything."""

    @property
    def is_of_another(self) -> bool:
        """Whether the invoice belongs to a different ledger or gateway from this worker's."""
        return self.gateway is None and self.lines is None

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_defaults=True)
