"""A stand-in for Stripe over HTTP that keeps its state: PaymentIntents, idempotency keys, charges.

It implements the four calls that are used as Stripe documents them. Its clock stands still until a
test moves it, and tests can have it fail.
"""

import json
import re
import threading
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl

KEY_LIFE_HOURS = 24
"""How long Stripe remembers an idempotency key."""

PARAMETERS = {
    "create": "amount currency customer payment_method allowed_payment_method_types[0]"
    " description metadata[invoice] metadata[key]",
    "confirm": "payment_method off_session",
    "cancel": "",
    "retrieve": "",
}
CUSTOMERS = {"cus_A", "cus_B"}
DECLINED = {
    "pm_declined": ("card_declined", "Your card was declined."),
    "pm_expired": ("expired_card", "Your card has expired."),
}

Step = Literal["create", "confirm", "cancel", "retrieve"]
FaultKind = int | Literal["drop before", "drop after", "hold before", "hold after"]


@dataclass
class Fault:
    """What goes wrong in the next call of `step`, for one invoice or for any."""

    step: Step
    kind: FaultKind
    """The HTTP status of an error; or whether the connection is dropped or held until `release`,
    before or after the stand-in has executed the call."""
    invoice: str | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.status = status
        self.error = {"type": kind, "code": code, "message": message}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the default of 5, twenty calls at once are too slow


TERMS = {"customer": "cus_A", "payment_method": "pm_visa"}
"""The fields of an invoice whose customer has a card."""


class StripeStandIn(AbstractContextManager["StripeStandIn"]):
    def __init__(self) -> None:
        self.intents: dict[str, dict[str, Any]] = {}
        self.charges: list[dict[str, Any]] = []
        """The fields of each intent at the time of its charge."""
        self.faults: list[Fault] = []
        self.hours = 0.0
        self._answers: dict[str, tuple[float, dict[str, str], int, bytes]] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def settings(self) -> dict[str, str]:
        """The settings for a worker that pays through it."""
        return {
            "PAYMENT_GATEWAY": "stripe",
            "STRIPE_API_KEY": "sk_test_ok",
            "STRIPE_API_BASE": self.url,
        }

    def __enter__(self) -> "StripeStandIn":
        # The default interval would make the shutdown at the end of each test slow.
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            fault.release.set()
        self._server.shutdown()
        self._server.server_close()

    def lay(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def forget(self, invoice: str) -> None:
        """Forgets the idempotency keys of an invoice, as Stripe does after a day."""
        with self._lock:
            for key, (_, parameters, *_) in list(self._answers.items()):
                if parameters.get("metadata[invoice]") == invoice:
                    del self._answers[key]

    def charged(self, invoice: str) -> list[str]:
        """The keys of an invoice's charges, one for each charge."""
        return sorted(c["metadata"]["key"] for c in self.charges if c["invoice"] == invoice)

    def fault(self, step: str, intent: str | None, parameters: dict[str, str]) -> Fault | None:
        known = self.intents.get(intent or "", {})
        invoice = parameters.get("metadata[invoice]") or known.get("invoice")
        for fault in self.faults:
            fits = fault.step == step and fault.invoice in (None, invoice)
            if fits and not fault.reached.is_set():
                fault.reached.set()
                return fault
        return None

    def answer(
        self, step: str, intent: str | None, parameters: dict[str, str], key: str, mode: str
    ) -> tuple[int, bytes]:
        """Executes a call, or repeats the answer for a known idempotency key."""
        with self._lock:
            if known := self._answers.get(key):
                at, before, status, body = known
                if self.hours - at < KEY_LIFE_HOURS:
                    if before != parameters:
                        raise Refusal(400, "", "Keys for other parameters.", "idempotency_error")
                    return status, body
            try:
                unknown = set(parameters) - set(PARAMETERS[step].split())
                if unknown:
                    raise Refusal(400, "parameter_unknown", f"Unknown: {', '.join(unknown)}")
                status, result = 200, self._do(step, intent, parameters, mode)
            except Refusal as refusal:
                status, result = refusal.status, {"error": refusal.error}
            body = json.dumps(result).encode()
            if key:
                self._answers[key] = (self.hours, parameters, status, body)
            return status, body

    def _do(
        self, step: str, name: str | None, parameters: dict[str, str], mode: str
    ) -> dict[str, Any]:
        if step == "create":
            return self._create(parameters, mode)
        intent = self.intents.get(name or "")
        if intent is None or intent["livemode"] != (mode == "live"):
            raise Refusal(404, "resource_missing", f"No such payment_intent: '{name}'")
        if step == "cancel":
            self._expect(intent, "requires_payment_method", "requires_action")
            intent["status"] = "canceled"
        if step == "confirm":
            self._confirm(intent, parameters["payment_method"])
        return intent

    def _create(self, parameters: dict[str, str], mode: str) -> dict[str, Any]:
        if parameters["customer"] not in CUSTOMERS:
            name = parameters["customer"]
            raise Refusal(400, "resource_missing", f"No such customer: '{name}'")
        amount = int(parameters["amount"])
        if amount < 50:
            raise Refusal(400, "amount_too_small", "Amount must be at least $0.50 usd")
        name = f"pi_{len(self.intents) + 1}"
        self.intents[name] = {
            "id": name,
            "object": "payment_intent",
            "livemode": mode == "live",
            "status": "requires_payment_method",
            "amount": amount,
            "currency": parameters["currency"],
            "customer": parameters["customer"],
            "invoice": parameters["metadata[invoice]"],
            "metadata": {"key": parameters["metadata[key]"]},
        }
        return self.intents[name]

    def _confirm(self, intent: dict[str, Any], card: str) -> None:
        self._expect(intent, "requires_payment_method", "requires_action")
        if card in DECLINED:
            raise Refusal(402, *DECLINED[card], "card_error")
        if card == "pm_of_another_customer":
            raise Refusal(400, "payment_method_invalid", "It belongs to another Customer.")
        if card == "pm_authenticate":
            intent["status"] = "requires_action"
        elif card == "pm_slow":
            intent["status"] = "processing"
        else:
            self.settle(intent, card)

    def settle(self, intent: dict[str, Any], card: str) -> None:
        intent["status"] = "succeeded"
        self.charges.append({**intent, "payment_method": card})

    def _expect(self, intent: dict[str, Any], *statuses: str) -> None:
        if intent["status"] not in statuses:
            text = f"You cannot do this: its status is {intent['status']}."
            raise Refusal(400, "payment_intent_unexpected_state", text)


def _handler(stand_in: StripeStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(ConnectionError):  # a killed client
                super().handle()

        def do_GET(self) -> None:
            self.serve({})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.serve(dict(parse_qsl(self.rfile.read(length).decode())))

        def serve(self, parameters: dict[str, str]) -> None:
            path = re.fullmatch(r"/v1/payment_intents(?:/(\w+?))?(?:/(\w+))?", self.path)
            assert path, self.path
            intent = path[1]
            step = path[2] or ("create" if intent is None else "retrieve")
            fault = stand_in.fault(step, intent, parameters)
            try:
                self.befall(fault, "before")
                status, body = self.result(step, intent, parameters)
                self.befall(fault, "after")
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:  # dropped here, or by a client that was killed
                self.close_connection = True

        def befall(self, fault: Fault | None, when: str) -> None:
            if fault and fault.kind == f"hold {when}":
                fault.release.wait()
            if fault and fault.kind == f"drop {when}":
                raise ConnectionAbortedError
            if fault and isinstance(fault.kind, int) and when == "before":
                kinds = {409: "idempotency_key_in_use", 429: "rate_limit"}
                error = {"code": kinds.get(fault.kind), "message": f"Refused with {fault.kind}."}
                body = json.dumps({"error": {"type": "api_error", **error}}).encode()
                self.send_response(fault.kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)
                raise ConnectionAbortedError

        def result(
            self, step: str, intent: str | None, parameters: dict[str, str]
        ) -> tuple[int, bytes]:
            mode = re.fullmatch(r"Bearer [sr]k_(test|live)_ok", self.headers["Authorization"])
            try:
                if not mode:
                    raise Refusal(401, "", "Invalid API Key provided")
                key = self.headers.get("Idempotency-Key") or ""
                return stand_in.answer(step, intent, parameters, key, mode[1])
            except Refusal as refusal:
                return refusal.status, json.dumps({"error": refusal.error}).encode()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
