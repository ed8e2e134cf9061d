"""The outcome of a decision."""

from invoices.answers import InvoiceStatus, Outcome
from invoices.refusals import decided_otherwise


def decision_outcome(
    status: InvoiceStatus, *, approve: bool, request: str | None = None
) -> Outcome | None:
    """The outcome of a decision; None if it can't take effect.

    Args:
        status: the invoice's status after the decision.
        request: the id of the decision that was sent; None if none was sent.
    """
    has_effect = status.state in (("paying", "completed") if approve else ("rejected",))
    decision = status.decision
    # The tutorial's worker doesn't report whose decision it took.
    is_own = decision.request == request if decision else has_effect
    if request and is_own:
        return "approved" if approve else "rejected"
    if request and status.state == "waiting" and status.worker_answers is False:
        return "decision_kept"
    # The decision takes effect once the workflow has asked the ledger.
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
