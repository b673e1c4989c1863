"""Auth: one access token for all processes, renewed early by one of them, and once more when it is refused.

Source: Criteo's page authentication (life 900 s, several may be valid at once); RFC 6749 for the errors.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode

from criteo_provider.core import outcome
from criteo_provider.core.answer import Answer, plain_words, read_envelope
from criteo_provider.core.errors import AccessLost, Busy, Unavailable
from criteo_provider.core.outcome import Failure, Trouble, answer_of, outcome_of_exception
from criteo_provider.core.ports import Token, TokenStore
from criteo_provider.criteo_api.failures import as_error, as_failure
from criteo_provider.criteo_api.line import ClientSettings, Line, Reply

log = logging.getLogger(__name__)

TOKEN_PATH = "/oauth2/token"  # noqa: S105 - an address, no secret
EARLY_S = 60.0
EARLY_SPREAD_S = 30.0  # so that one process comes first and the others find its token
LEASE_S = 45.0
_IN_TIME_S = 1.0  # a token that ends sooner is not worth sending
_LOOK_EVERY_S = 0.25
_TRY_EVERY_S = 5.0  # each try costs a slot
_LOOK_EARLY_EVERY_S = 2.0
_DEFAULT_LIFE_S = 900.0
_LONGEST_LIFE_S = 86_400.0
_PLAIN_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Granted:
    """What a token call brought: the access token and its life in seconds."""

    value: str = field(repr=False)
    life_s: float


class Grant(Protocol):
    """A way to ask for an access token."""

    def form(self) -> dict[str, str]:
        """Return the fields of the token call."""


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """The grant of an application on its own."""

    settings: ClientSettings

    def form(self) -> dict[str, str]:
        return {
            "grant_type": "client_credentials",
            "client_id": self.settings.client_id.strip(),
            "client_secret": self.settings.client_secret.strip(),
        }


@dataclass(frozen=True, slots=True)
class _Held:
    """A token and when it ends on this process's monotonic clock."""

    token: Token
    ends_s: float

    def lasts(self, more_s: float) -> bool:
        return time.monotonic() + more_s < self.ends_s

    def serves_instead_of(self, dead: Token | None) -> bool:
        return self.lasts(_IN_TIME_S) and (dead is None or self.token.serial != dead.serial)


class Access:
    """The access token of one application, for all threads of this process."""

    def __init__(self, line: Line, store: TokenStore, grant: Grant, *, interactive: bool = False) -> None:
        self._line = line
        self._store = store
        self._grant = grant
        self._interactive = interactive
        self._early_s = EARLY_S + random.uniform(0, EARLY_SPREAD_S)  # noqa: S311 - spread, no secret
        self._one_at_a_time = threading.Lock()
        self._held: _Held | None = None
        self._failed: Failure | None = None
        self._failed_s = 0.0
        self._look_again_s = 0.0

    def token(self) -> Token:
        """Return a token that is good now, renewing it when its end is near.

        Raises AccessLost, Busy or Unavailable when there is none to be had.
        """
        held = self._held
        if held is None or not held.lasts(_IN_TIME_S):
            return self._insist(dead=None)
        if not held.lasts(self._early_s):
            self._renew_early(held)
        return (self._held or held).token

    def instead_of(self, dead: Token) -> Token:
        """Return another token than ``dead``, which Criteo has refused; many callers renew it once."""
        return self._insist(dead=dead)

    def _renew_early(self, held: _Held) -> None:
        """Let one thread of one process try; everybody else goes on with the token there is."""
        if time.monotonic() < self._look_again_s or not self._one_at_a_time.acquire(blocking=False):
            return
        try:
            self._look_again_s = time.monotonic() + _LOOK_EARLY_EVERY_S
            stored = self._take_over(dead=None)
            if stored is None or not stored.lasts(self._early_s):
                self._renew(replacing=held.token)
        except (AccessLost, Busy, Unavailable) as error:
            log.info("The access token could not be renewed early: %s", error)
        finally:
            self._one_at_a_time.release()

    def _insist(self, *, dead: Token | None) -> Token:
        """Find a token, or renew it; whoever waited while somebody else failed shares the failure."""
        asked_s = time.monotonic()
        with self._one_at_a_time:
            if self._held is not None and self._held.serves_instead_of(dead):
                return self._held.token
            if self._failed is not None and self._failed_s >= asked_s:
                raise as_error(self._failed)
            try:
                return self._find_or_renew(dead).token
            except (AccessLost, Busy, Unavailable) as error:
                self._failed, self._failed_s = as_failure(error), time.monotonic()
                raise

    def _find_or_renew(self, dead: Token | None) -> _Held:
        give_up_s = time.monotonic() + 2 * LEASE_S
        try_again_s = 0.0
        while time.monotonic() < give_up_s:
            found = self._take_over(dead)
            if found is None and time.monotonic() >= try_again_s:
                found = self._renew(replacing=dead or self._store.current())
                try_again_s = time.monotonic() + _TRY_EVERY_S
            if found is not None:
                return found
            time.sleep(_LOOK_EVERY_S)
        raise Unavailable(
            "Another process is renewing the access token and does not finish. People stay pending.",
            code="token-renewal-stuck",
        )

    def _take_over(self, dead: Token | None) -> _Held | None:
        """Take the token over that another process has stored, if it is good."""
        token = self._store.current()
        if token is None:
            return None
        stored = self._hold(token)
        if not stored.serves_instead_of(dead):
            return None
        self._held = stored
        return stored

    def _renew(self, *, replacing: Token | None) -> _Held | None:
        """Fetch a token if the lease is ours; None when somebody else is at it."""
        # The slot first: waiting for it must not eat up the lease.
        self._line.wait_for_slot(interactive=self._interactive)
        dead_serial = None if replacing is None else replacing.serial
        if not self._store.begin_renewal(dead_serial=dead_serial, lease_s=LEASE_S):
            return None
        try:
            # Without a token there is no serial to be fenced by: somebody may have been quicker.
            found = self._take_over(None) if replacing is None else None
            if found is not None:
                self._store.abandon_renewal()
                return found
            asked_at_s = self._store.now_s()
            granted = self._fetch()
        except BaseException:
            self._store.abandon_renewal()
            raise
        token = self._store.finish_renewal(granted.value, ends_at_s=asked_at_s + granted.life_s)
        self._held = self._hold(token)
        return self._held

    def _hold(self, token: Token) -> _Held:
        return _Held(token, time.monotonic() + token.ends_at_s - self._store.now_s())

    def _fetch(self) -> Granted:
        form = urlencode(self._grant.form()).encode()  # percent-encodes the + / = & % of secrets
        reply = self._line.send("POST", TOKEN_PATH, pieces=(form,), content_type="application/x-www-form-urlencoded")
        if isinstance(reply, Trouble):
            raise as_error(outcome_of_exception(reply))
        return read_grant(reply, busy_before=self._line.busy_before)


def read_grant(reply: Reply, *, busy_before: int = 0) -> Granted:
    """Read the answer of the token call; raises AccessLost, Busy or Unavailable."""
    answer = answer_of(reply.status, reply.headers, reply.body, now_s=time.time(), busy_before=busy_before)
    if isinstance(answer, outcome.Busy | outcome.Unavailable):
        raise as_error(answer)
    document = json.loads(reply.body) if read_envelope(reply.body) else {}
    if not isinstance(answer, Answer):
        raise _refusal(document.get("error"), reply.status)
    value, life_s = document.get("access_token"), document.get("expires_in")
    if not (isinstance(value, str) and _PLAIN_TOKEN.fullmatch(value)):
        raise Unavailable(
            "The answer to the token call holds no token. Check proxy and base URL in the Criteo connection.",
            code="unreadable-answer",
        )
    if isinstance(life_s, bool) or not isinstance(life_s, int | float) or not life_s > 0:
        life_s = _DEFAULT_LIFE_S
    return Granted(value, min(float(life_s), _LONGEST_LIFE_S))


def _refusal(error: object, status: int) -> AccessLost:
    """Name what OAuth's ``error`` means; with invalid_client Criteo answers 400 or 401."""
    if error == "invalid_grant":
        return AccessLost(
            "Criteo does not honour the consent of this connection any more. Connect the account again.",
            code="consent-lost",
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
