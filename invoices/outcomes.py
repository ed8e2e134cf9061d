"""The outcome of a decision and of a cancellation."""

from invoices.answers import InvoiceStatus, Outcome
from invoices.refusals import cancelled_too_late, decided_otherwise


def decision_outcome(
    status: InvoiceStatus, *, approve: bool, request: str | None = None
) -> Outcome | None:
    """The outcome of a decision; None if it can't take effect.

    Args:
        status: the invoice's status after the decision.
        request: the id of the decision that was sent; None if none was sent.
    """
    has_effect = status.state in (
        ("scheduled", "paying", "completed") if approve else ("rejected",)
    )
    decision = status.decision
    # The tutorial's worker doesn't report whose decision it took.
    is_own = decision.request == request if decision else has_effect
    if request and is_own:
        return "approved" if approve else "rejected"
    kept = status.unread_decisions
    # The history may not show it yet.
    may_be_own = any(one.request == request for one in kept) or not (kept and status.is_decided)
    if request and status.state == "waiting" and status.worker_answers is False and may_be_own:
        return "decision_kept"
    first = status.judgement.first
    if approve and first and not status.is_decided:
        is_own = request is not None and first.request == request
        return "approved_first" if is_own else "already_approved_first"
    decision = decision or status.kept_decision
    # The decision takes effect once the workflow has asked the ledger, or once a worker runs.
    if status.state == "waiting" and decision and decision.approved == approve:
        has_effect = True
    if has_effect:
        return "already_approved" if approve else "already_rejected"
    return None


def with_outcome(
    status: InvoiceStatus, *, approve: bool, request: str | None = None
) -> InvoiceStatus:
    """The status with the outcome of a decision; the arguments are those of `decision_outcome`.

    Raises:
        InvoiceError: the decision can't take effect, for example because the opposite one stands.
    """
    outcome = decision_outcome(status, approve=approve, request=request)
    if outcome is None:
        raise decided_otherwise(status, approve)
    return status.model_copy(update={"outcome": outcome})


def with_cancellation(status: InvoiceStatus, *, was_sent: bool) -> InvoiceStatus:
    """The status with the outcome of a cancellation.

    Args:
        status: the invoice's status after it.
        was_sent: False if somebody had cancelled the invoice before.

    Raises:
        InvoiceError: the invoice has ended in another way.
    """
    outcome: Outcome
    if not status.is_open and not status.is_cancelled:
        raise cancelled_too_late(status)
    if not was_sent:
        outcome = "already_cancelled"
    elif status.is_cancelled:
        outcome = "cancelled"
    else:
        outcome = "cancellation_kept" if status.worker_answers is False else "being_cancelled"
    return status.model_copy(update={"outcome": outcome})
