"""Pays through Stripe: a PaymentIntent for each attempt, with a card that the customer has saved.

A PaymentIntent makes at most one successful charge, however often and however late it is confirmed,
and none after it is cancelled (docs.stripe.com/payments/paymentintents/lifecycle).
"""

import asyncio
import logging
import re
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from functools import cache
from hashlib import sha256

import httpx2
import stripe
from pydantic import BaseModel, ValidationError

from invoices.wording import sanitized
from payments.gateway import (
    GatewayUnavailable,
    InvalidPayment,
    Payment,
    PaymentConflict,
    PaymentDeclined,
)
from settings import read_setting
from startup import StartupError, is_web_address

CALL_SECONDS = 10
"""The limit for a whole call to Stripe, from the DNS lookup to the end of the answer."""
ANSWER_LIMIT = 1_000_000
"""The limit for an answer, in bytes. Stripe's answers have a few thousand."""

# Currencies whose amounts Stripe takes in whole units; in hundredths, but only whole units; and in
# thousandths. It takes all others in hundredths (docs.stripe.com/currencies).
_WHOLE = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF"
_WHOLE_IN_HUNDREDTHS = "ISK UGX"
_THOUSANDTHS = "BHD JOD KWD OMR TND"


def open_stripe() -> "StripeGateway":
    """The gateway for `STRIPE_API_KEY`. `STRIPE_API_BASE` is the address of a stand-in for Stripe.

    Raises:
        StartupError: there is no key, or it doesn't say whether it is for test or for live mode, or
            the address isn't an http or https address.
    """
    key = read_setting("STRIPE_API_KEY")
    mode = re.fullmatch("(?:sk|rk)_(test|live)_[!-~]+", key)
    if not mode:
        raise StartupError(
            "PAYMENT_GATEWAY=stripe needs STRIPE_API_KEY, a secret or restricted key that begins"
            " with sk_test_, rk_test_, sk_live_ or rk_live_ and has no blanks or line breaks."
        )
    base = read_setting("STRIPE_API_BASE") or stripe.DEFAULT_API_BASE
    if not is_web_address(base):
        raise StartupError("STRIPE_API_BASE must begin with http:// or https:// and a host.")
    return StripeGateway(key, f"stripe {mode[1]}", base)


class StripeGateway:
    """A `PaymentGateway`. `name` says whether the key is for test or for live mode."""

    def __init__(self, key: str, name: str, base: str) -> None:
        self.name = name
        # The SDK logs every request, but the worker's log already has a line for each payment.
        logging.getLogger("stripe").setLevel(logging.WARNING)
        # The SDK mustn't retry, because Temporal does.
        self._intents = stripe.StripeClient(
            key,
            base_addresses={"api": base},
            http_client=_HTTPClient(),
            max_network_retries=0,
        ).v1.payment_intents

    def check(self, payment: Payment) -> None:
        for field in ("customer", "payment_method"):
            if not getattr(payment, field):
                raise InvalidPayment(field, "is required, since Stripe pays")
        minor_units(payment.amount, payment.currency)

    def prepare(self, payment: Payment, attempt: int) -> str:
        assert payment.customer, "checked"
        key = f"{payment.idempotency_key}/{attempt}"
        try:
            intent = self._intents.create(
                {
                    "amount": minor_units(payment.amount, payment.currency),
                    "currency": payment.currency.lower(),
                    "customer": payment.customer,
                    "allowed_payment_method_types": ["card"],
                    "description": f"Invoice {payment.invoice_id}: {payment.item}",
                    "metadata": {"invoice": payment.invoice_id, "key": payment.idempotency_key},
                },
                # Keeps a repeated attempt from leaving a second intent behind. It isn't needed to
                # avoid a second charge, because only the intent in the ledger is ever confirmed.
                # Hashed, because a header takes only Latin letters, and a key 255 of them.
                {"idempotency_key": sha256(key.encode()).hexdigest()},
            )
        except stripe.IdempotencyError:
            raise PaymentConflict(
                f"{payment.idempotency_key} was sent to Stripe as another payment within the last"
                f" 24 hours and can't be sent as {payment}"
            ) from None
        except (stripe.CardError, stripe.InvalidRequestError) as error:
            raise PaymentDeclined(f"declined by Stripe: {_reason(error)}") from error
        except stripe.StripeError as error:
            # Without the cause, which would go into the history and may quote the headers.
            raise GatewayUnavailable(f"Stripe is unavailable: {_reason(error)}") from None
        return intent.id

    def pay(self, reference: str, payment: Payment) -> None:
        assert payment.payment_method, "checked"
        try:
            status, reason = self._confirm(reference, payment.payment_method)
        except stripe.StripeError as error:
            # The outcome isn't known, or a person has to correct the key.
            raise GatewayUnavailable(f"Stripe is unavailable: {_reason(error)}") from None
        if status == "canceled":
            raise PaymentDeclined(f"declined by Stripe: {reason}")
        if status != "succeeded":
            raise GatewayUnavailable(f"Stripe has not settled the payment yet: {status}")

    def stop(self, reference: str) -> bool:
        try:
            self._cancel(reference)
            status = self._intents.retrieve(reference).status
        except stripe.StripeError as error:
            raise GatewayUnavailable(f"Stripe is unavailable: {_reason(error)}") from None
        if status not in {"succeeded", "canceled"}:
            raise GatewayUnavailable(f"Stripe has not settled the payment yet: {status}")
        return status == "succeeded"

    def _confirm(self, reference: str, payment_method: str) -> tuple[str, str]:
        """Confirms the intent. Returns its status and, if it is cancelled, the reason."""
        reason = "the payment was cancelled there"
        try:
            # Without an idempotency key, since Stripe would repeat an old decline for 24 hours.
            intent = self._intents.confirm(
                reference, {"payment_method": payment_method, "off_session": True}
            )
        except (stripe.CardError, stripe.InvalidRequestError) as error:
            # In an unexpected state, it may be paid or being paid, so it isn't cancelled.
            if error.code != "payment_intent_unexpected_state":
                reason = _reason(error)
                self._cancel(reference)
            intent = self._intents.retrieve(reference)
        if intent.status == "requires_action":
            reason = "the customer would have to authenticate"
            self._cancel(reference)
            intent = self._intents.retrieve(reference)
        return intent.status, reason

    def _cancel(self, reference: str) -> None:
        # Stripe refuses if it is already paid, being paid or cancelled. Callers check its status.
        with suppress(stripe.InvalidRequestError):
            self._intents.cancel(reference)


class _HTTPClient(stripe.HTTPClient):
    """Limits the time of a call and the size of its answer, and checks the answer's form.

    The SDK's own clients limit only each wait for the next bytes, so a slow answer may never end,
    and don't limit the size.
    """

    name = "httpx2"

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: str | None = None,
        **_: object,
    ) -> tuple[str, int, Mapping[str, str]]:
        call = _call(method, url, {**(headers or {}), "Accept-Encoding": "identity"}, post_data)
        try:
            body, response = asyncio.run_coroutine_threadsafe(call, _loop()).result()
        # OSError and ValueError: the environment has wrong settings for certificates or a proxy.
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            # Without its text and its cause, which may quote the request's headers.
            reason = type(error).__name__
            raise stripe.APIConnectionError(reason) from None  # type: ignore[no-untyped-call]
        try:
            expected = _Intent if response.is_success else _Refusal
            expected.model_validate_json(body)
        except ValidationError:
            raise _odd_answer(f"with HTTP status {response.status_code}") from None
        return body.decode(), response.status_code, response.headers

    def close(self) -> None:
        pass


class _Intent(BaseModel):
    """The fields that are read from an answer."""

    id: str
    status: str


class _Error(BaseModel):
    type: str
    code: str | None = None
    message: str | None = None


class _Refusal(BaseModel):
    error: _Error


async def _call(
    method: str, url: str, headers: Mapping[str, str], content: str | None
) -> tuple[bytes, httpx2.Response]:
    body = bytearray()
    async with (
        asyncio.timeout(CALL_SECONDS),
        _http_client().stream(method, url, content=content, headers=headers) as response,
    ):
        async for part in response.aiter_raw():
            body += part
            if len(body) > ANSWER_LIMIT:
                raise _odd_answer(f"of more than {ANSWER_LIMIT:,} bytes")
    return bytes(body), response


def _odd_answer(what: str) -> stripe.APIError:
    return stripe.APIError(f"an answer {what} that isn't like one of Stripe's")


@cache
def _http_client() -> httpx2.AsyncClient:
    """The client for `_loop`'s thread. It keeps connections for later calls."""
    certificates = ssl.create_default_context(cafile=stripe.ca_bundle_path)
    return httpx2.AsyncClient(verify=certificates, timeout=None)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """An event loop in a thread of its own, which doesn't keep the process from ending."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="stripe", daemon=True).start()
    return loop


def minor_units(amount: Decimal, currency: str) -> int:
    """`amount` as Stripe takes it: 1999 for 19.99 dollars, 500 for 500 yen.

    Raises:
        InvalidPayment: the currency has no such fraction.
    """
    whole = currency in _WHOLE.split()
    if (whole or currency in _WHOLE_IN_HUNDREDTHS.split()) and amount != int(amount):
        raise InvalidPayment("amount", f"must be whole in {currency}")
    factor = 1 if whole else 1000 if currency in _THOUSANDTHS.split() else 100
    if (units := amount * factor) != int(units):
        raise InvalidPayment("amount", f"has too many decimals for {currency}")
    return int(units)


def _reason(error: stripe.StripeError) -> str:
    if isinstance(error, stripe.APIConnectionError):
        return "it can't be reached, or gave no answer in time"
    return sanitized(error.user_message or type(error).__name__, 300)
