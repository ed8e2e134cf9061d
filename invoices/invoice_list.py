"""The answer of `list_invoices`, and the cursor that gives the rest of a list."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from invoices.answers import InvoiceStatus, message_first
from invoices.refusals import InvoiceError
from invoices.status import Moment, State
from invoices.wording import format_money

Which = State | Literal["all"]

Key = tuple[StrictInt, StrictInt, StrictInt, Annotated[str, Field(max_length=100)]]
"""Where a run is in the order of the open ones."""


def key_of(status: InvoiceStatus, run_id: str) -> Key:
    """Waiting ones first, the nearest deadline first; then the others, the latest first."""
    submitted = int(status.submitted_at.timestamp() * 1e6)
    if status.state != "waiting":
        return (1 if status.state == "paying" else 2, -submitted, 0, run_id)
    deadline = int(status.deadline.timestamp() * 1e6) if status.deadline else 10**18
    return (0, deadline, submitted, run_id)


class ListCursor(BaseModel):
    """Where a list goes on. It says so by what doesn't change: neither by a number nor by a page.

    So an invoice is neither left out nor repeated when others are submitted or end meanwhile. One
    that ends meanwhile may be listed again, among those that have ended.
    """

    model_config = ConfigDict(frozen=True)

    which: Which
    since: Moment | None = None
    """Of the open runs, those that started at this time or later are being listed,"""
    until: Moment | None = None
    """and before this. None if there is no such limit."""
    after: Key | None = None
    """The last one that was shown of these."""
    is_past_open: bool = False
    """Whether the open ones have all been shown."""
    closed_at: Moment | None = None
    """When the last one that was read had ended."""
    closed_runs: tuple[str, ...] = ()
    """The ids of those that had ended at that very time, and were read."""

    @classmethod
    def parse(cls, text: str, which: Which) -> Self:
        """Raises `InvoiceError` if the text isn't a cursor of this list."""
        try:
            cursor = cls.model_validate_json(urlsafe_b64decode(text.encode() + b"=="))
        except ValueError:  # that includes what isn't Base64
            raise InvoiceError(
                "This isn't a cursor that list_invoices gave. To begin with the first invoices,"
                " call it without a cursor."
            ) from None
        if cursor.which != which:
            raise InvoiceError(
                f"This cursor belongs to the list with the status {cursor.which}. Pass that status"
                " too, or call list_invoices without a cursor."
            )
        return cursor

    @classmethod
    def first(cls, which: Which) -> Self:
        """Where the list begins: with the open ones, unless it has only closed ones."""
        return cls(which=which, is_past_open=which not in ("all", "waiting", "paying"))

    def past(self, run_id: str, closed_at: datetime | None) -> Self:
        """The cursor after another closed run."""
        same = self.closed_runs if closed_at == self.closed_at else ()
        runs = (*same, run_id) if run_id not in same else same
        return self.model_copy(update={"closed_at": closed_at, "closed_runs": runs})

    def __str__(self) -> str:
        data = self.model_dump_json(exclude_defaults=True).encode()
        return urlsafe_b64encode(data).decode().rstrip("=")


class Sums:
    """Adds up the totals of invoices, by state and by currency."""

    def __init__(self) -> None:
        self.count = 0
        """Of the invoices, including those whose content is unreadable."""
        self.by_state: dict[State, dict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))

    def add(self, invoice: InvoiceStatus) -> None:
        self.count += 1
        if invoice.currency and invoice.total is not None:
            self.by_state[invoice.state][invoice.currency] += invoice.total


class InvoiceList(BaseModel):
    """The latest submission of each invoice. Those that wait come first, the nearest deadline
    first, then those that are being paid, then those that have ended, the last one first.
    """

    invoices: list[InvoiceStatus]
    not_shown: Annotated[int, Field(description="How many come after these.")]
    not_shown_may_differ: Annotated[
        bool,
        Field(
            description="Whether there may be fewer, since some of those that were counted may be"
            " earlier submissions or in a different state."
        ),
    ]
    next_cursor: Annotated[
        str | None,
        Field(description="Pass this as `cursor` to get those that come after these."),
    ] = None
    compared: Annotated[
        int | None,
        Field(
            description="If there are too many open invoices to compare all deadlines: how many"
            " were compared. Those that were submitted first are compared and listed first."
        ),
    ] = None
    count: Annotated[
        int | None, Field(description="How many there are in all. Missing if not all were read.")
    ] = None
    totals_by_state: Annotated[
        dict[State, dict[str, Decimal]],
        Field(
            description="Sums by state, then by currency: of all `count` invoices, or of the ones"
            " shown here if `count` is missing."
        ),
    ]
    message: Annotated[str | None, Field(description="All of this as text.")] = None

    @classmethod
    def of(
        cls,
        invoices: list[InvoiceStatus],
        all_of_them: Sums | None = None,
        *,
        not_shown: int = 0,
        exact: bool = True,
        next_cursor: ListCursor | None = None,
        compared: int | None = None,
    ) -> Self:
        """`all_of_them` has the sums where all were read."""
        sums = all_of_them or Sums()
        if all_of_them is None:
            for invoice in invoices:
                sums.add(invoice)
        return cls(
            invoices=invoices,
            not_shown=not_shown,
            not_shown_may_differ=not_shown > 0 and not exact,
            next_cursor=str(next_cursor) if next_cursor else None,
            compared=compared,
            count=all_of_them.count if all_of_them else None,
            totals_by_state=sums.by_state,
        )

    def to_structured(self) -> dict[str, Any]:
        """The structured content, without empty fields and without fields for internal use."""
        content = self.model_dump(mode="json", exclude_none=True, exclude={"invoices"})
        invoices = [invoice.to_structured() for invoice in self.invoices]
        return message_first({"invoices": invoices, **content})

    def to_text(self, which: Which) -> str:
        """The answer of `list_invoices`; `which` is the state asked for, or `all`."""
        one, many = _NOUNS.get(which, (f"{which} invoice", f"{which} invoices"))
        if not self.invoices and not self.next_cursor:
            return f"There are no {many}." if self.count == 0 else f"There are no more {many}."
        lines = [f"{self._head(one, many)}, {_ORDER.get(which, 'the last to end first')}:"]
        if self.compared is not None:
            lines[0] = (
                f"{lines[0][:-1]} of {self.compared:,}. There are too many to compare all, so those"
                " that were submitted first are compared and listed first:"
            )
        lines += [f"- {invoice.to_line()}" for invoice in self.invoices]
        if self.totals_by_state:
            lines.append(self._sums(which))
        if self.next_cursor:
            upper = "up to " if self.not_shown_may_differ else ""
            lines.append(
                f"Not shown here: {upper}{self.not_shown:,} more. To see them, call list_invoices"
                f" with status {which} and cursor {self.next_cursor}"
            )
        return "\n".join(lines)

    def _head(self, one: str, many: str) -> str:
        shown = len(self.invoices)
        count = shown if self.count is None else self.count
        noun = f"{count:,} {one if count == 1 else many}"
        return noun if count == shown else f"{shown} of {noun}"

    def _sums(self, which: Which) -> str:
        if self.count is None:
            whose = "those shown here"
        else:
            whose = f"all {self.count:,}" if self.count > 1 else "all"
        sums = [
            _amounts(amounts)
            if len(self.totals_by_state) == 1 and state == which
            else f"{state.replace('_', ' ')} {_amounts(amounts)}"
            for state, amounts in self.totals_by_state.items()
        ]
        return f"Sum of {whose}: {'; '.join(sums)}."


_NOUNS: dict[Which, tuple[str, str]] = {
    "all": ("invoice", "invoices"),
    "paying": ("invoice being paid", "invoices being paid"),
    "timed_out": ("timed-out invoice", "timed-out invoices"),
}
_ORDER: dict[Which, str] = {
    "all": "those that wait first, the nearest deadline first",
    "waiting": "the nearest deadline first",
    "paying": "the last one submitted first",
}


def _amounts(amounts: dict[str, Decimal]) -> str:
    return " and ".join(format_money(amount, currency) for currency, amount in amounts.items())
