"""How many requests a minute Criteo grants."""

from __future__ import annotations

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
