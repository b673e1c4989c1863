"""Auth: one access token for all processes, renewed early by one of them, and once more when it is refused.

How a token is asked for is in ``grants``.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass

from criteo_provider.core.errors import AccessLost, Busy, Unavailable
from criteo_provider.core.outcome import Failure
from criteo_provider.core.ports import Token, TokenStore
from criteo_provider.criteo_api.failures import as_error, as_failure
from criteo_provider.criteo_api.grants import CONSENT_LOST, Grant, fetch
from criteo_provider.criteo_api.line import Line

log = logging.getLogger(__name__)

EARLY_S = 30.0  # with the spread no more than a minute: one token call in 14 minutes, no more
EARLY_SPREAD_S = 30.0  # so that one process comes first and the others find its token
LEASE_S = 45.0  # longer than a token call can take, see grants
NOTICE_EVERY_S = 5.0  # how soon a process finds that a person has connected anew, or has disconnected
_IN_TIME_S = 1.0  # a token that ends sooner is not worth sending
_LOOK_EVERY_S = 0.25
_TRY_EVERY_S = 5.0  # each try costs a slot
_LOOK_EARLY_EVERY_S = 2.0


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
    """The access token of one application or consent, for all threads of this process."""

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
        self._notice_again_s = 0.0

    def token(self) -> Token:
        """Return a token that is good now, renewing it when its end is near.

        Raises AccessLost, Busy or Unavailable when there is none to be had.
        """
        self._notice()
        held = self._held
        if held is None or not held.lasts(_IN_TIME_S):
            return self._insist(dead=None)
        if not held.lasts(self._early_s):
            self._renew_early(held)
        return (self._held or held).token

    def instead_of(self, dead: Token) -> Token:
        """Return another token than ``dead``, which Criteo has refused; many callers renew it once."""
        return self._insist(dead=dead)

    def _notice(self) -> None:
        """Go over to the token of a newer consent, whatever is left of the one before; raise if there is none now."""
        held = self._held
        if held is None or time.monotonic() < self._notice_again_s:
            return
        self._notice_again_s = time.monotonic() + NOTICE_EVERY_S
        stored = self._store.current()
        if stored is not None and stored.serial > held.token.serial:
            self._held = self._hold(stored)

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
            stored = self._store.current()
            found = self._use(stored, dead)
            if found is None and time.monotonic() >= try_again_s:
                # Fenced by the token that was looked at: one stored since is another's, and need not be replaced.
                found = self._renew(replacing=dead or stored)
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
        return self._use(self._store.current(), dead)

    def _use(self, token: Token | None, dead: Token | None) -> _Held | None:
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
            granted = fetch(self._line, self._grant)
        except BaseException as error:
            lost = getattr(error, "code", None) != CONSENT_LOST or self._grant.is_dead()
            self._store.abandon_renewal()
            if lost:
                raise
            return None  # somebody else has exchanged this refresh token: theirs is found at the next look
        token = self._store.finish_renewal(
            granted.value, ends_at_s=asked_at_s + granted.life_s, refresh_token=granted.refresh_token
        )
        if token is None:
            return self._take_over(None)
        self._held = self._hold(token)
        return self._held

    def _hold(self, token: Token) -> _Held:
        return _Held(token, time.monotonic() + token.ends_at_s - self._store.now_s())
