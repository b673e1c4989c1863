"""Grants: the three ways to ask Criteo for an access token, and how its answer is read.

Source: Criteo's pages authentication and authorization-code-setup (life 900 s, refresh tokens change with each
use and last six months); RFC 6749 for the errors, RFC 7636 for the verifier.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

from criteo_provider.core import outcome
from criteo_provider.core.answer import Answer, plain_words, read_envelope
from criteo_provider.core.errors import AccessLost, Unavailable
from criteo_provider.core.outcome import Trouble, answer_of, outcome_of_exception
from criteo_provider.core.ports import ConsentStore
from criteo_provider.criteo_api.failures import as_error
from criteo_provider.criteo_api.line import ClientSettings, Line, Patience, Reply

TOKEN_PATH = "/oauth2/token"  # noqa: S105 - an address, no secret
CONSENT_LOST = "consent-lost"
# All of it together is shorter than the lease of a renewal: nobody else begins while a call is under way.
TOKEN_PATIENCE = Patience(connect_s=4.0, pool_s=4.0, write_s=4.0, read_s=25.0, deadline_s=30.0)
_DEFAULT_LIFE_S = 900.0
_LONGEST_LIFE_S = 86_400.0
_PLAIN_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Granted:
    """What a token call brought: an access token, its life in seconds, and what the next one is asked for with."""

    value: str = field(repr=False)
    life_s: float
    refresh_token: str | None = field(default=None, repr=False)


class Grant(Protocol):
    """A way to ask for an access token."""

    def form(self) -> dict[str, str]:
        """Return the fields of the token call; raises AccessLost when there is nothing to ask with."""

    def is_dead(self) -> bool:
        """Tell, after Criteo has refused the grant, whether that is so for good."""


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """The grant of an application on its own."""

    settings: ClientSettings

    def form(self) -> dict[str, str]:
        return {"grant_type": "client_credentials", **_pair(self.settings)}

    def is_dead(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """The grant of a consent, asked for with the refresh token that came with the last access token."""

    settings: ClientSettings
    store: ConsentStore

    def form(self) -> dict[str, str]:
        refresh_token = self.store.refresh_token()
        return {"grant_type": "refresh_token", "refresh_token": refresh_token, **_pair(self.settings)}

    def is_dead(self) -> bool:
        return self.store.refused()


@dataclass(frozen=True, slots=True)
class AuthorizationCode:
    """The first token of a consent: a code is good once, with the redirect URI and verifier of its request."""

    settings: ClientSettings
    code: str = field(repr=False)
    redirect_uri: str
    verifier: str = field(repr=False)

    def form(self) -> dict[str, str]:
        return {
            "grant_type": "authorization_code",
            "code": self.code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
            **_pair(self.settings),
        }

    def is_dead(self) -> bool:
        return True


def fetch(line: Line, grant: Grant) -> Granted:
    """Make one token call, inside a slot taken before; raises AccessLost, Busy or Unavailable."""
    form = urlencode(grant.form()).encode()  # percent-encodes the + / = & % of secrets
    reply = line.send(
        "POST",
        TOKEN_PATH,
        pieces=(form,),
        content_type="application/x-www-form-urlencoded",
        patience=TOKEN_PATIENCE,
    )
    if isinstance(reply, Trouble):
        raise as_error(outcome_of_exception(reply))
    return read_grant(reply, busy_before=line.busy_before)


def exchange(line: Line, grant: AuthorizationCode) -> Granted:
    """Exchange a code for the tokens of a consent; raises AccessLost, Busy or Unavailable."""
    line.wait_for_slot(interactive=True)
    try:
        granted = fetch(line, grant)
    except AccessLost as error:
        if error.code != CONSENT_LOST:
            raise
        raise AccessLost(
            "Criteo does not take the answer it has sent: it is used already, too old, or was asked for from another "
            "address. Start again with Connect Criteo.",
            code="code-refused",
        ) from None
    if granted.refresh_token is None:
        raise AccessLost(
            "Criteo gave access for 15 minutes only, and no refresh token to go on with. Check that the application "
            "in Criteo's developer portal is one with authorization code.",
            code="no-refresh-token",
        )
    return granted


def read_grant(reply: Reply, *, busy_before: int = 0) -> Granted:
    """Read the answer of the token call; raises AccessLost, Busy or Unavailable."""
    answer = answer_of(reply.status, reply.headers, reply.body, now_s=time.time(), busy_before=busy_before)
    if isinstance(answer, outcome.Busy | outcome.Unavailable):
        raise as_error(answer)
    document = json.loads(reply.body) if read_envelope(reply.body) else {}
    if not isinstance(answer, Answer):
        raise _refusal(document.get("error"), reply.status)
    value, life_s, refresh_token = (document.get(name) for name in ("access_token", "expires_in", "refresh_token"))
    if not (isinstance(value, str) and _PLAIN_TOKEN.fullmatch(value)):
        raise Unavailable(
            "The answer to the token call holds no token. Check proxy and base URL in the Criteo connection.",
            code="unreadable-answer",
        )
    if isinstance(life_s, bool) or not isinstance(life_s, int | float) or not life_s > 0:
        life_s = _DEFAULT_LIFE_S
    return Granted(
        value,
        min(float(life_s), _LONGEST_LIFE_S),
        refresh_token if isinstance(refresh_token, str) and refresh_token else None,
    )


def _pair(settings: ClientSettings) -> dict[str, str]:
    return {"client_id": settings.client_id.strip(), "client_secret": settings.client_secret.strip()}


def _refusal(error: object, status: int) -> AccessLost:
    """Name what OAuth's ``error`` means; with invalid_client Criteo answers 400 or 401."""
    if error == "invalid_grant":
        return AccessLost(
            "Criteo does not honour the consent of this connection any more: it was revoked, the role of the person "
            "who gave it has changed, or nobody used it for six months. Reconnect on the Accounts page.",
            code=CONSENT_LOST,
        )
    if error in ("invalid_client", "unauthorized_client") or (error is None and status == 401):
        return AccessLost(
            "Criteo does not know this pair of client id and secret. Check both in the Criteo connection "
            "(login and password), or make a new pair in Criteo's developer portal.",
            code="wrong-client-pair",
        )
    named = plain_words(error.replace("_", "-")) if isinstance(error, str) else ""
    return AccessLost(
        f"Criteo refuses the token call (HTTP {status}{named and ', ' + named}). "
        "Check client id, secret and base URL in the Criteo connection.",
        code="token-call-refused",
    )
