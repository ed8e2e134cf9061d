"""The outcome of a decision, according to the invoice's status after it."""

from datetime import UTC, datetime, timedelta

import pytest

from invoices.answers import InvoiceStatus, Outcome
from invoices.outcomes import decision_outcome, with_cancellation, with_outcome
from invoices.refusals import InvoiceError
from invoices.status import STATUS_TEXTS, Cancellation, Decision, State

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
OWN, OTHER = "own request", "another's"


def a_status(
    state: State,
    decision: tuple[bool, str | None] | None = None,
    worker_answers: bool | None = True,
    kept: tuple[bool, str | None] | None = None,
    cancellation: Cancellation | None = None,
) -> InvoiceStatus:
    """A status after a decision. `decision`, `kept`: whether the first one approves, and its
    request.
    """
    standing = None
    if decision:
        standing = Decision(approved=decision[0], request=decision[1], at=NOON)
    return InvoiceStatus(
        invoice_id="INV-1",
        workflow_id="invoice-INV-1",
        state=state,
        status=STATUS_TEXTS[state],
        submitted_at=NOON,
        decision=standing,
        kept_decision=Decision(approved=kept[0], request=kept[1], at=NOON) if kept else None,
        cancellation=cancellation,
        worker_answers=worker_answers,
    )


APPROVED_HERE, APPROVED_BEFORE, APPROVED_BARE = (True, OWN), (True, OTHER), (True, None)
REJECTED_HERE, REJECTED_BEFORE = (False, OWN), (False, OTHER)


@pytest.mark.parametrize(
    ("status", "approve", "outcome"),
    [
        # Our decision stands, whether or not it has taken effect yet.
        (a_status("paying", APPROVED_HERE), True, "approved"),
        (a_status("completed", APPROVED_HERE), True, "approved"),
        (a_status("waiting", APPROVED_HERE), True, "approved"),
        (a_status("failed", APPROVED_HERE), True, "approved"),
        (a_status("rejected", REJECTED_HERE), False, "rejected"),
        (a_status("waiting", REJECTED_HERE), False, "rejected"),
        # The tutorial's worker doesn't say whose decision it took.
        (a_status("paying"), True, "approved"),
        (a_status("completed"), True, "approved"),
        (a_status("rejected"), False, "rejected"),
        (a_status("rejected"), True, None),
        (a_status("paying"), False, None),
        # Another decision stands, with the same effect.
        (a_status("paying", APPROVED_BEFORE), True, "already_approved"),
        (a_status("completed", APPROVED_BARE), True, "already_approved"),
        (a_status("waiting", APPROVED_BEFORE), True, "already_approved"),
        (a_status("rejected", REJECTED_BEFORE), False, "already_rejected"),
        (a_status("waiting", REJECTED_BEFORE), False, "already_rejected"),
        # Another decision stands, with the opposite effect.
        (a_status("paying", APPROVED_BEFORE), False, None),
        (a_status("waiting", APPROVED_BEFORE), False, None),
        (a_status("rejected", REJECTED_BEFORE), True, None),
        # No decision has taken effect, and none will.
        (a_status("timed_out"), True, None),
        (a_status("cancelled"), False, None),
        (a_status("terminated"), True, None),
        (a_status("failed"), True, None),
        # The Temporal Service keeps it until a worker runs.
        (a_status("waiting", worker_answers=False), True, "decision_kept"),
        (a_status("waiting", worker_answers=False), False, "decision_kept"),
        (a_status("waiting", REJECTED_BEFORE, worker_answers=False), True, "decision_kept"),
        (a_status("paying", APPROVED_BEFORE, worker_answers=False), True, "already_approved"),
        (a_status("waiting", kept=APPROVED_HERE, worker_answers=False), True, "decision_kept"),
        (a_status("waiting", kept=APPROVED_BEFORE, worker_answers=False), True, "already_approved"),
        (
            a_status("waiting", kept=REJECTED_BEFORE, worker_answers=False),
            False,
            "already_rejected",
        ),
        (a_status("waiting", kept=REJECTED_BEFORE, worker_answers=False), True, None),
        # A worker that received it but doesn't act on it took another one, which it doesn't report.
        (a_status("waiting"), True, None),
        (a_status("waiting", worker_answers=None), True, None),
    ],
)
def test_the_outcome_of_a_decision_that_was_sent(
    status: InvoiceStatus, approve: bool, outcome: Outcome | None
) -> None:
    assert decision_outcome(status, approve=approve, request=OWN) == outcome


@pytest.mark.parametrize(
    ("status", "approve", "outcome"),
    [
        (a_status("paying", APPROVED_BARE), True, "already_approved"),
        (a_status("paying"), True, "already_approved"),
        (a_status("rejected"), False, "already_rejected"),
        (a_status("waiting", APPROVED_BARE, worker_answers=False), True, "already_approved"),
        (a_status("waiting", worker_answers=False), True, None),
        (a_status("completed", APPROVED_BARE), False, None),
        (a_status("timed_out"), False, None),
    ],
)
def test_nothing_that_was_not_sent_is_approved_rejected_or_kept(
    status: InvoiceStatus, approve: bool, outcome: Outcome | None
) -> None:
    assert decision_outcome(status, approve=approve) == outcome


def test_the_outcome_is_in_a_new_status() -> None:
    before = a_status("paying", APPROVED_HERE)
    after = with_outcome(before, approve=True, request=OWN)
    assert (before.outcome, after.outcome) == (None, "approved")
    assert after == before.model_copy(update={"outcome": "approved"})


def test_a_contrary_decision_is_refused_and_the_first_one_is_named() -> None:
    with pytest.raises(InvoiceError, match=r"can't be rejected now.*Approved by another client"):
        with_outcome(a_status("completed", APPROVED_BEFORE), approve=False, request=OWN)


CANCELLATION = Cancellation(by="ana@desk", reason="ordered twice", at=NOON)


@pytest.mark.parametrize(
    ("status", "was_sent", "outcome"),
    [
        (a_status("cancelled"), True, "cancelled"),
        (a_status("cancelled"), False, "already_cancelled"),
        (a_status("paying", cancellation=CANCELLATION), True, "being_cancelled"),
        (a_status("waiting", worker_answers=False), True, "cancellation_kept"),
        (a_status("paying", worker_answers=False), True, "cancellation_kept"),
        (a_status("paying", cancellation=CANCELLATION), False, "already_cancelled"),
    ],
)
def test_what_a_cancellation_has_brought_about(
    status: InvoiceStatus, was_sent: bool, outcome: Outcome
) -> None:
    assert with_cancellation(status, was_sent=was_sent).outcome == outcome


@pytest.mark.parametrize("state", ["completed", "rejected", "timed_out", "failed", "terminated"])
@pytest.mark.parametrize("was_sent", [True, False])
def test_a_cancellation_of_an_invoice_that_ended_otherwise_is_refused(
    state: State, was_sent: bool
) -> None:
    status = a_status(state, APPROVED_BEFORE).model_copy(update={"closed_at": NOON})
    with pytest.raises(InvoiceError, match=f"can't be cancelled now, status: {status.status}"):
        with_cancellation(status, was_sent=was_sent)


def test_texts_say_who_cancelled() -> None:
    told = "by ana@desk on 2026-11-26 12:00:00 UTC, reason: “ordered twice”"
    ended = a_status("cancelled", APPROVED_BEFORE, cancellation=CANCELLATION)
    assert f"Cancelled {told}." in ended.to_text()
    assert f"; cancelled {told}" in ended.to_line()
    paying = a_status("paying", APPROVED_BEFORE, cancellation=CANCELLATION)
    assert f"Cancellation requested {told}. If a payment is in progress, it" in paying.to_text()
    # A cancellation that came too late stopped nothing.
    completed = a_status("completed", APPROVED_BEFORE, cancellation=CANCELLATION)
    assert "ana@desk" not in completed.to_text() + completed.to_line()


@pytest.mark.parametrize(
    ("sent_at", "is_dated"),
    [
        (None, False),
        (NOON, True),  # the submission
        (NOON - timedelta(seconds=1), False),
        (NOON + timedelta(days=3) - timedelta(seconds=3), True),
        (NOON + timedelta(days=3) - timedelta(seconds=1), False),  # read at once
        (NOON + timedelta(days=4), False),
    ],
)
def test_a_decision_is_dated_by_its_sender_only_within_what_can_be(
    sent_at: datetime | None, is_dated: bool
) -> None:
    decision = Decision(approved=True, at=NOON + timedelta(days=3), sent_at=sent_at)
    assert decision.dated_by_sender(NOON) == (sent_at if is_dated else None)


def test_names_and_reasons_of_any_length_are_cut() -> None:
    cancellation = Cancellation.from_request("x" * 10**6, "", NOON)
    assert (len(cancellation.by or ""), cancellation.reason) == (200, None)


def of_two(
    first: str | None = None,
    kept: tuple[bool, str | None] | None = None,
    *,
    worker_answers: bool | None = True,
) -> InvoiceStatus:
    """A waiting invoice that two people must approve. `first` is the request of the first
    approval, by Ann; what is kept is Bob's.
    """
    status = a_status("waiting", worker_answers=worker_answers)
    approval = Decision(approved=True, request=first, by="ann@desk1", at=NOON) if first else None
    by_bob = Decision(approved=kept[0], request=kept[1], by="bob@desk1", at=NOON) if kept else None
    update = {"first_approval": approval, "kept_decision": by_bob}
    return status.model_copy(update={"required_approvals": "two_people", **update})


@pytest.mark.parametrize(
    ("status", "approve", "request_id", "outcome"),
    [
        (of_two(OWN), True, OWN, "approved_first"),
        # Another approval by the same person was taken before.
        (of_two(OTHER), True, OWN, "already_approved_first"),
        # Nothing was sent.
        (of_two(OTHER), True, None, "already_approved_first"),
        (of_two(OTHER), False, OWN, None),
        # The approval of somebody who may not approve.
        (of_two(), True, OWN, None),
        # What is kept decides together with the first approval, or begins.
        (of_two(OTHER, APPROVED_HERE, worker_answers=False), True, OWN, "decision_kept"),
        (of_two(OTHER, APPROVED_BEFORE, worker_answers=False), True, OWN, "already_approved"),
        (of_two(None, APPROVED_BEFORE, worker_answers=False), True, OWN, "decision_kept"),
        (of_two(None, REJECTED_BEFORE, worker_answers=False), True, OWN, None),
    ],
)
def test_the_outcome_where_two_people_must_approve(
    status: InvoiceStatus, approve: bool, request_id: str | None, outcome: Outcome | None
) -> None:
    assert decision_outcome(status, approve=approve, request=request_id) == outcome
