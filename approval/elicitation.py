"""Asks the person during the tool's call, if the host supports elicitation."""

import asyncio
import json
import logging
from typing import Any, Literal

from fastmcp import Context
from mcp import MCPError
from mcp_types import (
    ClientCapabilities,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from invoices.approval_view import ApprovalView

PERSON_SECONDS = 50
"""The person's time to answer, if the host asks within the call. Hosts give up after about 60 s."""

SHOWN_LINES = 50
"""How many lines a question shows at most: the largest ones."""

APPROVAL_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "approve": {
            "type": "boolean",
            "title": "Pay this invoice",
            "description": "If you say yes, every line is paid. Payments can't be undone.",
        }
    },
    "required": ["approve"],
}

log = logging.getLogger("invoice_server")


def supports_elicitation(ctx: Context) -> bool:
    """Whether the host can ask the person with a form."""
    return can_ask(ctx.session.client_capabilities)


def can_ask(capabilities: ClientCapabilities | None) -> bool:
    """Whether a host with these capabilities can ask the person with a form."""
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


Answer = Literal["yes", "no", "late"]
"""`no` is any answer except a clear yes. `late` is no answer within `PERSON_SECONDS`."""


async def ask_person(ctx: Context, view: ApprovalView, run_id: str) -> Answer | InputRequiredResult:
    """Asks whether to pay exactly this, and to record the view's reason as the person's.

    Older versions of MCP ask within the call. From version 2026-07-28 on, the call ends with the
    question, and the host repeats the call with the answer and with `request_state`, which the SDK
    seals and binds to the call's arguments. So an answer counts only for this run and reason.
    """
    text = render_question(view)
    question = ElicitRequestFormParams(message=text, requested_schema=APPROVAL_FORM)
    if ctx.session.protocol_version in MODERN_PROTOCOL_VERSIONS:
        asked = json.dumps([view.invoice.id, run_id])
        answers = ctx.input_responses
        if not answers:
            return InputRequiredResult(
                input_requests={"approve": ElicitRequest(params=question)}, request_state=asked
            )
        return _parse_answer(answers.get("approve")) if ctx.request_state == asked else "no"
    try:
        async with asyncio.timeout(PERSON_SECONDS):
            return _parse_answer(await ctx.session.elicit_form(text, APPROVAL_FORM))
    except TimeoutError:
        return "late"
    except (MCPError, ValidationError) as error:
        log.info("The host's answer about invoice %s can't be used: %r", view.invoice.id, error)
        return "no"


def _parse_answer(answer: object) -> Answer:
    is_clear_yes = (
        isinstance(answer, ElicitResult)
        and answer.action == "accept"
        and answer.content is not None
        and answer.content.get("approve") is True
    )
    return "yes" if is_clear_yes else "no"


def render_question(view: ApprovalView) -> str:
    """The question as plain text."""
    lines = [f"Pay invoice {view.invoice.id}: {view.invoice.summary}?"]
    if view.caution:
        lines.append(view.caution)
    if view.similarity:
        lines.append(view.similarity)
    if view.paid_earlier:
        lines.append(f"Paid earlier: {view.paid_earlier}. To pay: {view.to_pay}.")
    if view.invoice.bill:
        lines.append(f"{view.invoice.bill}.")
    if view.invoice.charged:
        lines.append(f"{view.invoice.charged}.")
    if view.reason:
        lines.append(f"Reason that will be kept: {view.reason}")
    return "\n".join([*lines, *view.invoice.largest_lines(SHOWN_LINES)])
