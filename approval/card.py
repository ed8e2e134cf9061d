"""The card in the chat on which a person decides, in hosts that show cards (MCP Apps).

There `approve_invoice` shows the card and approves nothing. The person's click calls
`decide_on_card`, which hosts offer to the card and not to the model. That is a promise of the host;
the server adds a seal, which only a card gets, in the answer's `_meta`: without it nothing is
decided.
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
from invoices.invoice import Invoice
from invoices.status import State
from invoices.wording import sanitized
from settings import read_setting

CARD_URI = "ui://invoice-processor/approval-card.html"
APPROVE_TOOL = "approve_invoice"
APP_TOOLS = frozenset({"invoice_card", "decide_on_card"})
"""For the card alone: hosts keep them from the model."""
LOADING_SECONDS = 10
"""How long a host may take from the first answer with a card until a card asks for its data."""

log = logging.getLogger("invoice_server")


def card_html(version: str) -> str:
    """The card, which tells the host that it is of this version."""
    return Path(__file__).with_name("card.html").read_text("utf-8").replace("{{version}}", version)


class CardLine(BaseModel):
    """One line as it is shown."""

    item: str
    description: str | None
    amount: str


class InvoiceCard(BaseModel):
    """What the card shows: sentences and amounts ready to read, other people's text sanitized."""

    invoice_id: str
    charged: str | None
    lines: list[CardLine]
    total: str
    paid_earlier: str | None
    to_pay: str
    deadline: datetime | None
    state: State
    can_be_decided: bool
    paid_lines: int
    details: str

    @classmethod
    def of(cls, view: ApprovalView, status: InvoiceStatus) -> Self:
        return cls(
            invoice_id=view.invoice.id,
            charged=view.invoice.charged,
            lines=[
                CardLine(item=line.item, description=line.description, amount=line.price)
                for line in view.invoice.lines
            ],
            total=view.invoice.total,
            paid_earlier=view.paid_earlier,
            to_pay=view.to_pay,
            deadline=view.deadline,
            state=status.state,
            can_be_decided=status.state == "waiting" and not status.is_past_deadline,
            paid_lines=status.paid_lines,
            details=_details(view, status),
        )


def _details(view: ApprovalView, status: InvoiceStatus) -> str:
    """What is left to say beside the lines, amounts and deadline."""
    if status.state == "waiting" and not status.is_past_deadline:
        kept = "No worker answers now: the decision is kept and takes effect when one runs."
        parts = (view.caution, kept if status.worker_answers is False else "")
        return " ".join(filter(None, parts))
    if status.state == "failed":
        return f"{sanitized(status.status, 600)}. {status.details}"
    return status.details


def can_show_cards(capabilities: ClientCapabilities | None) -> bool:
    """Whether the host says, in the handshake or with the request, that it shows cards."""
    settings = (capabilities.extensions or {}).get(UI_EXTENSION_ID) if capabilities else None
    mime_types = settings.get("mimeTypes") if settings else None
    return isinstance(mime_types, list) and UI_MIME_TYPE in mime_types


class ApprovalCards(Middleware):
    """The cards of this process: which hosts see of them what, and which clicks count.

    `INVOICE_APPROVAL_CARD` is `auto` (default), `required` or `off`.
    """

    def __init__(self) -> None:
        self.setting = read_setting("INVOICE_APPROVAL_CARD")
        self._key = secrets.token_bytes(32)
        self.first_shown: float | None = None
        """When the first card was to be shown, by the monotonic clock."""
        self.has_loaded = False
        """Whether any card has asked for its data."""

    def ask_on_card(self, ctx: Context) -> bool:
        """Whether approving is left to the person's click on a card.

        Some hosts say that they show cards and don't. So with `auto`, if no card has asked for its
        data `LOADING_SECONDS` after the first one was to be shown, approving is left to the host's
        own permission dialog; but never again once a card has.

        Raises:
            ToolError: a card is required and this host shows none, or the setting is unknown.
        """
        if self.setting not in ("auto", "required", "off"):
            raise _refusal(
                f"INVOICE_APPROVAL_CARD is {sanitized(self.setting)!r}, but must be auto, required"
                " or off. Nothing was approved; correct it and restart the server."
            )
        if not self._offered_to(ctx):
            if self.setting == "required":
                raise _refusal(
                    "Nothing was approved: INVOICE_APPROVAL_CARD is required, and this host neither"
                    " shows cards nor asks the person. Decide in a host that does, or in Temporal's"
                    " Web UI."
                )
            return False
        if self.setting == "required" or self.has_loaded or self.first_shown is None:
            return True
        if monotonic() - self.first_shown < LOADING_SECONDS:
            return True
        log.warning("This host shows no card; its permission dialog decides")
        return False

    def note_shown(self) -> None:
        """Notes that the answer under way has the host show a card.

        Only such an answer starts the clock: a call that fails shows none, so a host that does show
        cards couldn't load one in time.
        """
        if self.first_shown is None:
            self.first_shown = monotonic()

    def result(self, run_id: str, invoice: Invoice, status: InvoiceStatus) -> ToolResult:
        """The data of a card, with the seal for a click on it while the invoice waits."""
        card = InvoiceCard.of(ApprovalView.of(invoice, status), status)
        return ToolResult(
            content=status.to_text(),
            structured_content=card.model_dump(mode="json"),
            meta={"seal": self._seal(run_id, invoice)} if card.can_be_decided else None,
        )

    def check_seal(self, seal: str, run_id: str, invoice: Invoice) -> None:
        """Makes sure that the card clicked on has shown this run and this content.

        Raises:
            ToolError: it has shown another, or was sealed by another process.
        """
        if not hmac.compare_digest(seal.encode(), self._seal(run_id, invoice).encode()):
            raise _refusal(
                f"This card is out of date: invoice {invoice.id} was submitted anew, or the server"
                " was restarted. Nothing was decided; look at it again."
            )

    def _seal(self, run_id: str, invoice: Invoice) -> str:
        return hmac.new(self._key, f"{run_id} {invoice.digest}".encode(), "sha256").hexdigest()

    def _offered_to(self, ctx: Context | None) -> bool:
        # Without a request there is no host.
        if ctx is None or ctx.request_context is None:
            return False
        return self._offered_with(ctx.session.client_capabilities)

    def _offered_with(self, capabilities: ClientCapabilities | None) -> bool:
        """Whether a host gets cards: not where it asks the person itself, which goes first."""
        if self.setting == "off":
            return False
        return can_show_cards(capabilities) and not can_ask(capabilities)

    async def on_initialize(
        self,
        context: MiddlewareContext[InitializeRequest],
        call_next: CallNext[InitializeRequest, InitializeResult | None],
    ) -> InitializeResult | None:
        result = await call_next(context)
        # The SDK leaves extensions out of this era's answer, and some hosts then show no cards.
        if result and self.setting != "off":
            result.capabilities.extensions = {UI_EXTENSION_ID: {}}
        # The session has the host's capabilities only after this.
        if result and not self._offered_with(context.message.params.capabilities):
            result.capabilities.resources = None  # the card is the only one
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
    # The second key is an older form of the first, which some hosts still read.
    card: dict[str, Any] = {
        "ui": {"resourceUri": CARD_URI, "visibility": ["model"]},
        "ui/resourceUri": CARD_URI,
    }
    return tool.model_copy(update={"meta": {**(tool.meta or {}), **card}})


def _refusal(text: str) -> ToolError:
    return ToolError(text, log_level=logging.INFO)
