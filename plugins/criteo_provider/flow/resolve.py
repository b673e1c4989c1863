"""Resolve: find each audience people wait for at Criteo, or create it, once; and look again for deleted ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from criteo_provider.core.errors import AccessLost, AudienceGone, Busy, CriteoSyncError, Refused, Unavailable

log = logging.getLogger(__name__)

# Nobody else tries an audience while one process is at it; creating may take a search over many pages.
RESOLVER_LEASE_S = 120.0


class AudienceLedger(Protocol):
    """What resolve asks of the ledger."""

    def unresolved_audiences(
        self, connection_id: str, ad_accounts: Collection[str], *, now_us: int, lease_s: float
    ) -> list[tuple[int, str, str, bool]]: ...

    def deleted_audiences(
        self, connection_id: str, ad_accounts: Collection[str], *, now_us: int
    ) -> list[tuple[int, str, str, bool, str]]: ...

    def give_back_audiences(self, audience_ids: Collection[int]) -> None: ...

    def resolved(self, audience_id: int, criteo_id: str, *, created: bool, now_us: int) -> None: ...

    def trouble(
        self, scope: str, key: str, *, code: str, sentence: str, now_us: int, is_answer: bool = False
    ) -> bool: ...


class AudienceDesk(Protocol):
    """What resolve asks of Criteo."""

    def ensure(self, ad_account: str, name: str) -> tuple[str, bool]:
        """Return the id of the audience and whether it was created now."""

    def find(self, ad_account: str, name: str) -> str | None:
        """Return the id of the audience, None where there is none of that name."""


def resolve_audiences(
    ledger: AudienceLedger,
    desk: AudienceDesk,
    connection_id: str,
    ad_accounts: Collection[str],
    now_us: Callable[[], int],
) -> int:
    """Find or create all audiences of a connection that people wait for; return how many are known now."""
    wanted: Sequence[tuple[int, str, str, bool]] = ledger.unresolved_audiences(
        connection_id, ad_accounts, now_us=now_us(), lease_s=RESOLVER_LEASE_S
    )
    known = 0
    lost: set[str] = set()
    for number, (audience_id, ad_account, name, may_create) in enumerate(wanted):
        if ad_account in lost:
            ledger.give_back_audiences([audience_id])
            continue
        try:
            criteo_id, created = _look_up(desk, ad_account, name, may_create=may_create)
        except AccessLost as error:
            # Who is not let in asks once, not once for each audience.
            if error.scope == "connection":
                ledger.give_back_audiences([one[0] for one in wanted[number:]])
                ledger.trouble("connection", connection_id, code=error.code, sentence=str(error), now_us=now_us())
                return known
            key = f"{connection_id}/{ad_account}"
            ledger.trouble(error.scope, key, code=error.code, sentence=str(error), now_us=now_us(), is_answer=True)
            lost.add(ad_account)
        except (Refused, AudienceGone, Unavailable) as error:
            heard = not isinstance(error, Unavailable)
            ledger.trouble(
                "audience", str(audience_id), code=error.code, sentence=str(error), now_us=now_us(), is_answer=heard
            )
        except Busy:
            ledger.give_back_audiences([one[0] for one in wanted[number:]])
            return known
        else:
            _take(ledger, audience_id, ad_account, name, criteo_id, created=created, now_us=now_us())
            known += 1
    return known + _look_for_deleted(ledger, desk, connection_id, ad_accounts, now_us)


def _look_for_deleted(
    ledger: AudienceLedger,
    desk: AudienceDesk,
    connection_id: str,
    ad_accounts: Collection[str],
    now_us: Callable[[], int],
) -> int:
    """Look whether deleted audiences are back under another id, and make those anew whose steps say so."""
    back = 0
    for audience_id, ad_account, name, may_create, known_id in ledger.deleted_audiences(
        connection_id, ad_accounts, now_us=now_us()
    ):
        try:
            found = desk.ensure(ad_account, name) if may_create else (desk.find(ad_account, name), False)
        except CriteoSyncError as error:
            # Its trouble is told already, and it is looked for again in some minutes.
            log.warning("Audience %r in ad account %s is still not there: %s", name, ad_account, error)
            continue
        criteo_id, created = found
        # One that is listed and yet unknown is no news: the next request of its people tells.
        if criteo_id is not None and (created or criteo_id != known_id):
            _take(ledger, audience_id, ad_account, name, criteo_id, created=created, now_us=now_us())
            back += 1
    return back


def _take(
    ledger: AudienceLedger, audience_id: int, ad_account: str, name: str, criteo_id: str, *, created: bool, now_us: int
) -> None:
    ledger.resolved(audience_id, criteo_id, created=created, now_us=now_us)
    what = "created" if created else "found"
    log.info("Audience %r in ad account %s: %s, Criteo id %s.", name, ad_account, what, criteo_id)


def _look_up(desk: AudienceDesk, ad_account: str, name: str, *, may_create: bool) -> tuple[str, bool]:
    if may_create:
        return desk.ensure(ad_account, name)
    found = desk.find(ad_account, name)
    if found is None:
        raise AudienceGone(
            f"There is no audience {name!r} in ad account {ad_account} yet, and a step that removes people never "
            "creates one. People stay pending until a step adds somebody to it or it is created at Criteo.",
            code="audience-not-created-yet",
        )
    return found, False
