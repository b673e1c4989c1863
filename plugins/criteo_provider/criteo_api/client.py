"""Client: what this package asks of Criteo, in its own words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self
from urllib.parse import quote

import httpx
import stamina

from criteo_provider.core.answer import Answer, Problem, read_envelope
from criteo_provider.core.errors import (
    AccessLost,
    Busy,
    QuotaReached,
    Refused,
    Unavailable,
)
from criteo_provider.core.json_items import Piece
from criteo_provider.core.outcome import (
    Outcome,
    Trouble,
    answer_of,
    failure_in,
    outcome_of,
    outcome_of_exception,
)
from criteo_provider.core.ports import SlotGate, Token, TokenStore
from criteo_provider.criteo_api import wire
from criteo_provider.criteo_api.auth import Access
from criteo_provider.criteo_api.failures import as_error, as_failure
from criteo_provider.criteo_api.grants import ClientCredentials, Grant
from criteo_provider.criteo_api.line import ClientSettings, Line, Reply
from criteo_provider.criteo_api.listing import Listing

UNAUTHORIZED = 401
BUSY = 429
_MOST_PAGES = 1_000
_SLOT_LASTS_S = 0.05
_BUSY_WORTH_WAITING_S = 5.0
_QUOTA_CODES = frozenset({"too-many-audiences", "quota-exceeded", "audience-limit-reached"})
_PASSING = frozenset(
    {
        "http-500",
        "http-502",
        "http-503",
        "http-504",
        "http-408",
        "unreachable",
        "no-answer",
        "cut-off",
        "not-sent",
    }
)


class CriteoClient:
    """Calls of one application to Criteo; thread-safe. Every call takes one slot of ``slots``.

    ``interactive`` is for clients a person waits for: their calls take the next slot. ``on_ad_accounts`` hears
    how many ad accounts have consented, whenever somebody asks.
    """

    def __init__(
        self,
        settings: ClientSettings,
        slots: SlotGate,
        tokens: TokenStore,
        *,
        grant: Grant | None = None,
        interactive: bool = False,
        on_ad_accounts: Callable[[int], None] = lambda _number: None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.settings = settings
        self._line = Line(settings, slots, transport=transport)
        self._interactive = interactive
        self._on_ad_accounts = on_ad_accounts
        self._access = Access(self._line, tokens, grant or ClientCredentials(settings), interactive=interactive)
        self._segments = f"/{settings.api_version}/marketing-solutions/audience-segments"

    def close(self) -> None:
        """Close the connections to Criteo."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make_ready(self) -> None:
        """See to a good access token before a slot is taken; raises AccessLost, Busy or Unavailable."""
        self._access.token()

    def amend(
        self,
        criteo_id: str,
        pieces: Sequence[Piece],
        *,
        slot_taken: bool = True,
        before_first_byte: Callable[[], None] | None = None,
    ) -> Outcome:
        """Send one amendment (see ``wire.amendment_body``) to a contact list; trouble is an Outcome too.

        With ``slot_taken`` the caller is inside a slot already. A refused token is renewed and the request
        repeated once, in another slot. ``before_first_byte`` is called right before the first byte of each
        try; what it raises passes through, and then nothing was sent in that try.
        """
        path = f"{self._segments}/{_in_path(criteo_id)}/contact-list"

        def attempt(token: Token) -> Reply | Trouble:
            return self._line.send(
                "PATCH", path, pieces=pieces, bearer=token.value, before_first_byte=before_first_byte
            )

        try:
            reply = self._with_token(attempt, slot_taken=slot_taken)
        except (AccessLost, Busy, Unavailable) as error:
            return as_failure(error)
        if isinstance(reply, Trouble):
            return outcome_of_exception(reply)
        return outcome_of(
            reply.status, reply.headers, reply.body, now_s=time.time(), busy_before=self._line.busy_before
        )

    def application(self) -> wire.Application:
        """Tell which application this is."""
        answer = self._ask("GET", f"/{self.settings.api_version}/marketing-solutions/me")
        application = wire.read_application(answer)
        if application is None:
            raise _unreadable()
        return application

    def ad_accounts(self) -> tuple[wire.AdAccount, ...]:
        """List the ad accounts that consented; empty when nobody did."""
        accounts = wire.read_ad_accounts(self._ask("GET", f"/{self.settings.api_version}/advertisers/me"))
        self._on_ad_accounts(len(accounts))
        return accounts

    def audiences(self, ad_account: str) -> Iterator[wire.AudienceInfo]:
        """Yield every audience of an ad account, whatever its type, each once."""
        body, offset, seen = wire.search_body(ad_account), 0, set[str]()
        for _ in range(_MOST_PAGES):
            params = {"limit": wire.SEARCH_LIMIT, "offset": offset}
            answer = self._ask("POST", f"{self._segments}/search", body, params=params)
            for audience in wire.read_audiences(answer):
                if audience.criteo_id not in seen:
                    seen.add(audience.criteo_id)
                    yield audience
            received, total = wire.entries_received(answer), wire.total_items(answer)
            offset += received
            if received == 0 or (received < wire.SEARCH_LIMIT if total is None else offset >= total):
                return

    def may_read_audiences(self, ad_account: str) -> None:
        """Look at one audience of an ad account; raises AccessLost when that is not permitted."""
        self._ask("POST", f"{self._segments}/search", wire.search_body(ad_account), params={"limit": 1, "offset": 0})

    def listing(self, ad_account: str) -> Listing:
        """Search once for all audiences of an ad account."""
        return Listing(ad_account, tuple(self.audiences(ad_account)))

    def look_up(self, criteo_ids: Sequence[str]) -> dict[str, wire.AudienceInfo]:
        """Return those of these audiences that may be seen, by id."""
        seen: dict[str, wire.AudienceInfo] = {}
        for at in range(0, len(criteo_ids), wire.SEARCH_LIMIT):
            body, params = wire.lookup_body(criteo_ids[at : at + wire.SEARCH_LIMIT]), {"limit": wire.SEARCH_LIMIT}
            answer = self._ask("POST", f"{self._segments}/search", body, params={**params, "offset": 0})
            seen |= {one.criteo_id: one for one in wire.read_audiences(answer)}
        return seen

    def find_audience(self, ad_account: str, name: str) -> wire.AudienceInfo | None:
        """Find the contact list of exactly this name, or None; raises what ``Listing.named`` raises."""
        return self.listing(ad_account).named(name)

    def ensure_audience(
        self, ad_account: str, name: str, description: str = "", *, listing: Listing | None = None
    ) -> tuple[wire.AudienceInfo, bool]:
        """Find the contact list of this name or create it; tell whether it was created.

        A ``listing`` just made saves the search. Two who race end with one audience. Raises what ``find_audience``
        raises, and QuotaReached.
        """
        found = (listing or self.listing(ad_account)).named(name)
        return (found, False) if found else self._create(ad_account, name, description)

    def create_audience(self, ad_account: str, name: str, description: str = "") -> wire.AudienceInfo:
        """Create a contact list; when its name is taken by one already, return that one."""
        return self._create(ad_account, name, description)[0]

    def statistics(self, criteo_id: str) -> wire.Statistics:
        """Tell identifiers and matches of a contact list, as Criteo counted them hours ago."""
        answer = self._ask("GET", f"{self._segments}/{_in_path(criteo_id)}/contact-list/statistics")
        statistics = wire.read_statistics(answer)
        if statistics is None:
            raise _unreadable()
        return statistics

    def _create(self, ad_account: str, name: str, description: str) -> tuple[wire.AudienceInfo, bool]:
        try:
            answer = self._creation(ad_account, name, description)
        except Unavailable as error:
            # Creating is not idempotent: after a lost answer, look before anybody creates again.
            found = self.find_audience(ad_account, name) if error.maybe_applied else None
            if found is None:
                raise
            return found, True
        made = wire.read_audiences(answer)
        if made:
            return wire.AudienceInfo(made[0].criteo_id, ad_account, name), True
        if not answer.names(wire.NAME_TAKEN):
            failure = failure_in(answer)
            raise _unreadable() if failure is None else as_error(failure)
        found = self.find_audience(ad_account, name)
        if found is None:
            raise Refused(
                f"Criteo calls the name “{name}” taken in ad account {ad_account}, but shows none such. "
                "Look for one in another spelling at Criteo, or give the step another audience name.",
                code=wire.NAME_TAKEN,
            )
        return found, False

    def _creation(self, ad_account: str, name: str, description: str) -> Answer:
        """Ask once for a new audience; a taken name comes back as an Answer, whatever the status."""
        reply = self._call("POST", f"{self._segments}/create", wire.creation_body(ad_account, name, description))
        envelope = read_envelope(reply.body)
        if envelope and reply.status != BUSY:
            if envelope.names(wire.NAME_TAKEN):
                return envelope
            if not envelope.data and any(map(_is_quota, envelope.problems)):
                raise QuotaReached(
                    f"Criteo is unable to create new audiences in ad account {ad_account}: quota reached. "
                    "Delete audiences nobody uses at Criteo; existing ones go on.",
                    code="quota-reached",
                )
        return self._read(reply)

    def _ask(self, method: str, path: str, body: bytes = b"", *, params: Mapping[str, int] | None = None) -> Answer:
        """Make a call that changes nothing, repeating it for some seconds; raises what a failure means."""
        for attempt in stamina.retry_context(on=_is_worth_repeating, attempts=3, timeout=20.0, wait_initial=0.5):
            with attempt:
                answer = self._read(self._call(method, path, body, params=params))
                failure = failure_in(answer) if answer.errors and not answer.data else None
                if failure is not None:
                    raise as_error(failure)
        return answer

    def _call(self, method: str, path: str, body: bytes, *, params: Mapping[str, int] | None = None) -> Reply:
        def attempt(token: Token) -> Reply | Trouble:
            return self._line.send(method, path, pieces=(body,) if body else (), bearer=token.value, params=params)

        reply = self._with_token(attempt, slot_taken=False)
        if isinstance(reply, Trouble):
            raise as_error(outcome_of_exception(reply))
        return reply

    def _read(self, reply: Reply) -> Answer:
        answer = answer_of(
            reply.status, reply.headers, reply.body, now_s=time.time(), busy_before=self._line.busy_before
        )
        if not isinstance(answer, Answer):
            raise as_error(answer)
        return answer

    def _with_token(self, attempt: Callable[[Token], Reply | Trouble], *, slot_taken: bool) -> Reply | Trouble:
        """Make a call with the access token there is, and once more with another if Criteo refuses it."""
        asked_s = time.monotonic()
        token = self._access.token()
        if not slot_taken or time.monotonic() - asked_s > _SLOT_LASTS_S:  # a renewal outlives a slot
            self._line.wait_for_slot(interactive=self._interactive)
        reply = attempt(token)
        if isinstance(reply, Reply) and reply.status == UNAUTHORIZED:
            token = self._access.instead_of(token)
            self._line.wait_for_slot(interactive=self._interactive)
            reply = attempt(token)
        return reply


def _is_worth_repeating(error: Exception) -> bool | float:
    """Tell stamina whether, or after how many seconds, a small call is made again."""
    if isinstance(error, Busy):
        return error.wait_s if error.wait_s <= _BUSY_WORTH_WAITING_S else False
    return isinstance(error, Unavailable) and error.code in _PASSING


def _is_quota(problem: Problem) -> bool:
    return problem.type == "quota" or problem.code in _QUOTA_CODES


def _in_path(criteo_id: str) -> str:
    return quote(criteo_id, safe="")


def _unreadable() -> Unavailable:
    return Unavailable(
        "Criteo's answer lacks what was asked for. Check the API version in the Criteo connection.",
        code="unreadable-answer",
    )
