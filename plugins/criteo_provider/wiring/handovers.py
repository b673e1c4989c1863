"""Hand-overs: a new consent takes the place of the one in force only when it reaches every audience in use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from criteo_provider.core.errors import CriteoSyncError, Misconfigured
from criteo_provider.core.outcome import Accepted, Busy, Outcome
from criteo_provider.criteo_api.check import CheckResult
from criteo_provider.criteo_api.client import CriteoClient
from criteo_provider.criteo_api.wire import AdAccount, AudienceInfo
from criteo_provider.store.accounts import AccountBook, UsedAudience
from criteo_provider.store.consents import Consents
from criteo_provider.wiring.accounts import Accounts
from criteo_provider.wiring.criteo import CriteoDoor
from criteo_provider.wiring.desk import try_writing

_REACHES_ALL = "Connected; every audience in use was read and written with this consent."


@dataclass(frozen=True, slots=True)
class Offer:
    """The ad accounts a person may choose from, names by id; ``replaces`` when another consent is in force."""

    connection_id: str
    names: Mapping[str, str]
    chosen: frozenset[str]
    by: str | None
    replaces: bool


class HandOvers:
    """The facet of the house that brings a consent in force."""

    def __init__(
        self, accounts: Accounts, door: CriteoDoor, book: Callable[[], AccountBook], now_us: Callable[[], int]
    ) -> None:
        self._accounts, self._door, self._books, self._now_us = accounts, door, book, now_us

    def offer(self, conn_id: str) -> Offer:
        """Ask Criteo which ad accounts the new consent covers, or the one in force where there is no new one."""
        candidate, current = self._consents.candidate(conn_id), self._consents.current(conn_id)
        with self._door.candidate_client(conn_id) if candidate else self._door.client(conn_id) as client:
            names = {one.ad_account: one.name for one in client.ad_accounts()}
        chosen = frozenset(one.ad_account for one in self._accounts.look(conn_id).accounts if one.usable)
        by = candidate.by if candidate else current.by if current else None
        return Offer(conn_id, names, chosen, by, replaces=bool(candidate and current))

    def choose(self, conn_id: str, wanted: Collection[str], *, by: str, offer: Offer | None = None) -> bool:
        """Choose these ad accounts and let go of others that were offered; True when that is done at once.

        Where a new consent replaces another nothing is changed yet: a hand-over begins, and ``run`` has to be called.
        ``offer`` is what a person was shown a moment ago: Criteo is not asked again, which may take seconds.
        """
        offer = offer or self.offer(conn_id)
        unknown = sorted(set(wanted) - set(offer.names))
        if unknown or not wanted:
            named = ", ".join(f"{name} ({one})" for one, name in sorted(offer.names.items())) or "none"
            what = f"no consent covers {', '.join(unknown)}" if unknown else "no ad account was chosen"
            raise Misconfigured(f"Connection {conn_id}: {what}. Choose among those that are covered: {named}.")
        choice = {one: offer.names[one] for one in wanted}
        if offer.replaces:
            if not self._book.begin_handover(conn_id, choice, by=by, total=0, now_us=self._now_us()):
                raise Misconfigured(f"Connection {conn_id}: a check of its new consent is going on already.")
            return False
        self._conclude(conn_id, choice, offer.names, by=by)
        return True

    def again(self, conn_id: str, *, by: str) -> None:
        """Begin a failed hand-over anew, with the same choice; ``run`` has to be called."""
        failed = self._book.handover(conn_id)
        if failed is None or self._consents.candidate(conn_id) is None:
            raise Misconfigured(f"Connection {conn_id} has no new consent to check. Start again with Reconnect.")
        if not self._book.begin_handover(conn_id, failed.choice, by=by, total=0, now_us=self._now_us()):
            raise Misconfigured(f"Connection {conn_id}: a check of its new consent is going on already.")

    def run(self, conn_id: str, told: Callable[[int, int], None] = lambda _done, _total: None) -> tuple[str, ...]:
        """Check the new consent, and put it in force when nothing stands in the way; return what does."""
        going_on = self._book.handover(conn_id)
        if going_on is None:
            return ()
        failures: list[str] = []
        try:
            with self._door.candidate_client(conn_id) as client:
                offered = {one.ad_account: one.name for one in client.ad_accounts()}
                for done, total, failure in self._checks(client, conn_id, offered, going_on.choice):
                    failures += [failure] if failure else []
                    told(done, total)
                    if not self._book.note_handover(conn_id, done, failures, total=total, now_us=self._now_us()):
                        return ("The check was called off.",)
        except CriteoSyncError as error:
            failures.append(str(error))
        except Exception as error:
            self._book.fail_handover(conn_id, [f"The check has ended early ({type(error).__name__}). Try again."])
            raise
        if failures:
            self._book.fail_handover(conn_id, failures)
        else:
            self._conclude(conn_id, going_on.choice, offered, by=going_on.by)
            found = tuple(AdAccount(one, name) for one, name in offered.items())
            self._accounts.remember(conn_id, CheckResult(True, _REACHES_ALL), found)
        return tuple(failures)

    def keep_old(self, conn_id: str) -> None:
        """Drop the new consent; the one in force goes on."""
        if self._consents.candidate(conn_id) is None and self._book.handover(conn_id) is None:
            raise Misconfigured(f"Connection {conn_id} has no new consent to drop.")
        self._consents.discard(conn_id)
        self._book.forget_handover(conn_id)

    def use_anyway(self, conn_id: str, *, by: str) -> Mapping[str, str]:
        """Put the new consent in force although its check has failed; only where the old one is of no use any more."""
        failed, current = self._book.handover(conn_id), self._consents.current(conn_id)
        if failed is None or failed.is_running(self._now_us()):
            raise Misconfigured(f"Connection {conn_id} has no failed check of a new consent.")
        if current is not None and current.state != "dead":
            raise Misconfigured(
                f"Connection {conn_id}: the consent in force still works, and the new one would lose audiences. "
                "Mend what the check has named and try again, or keep the old consent."
            )
        with self._door.candidate_client(conn_id) as client:
            offered = {one.ad_account: one.name for one in client.ad_accounts()}
        choice = {one: name for one, name in failed.choice.items() if one in offered}
        self._conclude(conn_id, choice, offered, by=by)
        return choice

    def _conclude(self, conn_id: str, choice: Mapping[str, str], offered: Mapping[str, str], *, by: str) -> None:
        """Put what was consented to in force, and let everybody who waited go on."""
        released = self._released(conn_id, choice, offered)
        if self._consents.candidate(conn_id):
            self._consents.promote(conn_id)
        self._accounts.choose(conn_id, choice, by=by)
        for ad_account in released:
            self._accounts.disconnect(conn_id, ad_account, by=by)
        self._book.forget_handover(conn_id)
        self._accounts.heal(conn_id, choice)

    def _checks(
        self, client: CriteoClient, conn_id: str, offered: Mapping[str, str], choice: Mapping[str, str]
    ) -> Iterator[tuple[int, int, str | None]]:
        """Yield how many things are checked, of how many, and what is wrong with this one."""
        let_go = set(self._released(conn_id, choice, offered))
        kept = {
            one.ad_account: one.used_by
            for one in self._accounts.look(conn_id).accounts
            if one.usable and one.used_by and one.ad_account not in let_go
        }
        lost = sorted(set(kept) - set(offered))
        audiences = self._book.used_audiences(conn_id, sorted(set(kept) & set(offered)))
        total, done = len(lost) + len(audiences), 0
        yield done, total, None
        for ad_account in lost:
            done += 1
            steps = ", ".join(kept[ad_account])
            yield done, total, f"Ad account {ad_account}: the new consent does not cover it; used by {steps}."
        seen = client.look_up([one.criteo_id for one in audiences]) if audiences else {}
        for audience in audiences:
            done += 1
            yield done, total, self._trouble_with(client, audience, seen.get(audience.criteo_id))

    def _trouble_with(self, client: CriteoClient, audience: UsedAudience, seen: AudienceInfo | None) -> str | None:
        where = f"Audience “{audience.name}” in ad account {audience.ad_account}"
        if seen is None:
            return f"{where}: the new consent does not see it."
        if not seen.takes_people:
            return f"{where}: it is read-only for the new consent."
        outcome = try_writing(client, audience.criteo_id)
        return None if isinstance(outcome, Accepted) else f"{where}: {_words(outcome)}"

    def _released(self, conn_id: str, choice: Mapping[str, str], offered: Mapping[str, str]) -> Sequence[str]:
        """Return the ad accounts a person was offered and did not choose, though they are in use now."""
        usable = {one.ad_account for one in self._accounts.look(conn_id).accounts if one.usable}
        return sorted(usable & (set(offered) - set(choice)))

    @property
    def _book(self) -> AccountBook:
        return self._books()

    @property
    def _consents(self) -> Consents:
        return self._door.consents


def _words(outcome: Outcome) -> str:
    if isinstance(outcome, Busy):
        return "Criteo's rate limit was reached; try again in a minute."
    return str(getattr(outcome, "sentence", "Criteo did not accept a change."))
