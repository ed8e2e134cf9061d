"""Which decisions count, and when two people have approved."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import activities
from invoices.approvals import TwoPeopleRule, judge, person_of, that_matter
from invoices.status import Decision, RequiredApprovals
from startup import StartupError

NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)


def decisions(*texts: str) -> list[Decision]:
    """`+ann@desk1` approves, `-ann@desk1` rejects, `+` has no name."""
    return [Decision(approved=text[0] == "+", by=text[1:] or None, at=NOON) for text in texts]


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("ann@desk1", "ann"),
        ("ANN@desk2", "ann"),
        (" Ann ", "ann"),
        ("ａｎｎ＠desk1", "ann"),
        ("ann@a@b", "ann"),
        ("@desk1", ""),
        ("  @desk1", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_login_is_the_person(name: str | None, person: str) -> None:
    assert person_of(name) == person


TWO: RequiredApprovals = "two_people"
OTHERS: RequiredApprovals = "two_other_people"


@pytest.mark.parametrize(
    ("required", "made", "first", "decided_by"),
    [
        # One approval is enough: the first decision stands, with or without a name.
        (None, [], None, None),
        (None, ["+"], None, "+"),
        (None, ["+ann@desk1", "-bob@desk2"], None, "+ann@desk1"),
        (None, ["-ann@desk1", "+bob@desk2"], None, "-ann@desk1"),
        # Two people.
        (TWO, ["+ann@desk1"], "ann@desk1", None),
        (TWO, ["+ann@desk1", "+bob@desk1"], "ann@desk1", "+bob@desk1"),
        (TWO, ["+ann@desk1", "+ann@desk1", "+Ann@desk2", "+ａｎｎ@desk3"], "ann@desk1", None),
        (TWO, ["+ann@desk1", "+ann@desk2", "+bob@desk1"], "ann@desk1", "+bob@desk1"),
        (TWO, ["+", "+", "+@desk1"], None, None),
        (TWO, ["+", "+ann@desk1", "+", "+bob@desk1"], "ann@desk1", "+bob@desk1"),
        (TWO, ["-"], None, "-"),
        (TWO, ["+ann@desk1", "-ann@desk1", "+bob@desk1"], "ann@desk1", "-ann@desk1"),
        (TWO, ["+ann@desk1", "-", "+bob@desk1"], "ann@desk1", "-"),
        (TWO, ["+ann@desk1", "+bob@desk1", "-eve@desk1"], "ann@desk1", "+bob@desk1"),
        (TWO, ["+sue@desk1", "+bob@desk1"], "sue@desk1", "+bob@desk1"),
        # Two people besides sue, who submitted it.
        (OTHERS, ["+sue@desk1"], None, None),
        (OTHERS, ["+ann@desk1", "+Sue@desk2"], "ann@desk1", None),
        (OTHERS, ["+sue@desk1", "+ann@desk1", "+bob@desk1"], "ann@desk1", "+bob@desk1"),
        (OTHERS, ["-sue@desk1"], None, "-sue@desk1"),
    ],
)
def test_what_decisions_mean(
    required: RequiredApprovals | None, made: list[str], first: str | None, decided_by: str | None
) -> None:
    for kept in (decisions(*made), that_matter(decisions(*made))):
        judgement = judge(kept, required, "sue@desk1")
        assert (judgement.first.by if judgement.first else None) == first
        expected = decisions(decided_by)[0] if decided_by else None
        assert judgement.decision == expected
        assert judgement.approved == (expected.approved if expected else None)


@pytest.mark.parametrize(
    ("required", "made", "status"),
    [
        (None, [], "Awaiting approval"),
        (TWO, [], "Awaiting approval"),
        (
            TWO,
            ["+", "+ann@desk1"],
            "Awaiting approval - approved by ann@desk1, needs a second person;"
            " an approval without a name isn't counted",
        ),
        (
            TWO,
            ["+boss, and eve. Completed"],
            "Awaiting approval - approved by “boss, and eve. Completed”, needs a second person",
        ),
        (
            OTHERS,
            ["+sue@desk2"],
            "Awaiting approval - the approval by sue@desk2, who submitted it, isn't counted",
        ),
    ],
)
def test_the_status_says_whose_approval_counts(
    required: RequiredApprovals | None, made: list[str], status: str
) -> None:
    assert judge(decisions(*made), required, "sue@desk1").waiting_status == status


def test_few_decisions_can_matter_however_many_are_sent() -> None:
    many = [f"+person{number}@desk1" for number in range(1000)]
    assert len(that_matter(decisions("+", "+@a", *many, "-", *many))) < 6


@pytest.mark.parametrize(
    ("setting", "total", "currency", "is_required"),
    [
        ("", "99999.00", "USD", False),
        ("1000.00", "1000.00", "USD", False),
        ("1000.00", "1000.01", "USD", True),
        ("1000", "1000.01", "EUR", True),
        ("0", "0.01", "USD", True),
        ("USD=1000, EUR=900,*=10", "900.01", "EUR", True),
        ("USD=1000,EUR=900,*=10", "900.01", "USD", False),
        ("USD=1000,EUR=900,*=10", "10.01", "KWD", True),
        ("USD=1000,EUR=900,*=10", "10.00", "KWD", False),
        # Or else a model could choose a currency without a limit.
        ("USD=1000,EUR=900", "0.01", "KWD", True),
    ],
)
def test_two_people_are_required_above_the_limit(
    setting: str, total: str, currency: str, is_required: bool
) -> None:
    for submitter_may, required in ((True, TWO), (False, OTHERS)):
        rule = TwoPeopleRule.parse(setting, submitter_may)
        expected = required if is_required else None
        assert rule.required_for(Decimal(total), currency) == expected


@pytest.fixture
def read_rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TwoPeopleRule]:
    def read(**env: str) -> TwoPeopleRule:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return activities.two_people_rule.__wrapped__()

    return read


@pytest.mark.parametrize(
    "limit",
    ["a lot", "-1", "1e3", "1000.001", "USD", "usd=5", "USD=1,USD=2", "1,2", "=5", "１０", ","],
)
def test_a_limit_that_cannot_be_read_is_refused_at_the_start(
    limit: str, read_rule: Callable[..., TwoPeopleRule]
) -> None:
    with pytest.raises(StartupError, match="INVOICE_TWO_PEOPLE_OVER must be an amount such as"):
        read_rule(INVOICE_TWO_PEOPLE_OVER=limit)


def test_whether_the_submitter_may_approve_is_yes_or_no(
    read_rule: Callable[..., TwoPeopleRule],
) -> None:
    with pytest.raises(StartupError, match="INVOICE_SUBMITTER_MAY_APPROVE must be yes or no"):
        read_rule(INVOICE_SUBMITTER_MAY_APPROVE="No")
    rule = read_rule(INVOICE_SUBMITTER_MAY_APPROVE="no", INVOICE_TWO_PEOPLE_OVER="5")
    assert rule.required_for(Decimal(6), "USD") == OTHERS
