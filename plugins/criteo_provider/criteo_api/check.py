"""Check: one sentence that says what is wrong with a connection, or whom it speaks for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from criteo_provider.core.errors import AccessLost, Busy, CriteoSyncError
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.wire import AdAccount

_NAMED = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether the connection works, in one sentence; ``code`` is stable, ``ok`` when it works."""

    ok: bool
    sentence: str
    code: str = "ok"
    ad_accounts: tuple[AdAccount, ...] = ()


def check_access(client: CriteoClient, allowed_ad_accounts: Collection[str] = ()) -> CheckResult:
    """Check token, application, consent, allowed ad accounts and Audiences permission; trouble is a sentence.

    ``allowed_ad_accounts`` are ids; empty means all that consented.
    """
    try:
        return _check(client, allowed_ad_accounts)
    except Busy as error:
        return CheckResult(False, str(error), "busy")
    except CriteoSyncError as error:
        return CheckResult(False, str(error), getattr(error, "code", "unavailable"))


def _check(client: CriteoClient, allowed: Collection[str]) -> CheckResult:
    application = client.application()
    consented = client.ad_accounts()
    if not consented:
        return CheckResult(
            False,
            f"Application “{application.name}” works, but no ad account has consented to it. "
            "Create a consent link in Criteo's developer portal and have an admin of the ad account open it.",
            "no-ad-account",
        )
    missing = [one for one in allowed if one not in {account.ad_account for account in consented}]
    if missing:
        return CheckResult(
            False,
            f"Ad account {', '.join(missing)} is to be used by this connection, but has not consented to application "
            f"“{application.name}”. Have its admin consent, disconnect it, or take it out of the allowed ad accounts; "
            f"consented: {_named(consented)}.",
            "ad-account-not-consented",
            consented,
        )
    used = tuple(account for account in consented if not allowed or account.ad_account in allowed)
    for account in used if allowed else used[:1]:
        try:
            client.may_read_audiences(account.ad_account)
        except AccessLost as error:
            if error.scope != "ad_account":
                raise
            return CheckResult(
                False,
                f"Application “{application.name}” has no permission to Audiences in ad account "
                f"{account.ad_account}. Ask your Criteo admin to set the Audiences permission to Manage and "
                "to consent again.",
                "no-audiences-permission",
                used,
            )
    return CheckResult(
        True,
        f"Connected as application “{application.name}” ({application.application_id}); ad accounts: {_named(used)}.",
        ad_accounts=used,
    )


def _named(accounts: Sequence[AdAccount]) -> str:
    names = ", ".join(f"{account.name} ({account.ad_account})" for account in accounts[:_NAMED])
    return names if len(accounts) <= _NAMED else f"{names} and {len(accounts) - _NAMED} more"
