"""Quota: how many audiences an ad account may have, and what to say when it is full."""

from __future__ import annotations

from collections.abc import Sequence

# Criteo's cap for each ad account, and from where people are warned.
MOST_AUDIENCES = 1_000
WARN_FROM = 950
_NAMED = 20


def nearly_full(ad_account: str, audiences: int) -> str:
    """Say how full an ad account is."""
    return (
        f"Ad account {ad_account} has {audiences:,} of at most {MOST_AUDIENCES:,} audiences. "
        "Delete those nobody uses at Criteo before no new ones can be created; existing ones go on."
    )


def unable_to_create(ad_account: str, audiences: int, unused: Sequence[str]) -> str:
    """Say why an audience cannot be created, and which ones could make room."""
    named = ", ".join(f"“{name}”" for name in unused[:_NAMED])
    more = f" and {len(unused) - _NAMED:,} more" if len(unused) > _NAMED else ""
    advice = f" Contact lists this ledger has not synced for 90 days: {named}{more}." if unused else ""
    full = f"{MOST_AUDIENCES:,} is the most" if audiences >= MOST_AUDIENCES - 1 else "Criteo takes no more"
    return (
        f"Criteo is unable to create new audiences in ad account {ad_account}: it has {audiences:,}, and {full}. "
        f"Delete audiences nobody uses at Criteo; existing ones go on.{advice}"
    )
