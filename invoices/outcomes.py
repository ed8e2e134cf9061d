"""What a decision has brought about."""

from invoices.answers import InvoiceStatus, Outcome
from invoices.refusals import decided_otherwise


def decision_outcome(
    status: InvoiceStatus, *, approve: bool, request: str | None = None
) -> Outcome | None:
    """The outcome of a decision; None if one to the other effect stands.

    Args:
        status: where the invoice stands after it.
        request: of the decision that was sent, None if none was.
    """
    has_effect = status.state in (("paying", "completed") if approve else ("rejected",))
    decision = status.decision
    # The tutorial's worker doesn't tell whose decision it took.
    is_own = decision.request == request if decision else has_effect
    if request and is_own:
        return "approved" if approve else "rejected"
    if request and status.state == "waiting" and status.worker_answers is False:
        return "decision_kept"
    # Made, and about to take effect: the workflow still asks the ledger.
    if status.state == "waiting" and decision and decision.approved == approve:
        has_effect = True
    if has_effect:
        return "already_approved" if approve else "already_rejected"
    return None


def with_outcome(
    status: InvoiceStatus, *, approve: bool, request: str | None = None
) -> InvoiceStatus:
    """The status with the outcome of a decision, as for `decision_outcome`.

    Raises:
        InvoiceError: a decision to the other effect stands.
    """
    outcome = decision_outcome(status, approve=approve, request=request)
    if outcome is None:
        raise decided_otherwise(status, approve)
    return status.model_copy(update={"outcome": outcome})
