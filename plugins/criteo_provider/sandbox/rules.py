"""The switches of the sandbox: limits, and the choices Criteo's documentation leaves open."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

VersionState = Literal["candidate", "stable", "deprecated", "gone"]
Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

VERSIONS: dict[str, VersionState] = {
    "2025-07": "gone",
    "2025-10": "gone",
    "2026-01": "deprecated",
    "2026-07": "stable",
    "2027-01": "candidate",
}
SUNSET = "Tue, 02 Feb 2027 00:00:00 GMT"


class Rules(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How this Criteo behaves. Where its documentation says nothing the default is the stricter reading."""

    membership: Literal["real", "count"] = "real"
    """Remember who is in a list, or only how many (tens of millions of people at no memory)."""
    latency_s: Seconds = 0.0
    """Added to every answer, after the change took effect."""

    limit: Count = 250
    """Calls in a window for a client-credentials application."""
    limit_per_account: Count = 10
    """Calls in a window for each account consented to an authorization-code grant."""
    window_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    token_calls_count: bool = True
    """Whether calls of the token endpoint fill the window too (unknown at Criteo)."""
    busy_body: Literal["envelope", "object", "html", "empty"] = "envelope"
    """The body of a 429 (undocumented)."""
    retry_after: bool = False

    token_life_s: Seconds = 900.0
    code_life_s: Seconds = 600.0
    refresh_rotation: Literal["strict", "lenient"] = "lenient"
    """Whether a refresh token dies when it is exchanged (strict), or still works once more."""
    invalid_client_status: Literal[400, 401] = 401

    max_identifiers: Count = 50_000
    max_body_bytes: Count = 10_000_000
    sample_size: Count = 10
    """How many invalid identifiers an answer names."""
    invalid_share: Share = 0.0
    """Share of the well-formed identifiers that are called invalid all the same, always the same ones."""

    segment_cap: Count = 1_000
    """Segments an advertiser may have."""
    quota_code: str = "too-many-audiences"
    bulk_failure: Literal["errors200", "warnings200", "status400"] = "errors200"
    foreign_segment_status: Literal[403, 404] = 403

    match_rate: Share = 0.63
    """Share of the identifiers that match, unless people were made known (0: nobody, even then)."""
    statistics_lag_s: Seconds = 0.0
    """Time between two processing runs; 0: statistics are always up to date."""
    hide_sizes_below: Count = 1_000
    """compute-sizes answers 0 below this many matches."""

    versions: dict[str, VersionState] = msgspec.field(default_factory=lambda: dict(VERSIONS))

    def changed(self, patch: dict[str, object]) -> Rules:
        """Return these rules with some replaced; raises ``msgspec.ValidationError`` naming the wrong one."""
        return msgspec.convert({**msgspec.to_builtins(self), **patch}, Rules)
