"""How many requests a minute Criteo grants, and how often a stream may have one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

GrantType = Literal["client_credentials", "authorization_code"]

# Criteo's page rate-limits: per application, or per ad account that the consent covers.
PER_APPLICATION = 250
PER_AD_ACCOUNT = 10


def budget_per_min(grant_type: GrantType, ad_accounts: int | None, configured: int | None) -> int:
    """Return the requests a minute to keep to: what the connection says, else what the grant allows.

    While nobody has counted the ad accounts of a consent, it is taken to cover one.
    """
    if configured is not None:
        return configured
    return PER_APPLICATION if grant_type == "client_credentials" else PER_AD_ACCOUNT * max(ad_accounts or 1, 1)


@dataclass(frozen=True, slots=True)
class Tempo:
    """How often the people of a canvas can be flushed: its own interval, unless live streams share too few requests.

    A stream is a lane (audience, operation, identifier type) with people under way; each needs a request per flush.
    """

    declared_s: float
    streams: int
    budget_per_min: int

    @property
    def needed_s(self) -> float:
        """The shortest interval at which every stream gets its request."""
        return 60.0 * self.streams / self.budget_per_min

    @property
    def flush_s(self) -> float:
        """How long people gather before they are sent."""
        return max(self.declared_s, self.needed_s)

    @property
    def is_stretched(self) -> bool:
        """Whether the budget asks for more patience than the canvas."""
        return self.needed_s > self.declared_s

    @property
    def look_every_s(self) -> float:
        """How often to read a source.

        At half the interval, so that whoever comes right after a look is still in a request in time; but not
        where that would gather twice the requests the budget has.
        """
        return max(self.declared_s / 2, self.needed_s)

    @property
    def sentence(self) -> str:
        """Why it takes longer than declared; empty when it does not."""
        if not self.is_stretched:
            return ""
        share = "stream shares" if self.streams == 1 else "streams share"
        asked = "request" if self.budget_per_min == 1 else "requests"
        return f"flush every {math.ceil(self.flush_s)} s: {self.streams} {share} {self.budget_per_min} {asked} a minute"
