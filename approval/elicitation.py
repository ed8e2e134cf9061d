"""Asking the person within the tool's call, where the host can put a question (elicitation)."""

import asyncio
import json
import logging
from decimal import Decimal
from typing import Any

from fastmcp import Context
from mcp import MCPError
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from invoices.invoice import Invoice
from invoices.wording import format_money, sanitized_quote

PERSON_SECONDS = 50
"""For the person's answer, where the host asks within the call; it gives up at about 60 s."""

APPROVAL_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "approve": {
            "type": "boolean",
            "title": "Pay this invoice",
            "description": "Yes pays every line. Payments can't be undone.",
        }
    },
    "required": ["approve"],
}

log = logging.getLogger("invoice_server")


def supports_elicitation(ctx: Context) -> bool:
    """Whether the host can put a question to the person by a form."""
    capabilities = ctx.session.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


async def ask_person(ctx: Context, invoice: Invoice, run_id: str) -> bool | InputRequiredResult:
    """Whether the person says yes to paying exactly this; False on anything but a clear yes.

    The handshake era of MCP asks within the call. The era from 2026-07-28 on ends the call with the
    question, and the host repeats it with the answer and with `request_state`, sealed by the SDK:
    so only an answer to the question about this very run counts.
    """
    question = ElicitRequestFormParams(message=_question(invoice), requested_schema=APPROVAL_FORM)
    if ctx.session.protocol_version in MODERN_PROTOCOL_VERSIONS:
        asked = json.dumps([invoice.id, run_id])
        answers = ctx.input_responses
        if not answers:
            return InputRequiredResult(
                input_requests={"approve": ElicitRequest(params=question)}, request_state=asked
            )
        return ctx.request_state == asked and _is_clear_yes(answers.get("approve"))
    try:
        async with asyncio.timeout(PERSON_SECONDS):
            return _is_clear_yes(await ctx.session.elicit_form(question.message, APPROVAL_FORM))
    except (TimeoutError, MCPError, ValidationError) as error:
        log.info("No usable answer about invoice %s: %r", invoice.id, error)
        return False


def _is_clear_yes(answer: object) -> bool:
    return (
        isinstance(answer, ElicitResult)
        and answer.action == "accept"
        and answer.content is not None
        and answer.content.get("approve") is True
    )


def _question(invoice: Invoice) -> str:
    lines = [f"Pay invoice {invoice.id}: {invoice.summary}?"]
    for number, line in enumerate(invoice.lines[:50], start=1):
        amount = format_money(line.amount, invoice.currency)
        lines.append(f"{number}. {amount} for {sanitized_quote(line.item)}")
    if rest := invoice.lines[50:]:
        total = sum((line.amount for line in rest), Decimal())
        lines.append(
            f"and {len(rest)} more lines, together {format_money(total, invoice.currency)}"
        )
    return "\n".join(lines)
