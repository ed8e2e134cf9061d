"""The card in the chat on which a person decides, in hosts that show cards (MCP Apps).

In such a host, `approve_invoice` shows the card and doesn't approve anything. The person's click
calls `decide_on_card`, which the host must offer only to the card, not to the model. In addition,
the server gives the card a seal, in the answer's `_meta`, and refuses a decision without it.
"""

import hmac
import logging
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, Self

from fastmcp import Context
from fastmcp.apps.config import UI_EXTENSION_ID, UI_MIME_TYPE
from fastmcp.exceptions import NotFoundError, ToolError
from fastmcp.resources import Resource
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool, ToolResult
from mcp_types import (
    CallToolRequestParams,
    ClientCapabilities,
    DiscoverRequest,
    DiscoverResult,
    InitializeRequest,
    InitializeResult,
    ListResourcesRequest,
    ListToolsRequest,
)
from pydantic import BaseModel

from approval.elicitation import can_ask
from invoices.answers import InvoiceStatus
from invoices.approval_view import ApprovalView
from invoices.content import fit
from invoices.invoice import Invoice
from invoices.status import State
from invoices.wording import cut, sanitized
from settings import read_setting

CARD_URI = "ui://invoice-processor/approval-card.html"
APPROVE_TOOL = "approve_invoice"
APP_TOOLS = frozenset({"invoice_card", "decide_on_card"})
"""Tools only for the card. Hosts don't offer them to the model."""
CARD_LINES_BYTES = 75_000
"""How long the JSON of the lines may be: all lines are on a card, with shorter texts if need be."""
LOADING_SECONDS = 10
"""How long after the first answer with a card a card must have asked for its data."""

log = logging.getLogger("invoice_server")


def card_html(version: str) -> str:
    """The card's HTML. The card tells the host this version."""
    return Path(__file__).with_name("card.html").read_text("utf-8").replace("{{version}}", version)


class CardLine(BaseModel):
    """One line, ready to be shown."""

    item: str
    description: str | None
    amount: str
    paid_earlier: bool = False


class InvoiceCard(BaseModel):
    """What the card shows: sentences and amounts, with other people's text sanitized."""

    invoice_id: str
    bill: str | None
    charged: str | None
    submitted: str | None
    lines: list[CardLine]
    total: str
    paid_earlier: str | None
    to_pay: str
    payment_date: str | None
    approvals: str | None
    is_first_of_two: bool
    waits_for_second: bool
    """Whether the person in front of the card has approved, and another must too."""
    deadline: datetime | None
    state: State
    can_be_decided: bool
    why_undecidable: str | None
    is_approval_kept: bool
    """Whether an approval is kept, after which a rejection may not count."""
    paid_lines: int
    details: str

    @classmethod
    def of(cls, view: ApprovalView, status: InvoiceStatus, name: str = "") -> Self:
        """`name` is that of the person, `user@host`."""
        why_undecidable = _why_undecidable(status, name)
        # The details say these too, where they have more than a person needs to decide.
        is_asked = why_undecidable is None
        lines, _ = fit(lambda limit: _card_lines(view, limit), CARD_LINES_BYTES)
        return cls(
            invoice_id=view.invoice.id,
            bill=view.invoice.bill,
            charged=view.invoice.charged,
            submitted=view.submitted,
            lines=lines,
            total=view.invoice.total,
            paid_earlier=view.paid_earlier,
            to_pay=view.to_pay,
            payment_date=view.payment_date if is_asked else None,
            approvals=view.approvals if is_asked else None,
            is_first_of_two=view.is_first_of_two,
            waits_for_second=status.is_first_approval_by(name),
            deadline=view.deadline,
            state=status.state,
            can_be_decided=is_asked,
            why_undecidable=why_undecidable if status.state == "waiting" else None,
            is_approval_kept=bool(status.kept_decision and status.kept_decision.approved),
            paid_lines=status.paid_lines,
            details=_details(view, status, name),
        )


def _why_undecidable(status: InvoiceStatus, name: str) -> str | None:
    """What the card says in place of the buttons for a waiting invoice; None if it has buttons."""
    if status.stopping:
        return "Being cancelled"
    if status.is_decided:
        return "A decision is kept" if status.kept_decision else "Decided"
    if status.is_first_approval_by(name):
        return "Approved by you; needs a second person"
    if status.kept_decision and not status.can_change(name, approve=True):
        return "A decision is kept"
    if status.earlier_ledger:
        return "Earlier payments are in another ledger"
    return "The deadline has passed" if status.is_past_deadline else None


def _card_lines(view: ApprovalView, limit: int) -> list[CardLine]:
    return [
        CardLine(
            item=cut(line.item, limit),
            description=cut(line.description, limit) or None,
            amount=line.price,
            paid_earlier=line.is_paid_earlier,
        )
        for line in view.invoice.lines
    ]


def _details(view: ApprovalView, status: InvoiceStatus, name: str) -> str:
    """What the card says in addition to the lines, amounts and deadline."""
    if _why_undecidable(status, name) is None:
        kept = f"{status.why_kept}: the decision is kept and takes effect {status.continues}."
        parts = (view.caution, view.similarity, kept if status.worker_answers is False else "")
        return " ".join(filter(None, parts))
    if status.state == "failed":
        return f"{sanitized(status.status, 600)}. {status.details_without_bill}"
    return status.details_without_bill


def can_show_cards(capabilities: ClientCapabilities | None) -> bool:
    """Whether the host's capabilities, from the handshake or the request, say it shows cards."""
    settings = (capabilities.extensions or {}).get(UI_EXTENSION_ID) if capabilities else None
    mime_types = settings.get("mimeTypes") if settings else None
    return isinstance(mime_types, list) and UI_MIME_TYPE in mime_types


class ApprovalCards(Middleware):
    """The cards of this process: decides which hosts get cards and which clicks count.

    `INVOICE_APPROVAL_CARD` is `auto` (default), `required` or `off`.
    """

    def __init__(self) -> None:
        self.setting = read_setting("INVOICE_APPROVAL_CARD")
        self._key = secrets.token_bytes(32)
        self.first_shown: float | None = None
        """When the first answer with a card was made, by the monotonic clock."""
        self.has_loaded = False
        """Whether any card has asked for its data."""

    def ask_on_card(self, ctx: Context) -> bool:
        """Whether the person decides on a card.

        Some hosts say that they show cards but don't. So with `auto`, if no card has asked for its
        data `LOADING_SECONDS` after the first answer with one, approving falls back to the host's
        permission dialog. Once a card has loaded, it never falls back.

        Raises:
            ToolError: a card is required but this host doesn't show cards, or the setting has an
                unknown value.
        """
        if self.setting not in ("auto", "required", "off"):
            raise _refusal(
                f"INVOICE_APPROVAL_CARD is {sanitized(self.setting)!r}, but must be auto, required"
                " or off. Nothing was approved. Correct it and restart the server."
            )
        if not self._offered_to(ctx):
            if self.setting == "required":
                raise _refusal(
                    "Nothing was approved: INVOICE_APPROVAL_CARD is required, and this host neither"
                    " shows cards nor asks the person. Decide in a host that does one of these, or"
                    " in Temporal's Web UI."
                )
            return False
        if self.setting == "required" or self.has_loaded or self.first_shown is None:
            return True
        if monotonic() - self.first_shown < LOADING_SECONDS:
            return True
        log.warning("This host doesn't show the card, so approving uses its permission dialog")
        return False

    def record_card_shown(self) -> None:
        """Records that an answer that shows a card is being sent.

        Only such an answer starts the time limit. A call that fails shows no card, so even a host
        that shows cards couldn't load one in time.
        """
        if self.first_shown is None:
            self.first_shown = monotonic()

    def result(self, run_id: str, invoice: Invoice, status: InvoiceStatus, name: str) -> ToolResult:
        """The card's data, with the seal that a click needs while the invoice waits."""
        card = InvoiceCard.of(ApprovalView.of(invoice, status), status, name)
        return ToolResult(
            content=status.to_text(),
            structured_content=card.model_dump(mode="json"),
            meta={"seal": self._seal(run_id, invoice)} if card.can_be_decided else None,
        )

    def check_seal(self, seal: str, run_id: str, invoice: Invoice) -> None:
        """Makes sure that the card has shown this run with this content.

        Raises:
            ToolError: the card has shown something else, or another process sealed it.
        """
        if not hmac.compare_digest(seal.encode(), self._seal(run_id, invoice).encode()):
            raise _refusal(
                f"This card is out of date: invoice {invoice.id} was submitted again, or the server"
                " was restarted. Nothing was decided. Load the invoice again."
            )

    def _seal(self, run_id: str, invoice: Invoice) -> str:
        return hmac.new(self._key, f"{run_id} {invoice.digest}".encode(), "sha256").hexdigest()

    def _offered_to(self, ctx: Context | None) -> bool:
        # Outside a request there is no host.
        if ctx is None or ctx.request_context is None:
            return False
        return self._offered_with(ctx.session.client_capabilities)

    def _offered_with(self, capabilities: ClientCapabilities | None) -> bool:
        """Whether a host gets cards. A host that supports elicitation doesn't need them."""
        if self.setting == "off":
            return False
        return can_show_cards(capabilities) and not can_ask(capabilities)

    async def on_initialize(
        self,
        context: MiddlewareContext[InitializeRequest],
        call_next: CallNext[InitializeRequest, InitializeResult | None],
    ) -> InitializeResult | None:
        result = await call_next(context)
        # The SDK leaves extensions out of this answer, and without them some hosts show no cards.
        if result and self.setting != "off":
            result.capabilities.extensions = {UI_EXTENSION_ID: {}}
        # The session has the host's capabilities only after this.
        if result and not self._offered_with(context.message.params.capabilities):
            result.capabilities.resources = None  # the card is the only resource
        return result

    async def on_discover(
        self,
        context: MiddlewareContext[DiscoverRequest],
        call_next: CallNext[DiscoverRequest, DiscoverResult | dict[str, Any]],
    ) -> DiscoverResult | dict[str, Any]:
        result = await call_next(context)
        if isinstance(result, DiscoverResult) and not self._offered_to(context.fastmcp_context):
            result.capabilities.resources = None
        return result

    async def on_list_tools(
        self,
        context: MiddlewareContext[ListToolsRequest],
        call_next: CallNext[ListToolsRequest, Sequence[Tool]],
    ) -> Sequence[Tool]:
        tools = await call_next(context)
        if self._offered_to(context.fastmcp_context):
            return [_with_card(tool) if tool.name == APPROVE_TOOL else tool for tool in tools]
        return [tool for tool in tools if tool.name not in APP_TOOLS]

    async def on_list_resources(
        self,
        context: MiddlewareContext[ListResourcesRequest],
        call_next: CallNext[ListResourcesRequest, Sequence[Resource]],
    ) -> Sequence[Resource]:
        return await call_next(context) if self._offered_to(context.fastmcp_context) else []

    async def on_call_tool(
        self,
        context: MiddlewareContext[CallToolRequestParams],
        call_next: CallNext[CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        if context.message.name in APP_TOOLS:
            if not self._offered_to(context.fastmcp_context):
                raise NotFoundError(f"Unknown tool: {context.message.name!r}")
            self.has_loaded = True
        return await call_next(context)


def _with_card(tool: Tool) -> Tool:
    # The second key is an older form of the first. Some hosts still read it.
    card: dict[str, Any] = {
        "ui": {"resourceUri": CARD_URI, "visibility": ["model"]},
        "ui/resourceUri": CARD_URI,
    }
    return tool.model_copy(update={"meta": {**(tool.meta or {}), **card}})


def _refusal(text: str) -> ToolError:
    return ToolError(text, log_level=logging.INFO)
