"""Account rows: what people see of connections and ad accounts; a state says what to do about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from criteo_provider.store.accounts import Account, Checkup, HandOver
from criteo_provider.store.consents import Consent
from criteo_provider.store.troubles import DISCONNECTED
from criteo_provider.wiring.surroundings import CriteoConnection

Standing = Literal["ok", "expiring", "invalid", "unchecked", "disconnected", "unchosen", "unconnected"]


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One ad account as people see it; ``sentence`` says what to do, ``used_by`` are "canvas / step"."""

    ad_account: str
    name: str
    usable: bool
    state: Standing
    sentence: str
    by: str | None
    at_us: int | None
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """One connection as people see it: who connected it and when, its last check, its ad accounts."""

    connection_id: str
    grant_type: str | None
    state: Standing
    sentence: str
    by: str | None
    at_us: int | None
    checked_us: int | None
    accounts: tuple[AccountRow, ...]
    handover: HandOver | None = None
    has_candidate: bool = False
    consent_is_dead: bool = False


class Told(NamedTuple):
    """A state and what to do about it."""

    state: Standing
    sentence: str


def may_use_undecided(connection: CriteoConnection, ad_account: str) -> bool:
    """Whether an ad account nobody has decided about may be used: a person's consent serves only what was chosen."""
    if connection.grant_type == "authorization_code":
        return False
    return not connection.allowed_ad_accounts or ad_account in connection.allowed_ad_accounts


def why_stopped(
    connection: CriteoConnection, conn_id: str, ad_account: str, decision: Account | None
) -> tuple[str, str]:
    """Return code and sentence of the trouble of an ad account that must not be used."""
    if decision is not None:
        at = datetime.fromtimestamp(decision.at_us // 1_000_000, UTC)
        return DISCONNECTED, (
            f"Ad account {ad_account} was disconnected by {decision.by} on {at:%Y-%m-%d %H:%M} UTC; "
            "reconnect it on the Accounts page. Its people stay pending."
        )
    if connection.grant_type == "authorization_code":
        return "not-chosen", (
            f"Ad account {ad_account} is not chosen for connection {conn_id}; choose it on the Accounts page, "
            f"or with `airflow criteo accounts choose --conn-id {conn_id} {ad_account}`, followed by all others in use."
        )
    return "not-allowed", (
        f"Ad account {ad_account} is not among the allowed ad accounts of connection {conn_id}. "
        "Choose it on the Accounts page, add it there, or give the step another ad account."
    )


def state_of_connection(
    connection: CriteoConnection, consent: Consent | None, checkup: Checkup | None, trouble: str | None
) -> Told:
    """Say how a connection is doing."""
    if connection.grant_type == "authorization_code":
        if consent is None and not connection.refresh_token:
            return Told("unconnected", "Nobody has given consent yet: press Connect, and choose ad accounts.")
        if consent is not None and consent.state == "dead":
            return Told(
                "invalid",
                "Criteo does not honour this consent any more: it was revoked, or the role of the person who gave it "
                "has changed. Press Reconnect; people stay pending until then.",
            )
    if trouble is not None:
        return Told("invalid", trouble)
    if checkup is None:
        return Told("unchecked", "Not checked yet: press Check now, or run `airflow criteo accounts check`.")
    # What one ad account lacks is told beside that ad account.
    if not checkup.ok and checkup.code not in _OF_AN_AD_ACCOUNT:
        return Told("invalid", checkup.sentence)
    if consent is not None and consent.state == "expiring":
        return Told(
            "expiring",
            "Nothing was sent with this consent for five months, and Criteo ends it after six. "
            "Press Check now to renew it, or Reconnect.",
        )
    return Told("ok", checkup.sentence)


def state_of_account(
    connection: CriteoConnection,
    conn_id: str,
    ad_account: str,
    decision: Account | None,
    checkup: Checkup | None,
    trouble: str | None,
) -> Told:
    """Say how an ad account is doing, its connection being well."""
    if decision is not None and not decision.chosen:
        return Told("disconnected", why_stopped(connection, conn_id, ad_account, decision)[1])
    if decision is None and not may_use_undecided(connection, ad_account):
        return Told("unchosen", why_stopped(connection, conn_id, ad_account, None)[1])
    if trouble is not None:
        return Told("invalid", trouble)
    if checkup is None:
        return Told("unchecked", "Not checked yet.")
    if ad_account not in checkup.ad_accounts:
        return Told(
            "invalid",
            f"Ad account {ad_account} has not consented to this application. Reconnect as somebody who may speak for "
            "it, or have its admin consent.",
        )
    if not checkup.ok and checkup.code != "ad-account-not-consented":  # which is another one's trouble
        return Told("invalid", checkup.sentence)
    return Told("ok", "Works.")


_OF_AN_AD_ACCOUNT = frozenset({"ad-account-not-consented", "no-audiences-permission"})
