"""Errors by what happens next.

::

    CriteoSyncError
    ├── Misconfigured       stop now and say which key; never retried by itself
    ├── AccessLost          token, consent or permission: people stay pending, probes go on, heals by itself
    ├── Busy                Criteo's limit: the whole house waits, nobody loses an attempt
    ├── Unavailable         server or network: again later, inside the patience window
    ├── Refused             Criteo refuses the content of this call
    │   ├── AmbiguousAudience   several audiences have this name: a person must choose
    │   ├── UnsuitableAudience  wrong type or read-only: a person must choose another
    │   └── QuotaReached        unable to create new audiences; existing lists go on
    ├── AudienceGone        the audience is no longer at Criteo: people stay pending
    ├── SourceFailed        a source cannot be read: its cursor stays, the other canvases go on
    ├── LedgerRefused       this ledger must not be used from here
    ├── LedgerUnwritable    nothing can be written now: nothing was half-written, it goes on when that is over
    └── LostClaim           somebody else owns this work now: drop it silently, count it
"""

from __future__ import annotations


class CriteoSyncError(Exception):
    """Base of everything this package raises on purpose; its text never holds an identifier or a secret."""


class Misconfigured(CriteoSyncError):
    """A setting is wrong: the text names the place, the key and the mend."""


class AccessLost(CriteoSyncError):
    """Criteo does not let us in any more; ``scope`` says how far the trouble reaches."""

    def __init__(self, sentence: str, *, scope: str = "connection", code: str = "access-lost") -> None:
        super().__init__(sentence)
        self.scope = scope
        self.code = code


class Busy(CriteoSyncError):
    """Criteo's rate limit is reached; come back after ``wait_s`` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"Criteo's rate limit is reached; next call in {wait_s:.0f} s.")
        self.wait_s = wait_s


class Unavailable(CriteoSyncError):
    """Criteo or the network does not answer usefully; ``maybe_applied`` when the call may have taken effect."""

    def __init__(self, sentence: str, *, code: str = "unavailable", maybe_applied: bool = False) -> None:
        super().__init__(sentence)
        self.code = code
        self.maybe_applied = maybe_applied


class Refused(CriteoSyncError):
    """Criteo refuses the content of this call; the same call would be refused again."""

    def __init__(self, sentence: str, *, code: str = "refused") -> None:
        super().__init__(sentence)
        self.code = code


class AmbiguousAudience(Refused):
    """Several audiences of the ad account have exactly this name."""


class UnsuitableAudience(Refused):
    """The audience exists but people cannot be put into it (other type, or read-only)."""


class QuotaReached(Refused):
    """Criteo is unable to create new audiences in this ad account."""


class AudienceGone(CriteoSyncError):
    """The audience is not at Criteo (any more)."""

    def __init__(self, sentence: str, *, code: str = "audience-gone") -> None:
        super().__init__(sentence)
        self.code = code


class SourceFailed(CriteoSyncError):
    """A source cannot be read now; nothing was entered from it and its cursor stays."""


class LedgerRefused(CriteoSyncError):
    """The ledger must not be used from this place; the text names the mend."""


class LedgerUnwritable(CriteoSyncError):
    """The ledger's database takes no writes, or is away, at the moment; what was begun is as if it had not been."""


class LostClaim(CriteoSyncError):
    """The work claimed belongs to another owner now."""
