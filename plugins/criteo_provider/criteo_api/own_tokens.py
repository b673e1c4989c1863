"""Own tokens: a token store in memory, for a client that shares with nobody."""

from __future__ import annotations

import threading
import time

from criteo_provider.core.ports import Token


class OwnTokens:
    """The token of one client alone: a check with it tries the client's own pair, not a token made earlier."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._lease_until_s = 0.0

    def current(self) -> Token | None:
        """Return the stored token, whether fresh or not."""
        return self._token

    def begin_renewal(self, *, dead_serial: int | None, lease_s: float) -> bool:
        """Take the renewal lease; False when another thread holds it or the dead token is replaced already."""
        with self._lock:
            replaced = self._token is not None and dead_serial not in (None, self._token.serial)
            if replaced or self._lease_until_s > self.now_s():
                return False
            self._lease_until_s = self.now_s() + lease_s
            return True

    def finish_renewal(self, value: str, *, ends_at_s: float, refresh_token: str | None = None) -> Token:
        """Store a new token and give the lease back."""
        with self._lock:
            serial = 1 if self._token is None else self._token.serial + 1
            self._token, self._lease_until_s = Token(value, ends_at_s, serial), 0.0
            return self._token

    def abandon_renewal(self) -> None:
        """Give the lease back without a token."""
        self._lease_until_s = 0.0

    def now_s(self) -> float:
        """Tell the time in epoch seconds."""
        return time.time()
