"""The world of the sandbox: applications, advertisers, segments, contact lists. In memory; no I/O."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from criteo_provider.sandbox.contact_list import CountedMembers, Members, RealMembers
from criteo_provider.sandbox.faults import Faults
from criteo_provider.sandbox.identifiers import forms_of
from criteo_provider.sandbox.journal import Journal
from criteo_provider.sandbox.ratelimit import SlidingWindow
from criteo_provider.sandbox.rules import Rules

CLIENT_ID = "sandbox-client"
CLIENT_SECRET = "sandbox-secret+/=&%"  # noqa: S105 - the sandbox's own, awkward on purpose
ADVERTISERS = (("1001", "Example Shop"), ("1002", "Example Shop DE"))

Permission = Literal["none", "read", "manage"]
GrantKind = Literal["client_credentials", "authorization_code"]


class Clock:
    """Real time that can be moved forward."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass at once."""
        self._ahead_s += seconds

    def set_right(self) -> None:
        """Take every move back."""
        self._ahead_s = 0.0

    @property
    def ahead_s(self) -> float:
        """How far it was moved."""
        return self._ahead_s

    def monotonic_s(self) -> float:
        """Return a time that never goes back."""
        return time.monotonic() + self._ahead_s

    def wall_s(self) -> float:
        """Return the epoch time the sandbox believes in."""
        return time.time() + self._ahead_s

    def now(self) -> datetime:
        """Return the same as an aware datetime."""
        return datetime.fromtimestamp(self.wall_s(), UTC)


@dataclass
class Grant:
    """What somebody consented to: an application may act for these advertisers, within one rate limit."""

    client_id: str
    kind: GrantKind
    advertiser_ids: list[str]
    revoked: bool = False
    number: int = 0
    """0: the application's own; people's consents are counted from 1."""
    window: SlidingWindow = field(default_factory=SlidingWindow, repr=False)


@dataclass
class Application:
    """An application of Criteo's developer portal; ``grant`` is what its client credentials stand for."""

    client_id: str
    client_secret: str = field(repr=False)
    number: int
    name: str
    grant: Grant
    permission: Permission = "manage"
    limit: int | None = None
    redirect_uris: list[str] = field(default_factory=list)
    needs_pkce: bool = False


@dataclass
class Segment:
    """An audience segment; only those of kind ContactList have ``members``."""

    number: int
    advertiser_id: str
    name: str
    kind: str
    definition: dict[str, object]
    created_at: datetime
    updated_at: datetime
    description: str | None = None
    read_only: bool = False
    members: Members = field(default_factory=CountedMembers, repr=False)
    published: int = 0
    """The size as of the last processing run."""
    processed_s: float = 0.0

    def visible_size(self, now_s: float, lag_s: float) -> int:
        """Return the size statistics show; ask *before* each change, so that no run in between is missed."""
        if not lag_s:
            return len(self.members)
        runs = int((now_s - self.processed_s) // lag_s)
        if runs > 0:
            self.published = len(self.members)
            self.processed_s += runs * lag_s
        return self.published


@dataclass
class Audience:
    """An audience composed of segments, as ad sets link to it."""

    number: int
    advertiser_id: str
    name: str
    description: str | None
    algebra: dict[str, object]
    created_at: datetime
    ad_set_ids: list[str] = field(default_factory=list)


@dataclass
class Token:
    """An access token, with the grant it speaks for and the (monotonic) end of its life."""

    grant: Grant = field(repr=False)
    ends_s: float


@dataclass
class Code:
    """An authorization code, good for one exchange with the same redirect URI."""

    grant: Grant = field(repr=False)
    redirect_uri: str
    challenge: str | None
    ends_s: float


@dataclass
class RefreshToken:
    """A refresh token; ``uses_left`` is None until it was exchanged for the first time."""

    grant: Grant = field(repr=False)
    uses_left: int | None = None


class World:
    """Everything this Criteo knows. One event loop changes it; a test may from outside, between calls."""

    def __init__(
        self,
        rules: Rules | None = None,
        *,
        clock: Clock | None = None,
        declare: Callable[[World], None] | None = None,
    ) -> None:
        self._start = rules or Rules(), declare
        self.clock = clock or Clock()
        self.reset()

    @classmethod
    def example(cls, rules: Rules | None = None, *, clock: Clock | None = None) -> World:
        """Return a world with one application and two advertisers that consented to it."""
        return cls(rules, clock=clock, declare=_declare_example)

    def reset(self) -> None:
        """Start over: nothing but what was declared, the first rules, and the right time."""
        rules, declare = self._start
        self.rules = rules.changed({})
        self.clock.set_right()
        self.advertisers: dict[str, str] = {}
        self.applications: dict[str, Application] = {}
        self.grants: list[Grant] = []
        """What people consented to on the consent page."""
        self.anonymous = Grant("", "client_credentials", [])
        self.segments: dict[int, Segment] = {}
        self.audiences: dict[int, Audience] = {}
        self.tokens: dict[str, Token] = {}
        self.codes: dict[str, Code] = {}
        self.refresh_tokens: dict[str, RefreshToken] = {}
        self.people: dict[bytes, bytes] = {}
        """From any form of a known address to its first one."""
        self.called_invalid: frozenset[bytes] = frozenset()
        self.refused: frozenset[bytes] = frozenset()
        self.faults = Faults()
        self.journal = Journal()
        self._numbers = 7000
        if declare is not None:
            declare(self)

    def add_application(
        self, client_id: str, client_secret: str, *, name: str, advertiser_ids: list[str] | None = None
    ) -> Application:
        """Declare an application; by default every advertiser of the moment consented to it."""
        consented = list(self.advertisers) if advertiser_ids is None else advertiser_ids
        grant = Grant(client_id, "client_credentials", consented)
        application = Application(client_id, client_secret, 100 + len(self.applications), name, grant)
        self.applications[client_id] = application
        return application

    def limit_of(self, grant: Grant) -> int:
        """Return how many calls a window of this grant holds."""
        application = self.applications.get(grant.client_id)
        if application is not None and application.limit is not None:
            return application.limit
        if grant.kind == "authorization_code":
            return self.rules.limit_per_account * len(grant.advertiser_ids)
        return self.rules.limit

    def next_number(self) -> int:
        """Return an id that was never used."""
        self._numbers += 1
        return self._numbers

    def new_token(self, grant: Grant) -> str:
        """Return a fresh access token; earlier ones stay valid."""
        now_s = self.clock.monotonic_s()
        self._forget_old_tokens(now_s)
        value = secrets.token_urlsafe(32)
        self.tokens[value] = Token(grant, now_s + self.rules.token_life_s)
        return value

    def new_segment(
        self,
        advertiser_id: str,
        name: str,
        *,
        kind: str = "ContactList",
        definition: dict[str, object] | None = None,
        description: str | None = None,
        read_only: bool = False,
    ) -> Segment:
        """Create a segment as it stands: whether it may exist is for the caller to say."""
        now = self.clock.now()
        members: Members = CountedMembers() if self.rules.membership == "count" else RealMembers(self.people)
        segment = Segment(
            number=self.next_number(),
            advertiser_id=advertiser_id,
            name=name,
            kind=kind,
            definition=definition or {},
            created_at=now,
            updated_at=now,
            description=description,
            read_only=read_only,
            members=members,
            processed_s=self.clock.monotonic_s(),
        )
        self.segments[segment.number] = segment
        return segment

    def know(self, addresses: list[str]) -> None:
        """Make people known: all forms of an address are one person, and from now on only the known match."""
        for address in addresses:
            first, *others = forms_of(address)
            self.people.update(dict.fromkeys((first, *others), first))

    def _forget_old_tokens(self, now_s: float) -> None:
        # An hour past its end a token may as well be garbage; the table must not grow with the days.
        dead = [value for value, token in self.tokens.items() if token.ends_s < now_s - 3600]
        for value in dead:
            del self.tokens[value]


def _declare_example(world: World) -> None:
    for advertiser_id, name in ADVERTISERS:
        world.advertisers[advertiser_id] = name
    world.add_application(CLIENT_ID, CLIENT_SECRET, name="Sandbox application")
