"""Which decisions on an invoice count, and whether two people have to approve it."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Self

from invoices.status import AWAITING_APPROVAL, Decision, RequiredApprovals, describe_name

ANY_CURRENCY = "*"


def person_of(name: str | None) -> str:
    """Who a name such as `ann@desk1` stands for: the login, also on another machine.

    Empty if the name has no login, and then it is nobody's.
    """
    login = unicodedata.normalize("NFKC", name or "").partition("@")[0]
    return unicodedata.normalize("NFKC", login.lower()).strip()


@dataclass(frozen=True)
class TwoPeopleRule:
    """Which invoices two people have to approve."""

    limits: Mapping[str, Decimal] = field(default_factory=dict)
    """By currency, the total above which it is so. `*` is for all other currencies, for which the
    limit is otherwise 0. Without any limit, one person is always enough.
    """
    submitter_may_approve: bool = True
    """Whether one of the two may be who submitted the invoice."""

    @classmethod
    def parse(cls, limits: str, submitter_may_approve: bool = True) -> Self:
        """Reads `1000.00`, or limits by currency such as `USD=1000,EUR=900,*=1000`.

        Raises:
            ValueError: the text is anything else.
        """
        found: dict[str, Decimal] = {}
        for part in limits.split(",") if limits else ():
            match = re.fullmatch(
                r"(?:([A-Z]{3}|\*)=)?([0-9]{1,13}(?:\.[0-9]{1,2})?)", part.strip(), re.ASCII
            )
            if match is None or (currency := match[1] or ANY_CURRENCY) in found:
                raise ValueError("must be an amount, or amounts by currency")
            found[currency] = Decimal(match[2])
        return cls(found, submitter_may_approve)

    def required_for(self, total: Decimal, currency: str) -> RequiredApprovals | None:
        """What an invoice with this total requires; None if one approval is enough."""
        limit = self.limits.get(currency, self.limits.get(ANY_CURRENCY, Decimal(0)))
        if not self.limits or total <= limit:
            return None
        return "two_people" if self.submitter_may_approve else "two_other_people"


@dataclass(frozen=True)
class Judgement:
    """What the decisions on an invoice mean together."""

    decision: Decision | None = None
    """The one that decides; None if the invoice still waits."""
    first: Decision | None = None
    """The first of two people's approvals."""
    notes: Sequence[str] = ()

    @property
    def approved(self) -> bool | None:
        return self.decision.approved if self.decision else None

    @property
    def waiting_status(self) -> str:
        """The status text of an invoice that waits."""
        notes = list(self.notes)
        if self.first:
            by = describe_name(self.first.by)
            notes.insert(0, f"approved by {by}, needs a second person")
        return " - ".join(filter(None, [AWAITING_APPROVAL, "; ".join(notes)]))


def judge(
    decisions: Sequence[Decision],
    required: RequiredApprovals | None = None,
    submitted_by: str | None = None,
) -> Judgement:
    """Judges decisions in the order in which they were made.

    The first decision stands. If two people are required, a rejection by anybody stands, and an
    approval only once another person has approved before.
    """
    first: Decision | None = None
    notes: list[str] = []
    for decision in decisions:
        if not (required and decision.approved):
            return Judgement(decision, first)
        person = person_of(decision.by)
        if not person:
            notes.append("an approval without a name isn't counted")
        elif required == "two_other_people" and person == person_of(submitted_by):
            by = describe_name(decision.by)
            notes.append(f"the approval by {by}, who submitted it, isn't counted")
        elif first is None:
            first = decision
        elif person != person_of(first.by):
            return Judgement(decision, first)
    return Judgement(None, first, tuple(dict.fromkeys(notes)))


def is_same_person(name: str | None, other: str | None) -> bool:
    """Whether two names are of one person. A name without a login is nobody's."""
    return bool(person_of(name)) and person_of(name) == person_of(other)


def can_matter(decision: Decision, earlier: Sequence[Decision]) -> bool:
    """Whether a decision can change what the earlier ones mean, by whatever rule.

    Few can, however many other clients send: not the same person's again, and none once all is
    settled.
    """
    known = {(one.approved, person_of(one.by)) for one in earlier}
    return not is_settled(earlier) and (decision.approved, person_of(decision.by)) not in known


def is_settled(decisions: Sequence[Decision]) -> bool:
    """Whether no other decision can matter, by whatever rule: after a rejection or the approvals of
    three people, of whom one at most has submitted the invoice.
    """
    approvers = {person_of(one.by) for one in decisions if one.approved} - {""}
    return len(approvers) > 2 or any(not one.approved for one in decisions)


def that_matter(decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions that can matter; all together mean the same."""
    kept: list[Decision] = []
    for decision in decisions:
        if can_matter(decision, kept):
            kept.append(decision)
    return kept
