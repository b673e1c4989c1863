"""The catalogue: every fault that was reported of Criteo's API, by a name to throw it with.

``source`` is the number under which docs/sandbox.md lists it. A docstring is what the catalogue says of the fault.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from criteo_provider.sandbox.faults import API, Fault
from criteo_provider.sandbox.state import Application, Grant, World
from criteo_provider.sandbox.throwing import Aim, Kind, NamedFault, Strike, Undo, all_of, inserting, ruling, setting

CATALOGUE: dict[str, NamedFault] = {}

HTML_BUSY = "<html><body><h1>429 Too Many Requests</h1></body></html>"
LONGER_THAN_A_CLIENT_WAITS_S = 70.0


def _named(name: str, source: str, kind: Kind = "calls") -> Callable[[Strike], None]:
    def add(strike: Strike) -> None:
        CATALOGUE[name] = NamedFault(name, source, kind, " ".join((strike.__doc__ or "").split()), strike)

    return add


# --- tokens, clients, consent


@_named("token-expired", "F1", "event")
def _token_expired(world: World, aim: Aim) -> None:
    """Every access token has come to its end: 401 authorization-token-expired, until a new one is asked for."""
    for token in world.tokens.values():
        token.ends_s = world.clock.monotonic_s()


@_named("token-forgotten", "F1", "event")
def _token_forgotten(world: World, aim: Aim) -> None:
    """Criteo does not know any access token any more: 401 authorization-token-invalid, until a new one is asked for."""
    world.tokens.clear()


@_named("token-refused", "F1")
def _token_refused(world: World, aim: Aim) -> list[Fault]:
    """New tokens are handed out, and refused all the same: 401 authorization-token-invalid."""
    return aim.fault(API, status=401, error_type="authorization", code="authorization-token-invalid",
                     title="The authorization header is invalid")  # fmt: skip


@_named("wrong-secret", "F2", "state")
def _wrong_secret(world: World, aim: Aim) -> Undo:
    """The client secret was replaced at Criteo: token calls get invalid_client; tokens handed out before still work."""
    return setting(_application(world, aim), client_secret=secrets.token_urlsafe(16))


@_named("advertiser-not-consented", "F3", "state")
def _advertiser_not_consented(world: World, aim: Aim) -> Undo:
    """One ad account (or all) is not consented any more: 403 when addressed, and search is quietly empty."""

    def left(grant: Grant) -> list[str]:
        return [each for each in grant.advertiser_ids if aim.advertiser_id not in (None, each)]

    return all_of([setting(grant, advertiser_ids=left(grant)) for grant in _grants(world, aim)])


@_named("read-only-application", "F4", "state")
def _read_only_application(world: World, aim: Aim) -> Undo:
    """The application may read audiences, not manage them: 403 for each change."""
    return setting(_application(world, aim), permission="read")


@_named("no-permission", "F4", "state")
def _no_permission(world: World, aim: Aim) -> Undo:
    """The application has no permission on audiences at all: 403 for search and statistics too."""
    return setting(_application(world, aim), permission="none")


@_named("consent-revoked", "F5", "state")
def _consent_revoked(world: World, aim: Aim) -> Undo:
    """The consent was revoked: calls with a living token get 403, refresh tokens invalid_grant."""
    return all_of([setting(grant, revoked=True) for grant in _grants(world, aim)])


@_named("refresh-token-dead", "F5", "event")
def _refresh_token_dead(world: World, aim: Aim) -> None:
    """The role of the consenting user changed: refresh tokens and access tokens of the consent are dead for good."""
    for tokens in (world.refresh_tokens, world.tokens):
        for value in [value for value, token in tokens.items() if token.grant in world.grants]:
            del tokens[value]


# --- audiences


@_named("segment-deleted", "F6", "event")
def _segment_deleted(world: World, aim: Aim) -> None:
    """Somebody deleted the audience (or all of them) in Criteo's UI: 404 audience-invalid when it is addressed."""
    for number in [number for number in world.segments if aim.segment_id in (None, str(number))]:
        del world.segments[number]


@_named("name-race", "F7")
def _name_race(world: World, aim: Aim) -> list[Fault]:
    """Somebody else creates an audience of the same name a moment earlier: name-must-be-unique."""
    return aim.fault("create", rival=True)


@_named("name-ambiguous", "F7", "state")
def _name_ambiguous(world: World, aim: Aim) -> Undo:
    """A second audience of the same name is in the ad account, as Criteo's UI may let it be."""
    chosen = [segment for segment in world.segments.values() if aim.segment_id in (None, str(segment.number))]
    return inserting(world, [(segment.advertiser_id, segment.name, segment.kind) for segment in chosen])


@_named("creation-fails-in-errors", "F8")
def _creation_fails_in_errors(world: World, aim: Aim) -> list[Fault]:
    """A creation fails inside a 200: empty data, and the failure in errors."""
    return aim.fault("create", status=200, body=_failed_creation("errors"))


@_named("creation-fails-in-warnings", "F8")
def _creation_fails_in_warnings(world: World, aim: Aim) -> list[Fault]:
    """A creation fails inside a 200: empty data, and the failure in warnings."""
    return aim.fault("create", status=200, body=_failed_creation("warnings"))


@_named("creation-fails-with-400", "F8")
def _creation_fails_with_400(world: World, aim: Aim) -> list[Fault]:
    """A creation of a single audience fails with a 400."""
    return aim.fault("create", status=400, error_type="validation", code="invalid", title="Segment is invalid")


@_named("creation-answers-nothing", "F8")
def _creation_answers_nothing(world: World, aim: Aim) -> list[Fault]:
    """A creation answers 200 with nothing in it: no data, no error, and no audience."""
    return aim.fault("create", status=200, body='{"data":[],"errors":[],"warnings":[]}')


@_named("audience-quota", "F9", "state")
def _audience_quota(world: World, aim: Aim) -> Undo:
    """The ad account may have no more audiences: creating another fails as a quota, the existing ones go on."""
    return ruling(world, segment_cap=aim.limit or 0)


# --- limits, outages, the network


@_named("busy", "F10")
def _busy(world: World, aim: Aim) -> list[Fault]:
    """429 in Criteo's envelope, whatever the count says; x-ratelimit-reset names the second when to come back."""
    return _busy_with(aim, error_type="quota", code="too-many-requests", title="The rate limit is exceeded")


@_named("busy-object", "F10")
def _busy_object(world: World, aim: Aim) -> list[Fault]:
    """429 with an empty JSON object."""
    return _busy_with(aim, body="{}")


@_named("busy-html", "F10")
def _busy_html(world: World, aim: Aim) -> list[Fault]:
    """429 with the HTML page of some gateway."""
    return _busy_with(aim, body=HTML_BUSY, content_type="text/html")


@_named("busy-empty", "F10")
def _busy_empty(world: World, aim: Aim) -> list[Fault]:
    """429 with no body."""
    return _busy_with(aim, body="")


@_named("busy-retry-after", "F10")
def _busy_retry_after(world: World, aim: Aim) -> list[Fault]:
    """429 with a Retry-After header, which Criteo does not document."""
    return _busy_with(aim, body="{}", headers={"retry-after": str(int(aim.seconds or 2))})


@_named("limit-lowered", "F10", "state")
def _limit_lowered(world: World, aim: Aim) -> Undo:
    """Criteo lowers the limit of the application (to 10 a minute): the headers say so, and 429 keeps it."""
    return setting(_application(world, aim), limit=10 if aim.limit is None else aim.limit)


@_named("internal-error", "F11")
def _internal_error(world: World, aim: Aim) -> list[Fault]:
    """500 availability internal-error; nothing was applied."""
    return aim.fault(API, status=500)


@_named("unavailable", "F11")
def _unavailable(world: World, aim: Aim) -> list[Fault]:
    """503 with the HTML page of some gateway, token calls included; nothing was applied."""
    return aim.fault("*", status=503, body="<html>Service Unavailable</html>", content_type="text/html")


@_named("error-after-applied", "F11")
def _error_after_applied(world: World, aim: Aim) -> list[Fault]:
    """500 after the change was applied."""
    return aim.fault("amend", status=500, applied=True)


@_named("dropped-before", "F11")
def _dropped_before(world: World, aim: Aim) -> list[Fault]:
    """The connection is cut before the change was applied."""
    return aim.fault("amend", drop="before")


@_named("dropped-after", "F11")
def _dropped_after(world: World, aim: Aim) -> list[Fault]:
    """The connection is cut after the change was applied: the caller cannot tell it from dropped-before."""
    return aim.fault("amend", drop="after")


@_named("slow-answer", "F11")
def _slow_answer(world: World, aim: Aim) -> list[Fault]:
    """The answer comes later than a client waits (70 s, or ``seconds``); the change was applied."""
    return aim.fault("amend", delay_s=LONGER_THAN_A_CLIENT_WAITS_S if aim.seconds is None else aim.seconds)


@_named("half-an-answer", "F11")
def _half_an_answer(world: World, aim: Aim) -> list[Fault]:
    """The change was applied, and the JSON of the answer ends in the middle."""
    return aim.fault("amend", truncate=True)


# --- versions


@_named("version-deprecated", "F12", "state")
def _version_deprecated(world: World, aim: Aim) -> Undo:
    """The API version is deprecated: it works, and answers carry Deprecation and Sunset."""
    return ruling(world, versions={**world.rules.versions, aim.version: "deprecated"})


@_named("version-gone", "F12", "state")
def _version_gone(world: World, aim: Aim) -> Undo:
    """The API version is decommissioned: 410 endpoint-deprecated."""
    return ruling(world, versions={**world.rules.versions, aim.version: "gone"})


# --- requests Criteo does not take


@_named("too-large", "F13", "state")
def _too_large(world: World, aim: Aim) -> Undo:
    """Bodies of more than 1,000 bytes (or ``limit``) are too large: 413."""
    return ruling(world, max_body_bytes=1_000 if aim.limit is None else aim.limit)


@_named("too-many-identifiers", "F13", "state")
def _too_many_identifiers(world: World, aim: Aim) -> Undo:
    """More than 100 identifiers (or ``limit``) in a request are too many: 400 exceeded-ids-cap."""
    return ruling(world, max_identifiers=100 if aim.limit is None else aim.limit)


@_named("identifier-type-refused", "F14")
def _identifier_type_refused(world: World, aim: Aim) -> list[Fault]:
    """The type of the identifiers, or a missing gumCallerId, is refused: 400 invalid."""
    return aim.fault("amend", status=400, error_type="validation", code="invalid", title="identifierType is invalid")


@_named("identifiers-invalid", "F15", "state")
def _identifiers_invalid(world: World, aim: Aim) -> Undo:
    """A fifth of the identifiers (or ``share``), always the same ones, are called invalid inside a 200, ten of them
    by name."""
    return ruling(world, invalid_share=0.2 if aim.share is None else aim.share)


@_named("identifiers-invalid-unnamed", "F15", "state")
def _identifiers_invalid_unnamed(world: World, aim: Aim) -> Undo:
    """The same, and the answer names none of them: only the count tells."""
    return ruling(world, invalid_share=0.2 if aim.share is None else aim.share, sample_size=0)


@_named("nobody-matches", "F16", "state")
def _nobody_matches(world: World, aim: Aim) -> Undo:
    """Well-formed hashes of what was not normalised: all accepted as valid, nobody matches."""
    return ruling(world, match_rate=0.0)


# --- answers that mislead


@_named("statistics-lag", "F17", "state")
def _statistics_lag(world: World, aim: Aim) -> Undo:
    """Statistics stand still for twelve hours (or ``seconds``) between two processing runs."""
    for segment in world.segments.values():
        segment.published, segment.processed_s = len(segment.members), world.clock.monotonic_s()
    return ruling(world, statistics_lag_s=43_200.0 if aim.seconds is None else aim.seconds)


@_named("sizes-hidden", "F17", "state")
def _sizes_hidden(world: World, aim: Aim) -> Undo:
    """Sizes are shown as 0 below a million matches (or ``limit``)."""
    return ruling(world, hide_sizes_below=1_000_000 if aim.limit is None else aim.limit)


@_named("many-segments", "F18", "state")
def _many_segments(world: World, aim: Aim) -> Undo:
    """250 older audiences (or ``limit``) are in each ad account, so that a search takes several pages."""
    count = 250 if aim.limit is None else aim.limit
    wanted = [(advertiser, f"Older audience {n}", "ContactList") for advertiser in world.advertisers
              for n in range(count)]  # fmt: skip
    ours = dict(world.segments)
    undo = inserting(world, wanted)
    for number in ours:  # the older ones come first
        world.segments[number] = world.segments.pop(number)
    return undo


@_named("unknown-segment-type", "F19", "state")
def _unknown_segment_type(world: World, aim: Aim) -> Undo:
    """Each ad account has an audience of a type that no client knows yet."""
    return inserting(world, [(advertiser, "From the future", "Clairvoyant") for advertiser in world.advertisers])


@_named("unknown-error-type", "F19")
def _unknown_error_type(world: World, aim: Aim) -> list[Fault]:
    """A 400 whose error type and code no client knows yet."""
    return aim.fault("amend", status=400, error_type="novelty", code="never-heard-of", title="Something new")


@_named("unknown-members", "F19")
def _unknown_members(world: World, aim: Aim) -> list[Fault]:
    """Answers carry members and values no client knows yet, beside all the known ones."""
    news: dict[str, object] = {"novelty": {"a": 1}, "data/attributes/novelty": [None], "data/*/attributes/novelty": "x"}
    return aim.fault(API, rewrite=news)


@_named("no-content", "F20")
def _no_content(world: World, aim: Aim) -> list[Fault]:
    """The change was applied, and the answer is a 204 without a body."""
    return aim.fault("amend", status=204, body="", applied=True)


@_named("missing-arrays", "F20")
def _missing_arrays(world: World, aim: Aim) -> list[Fault]:
    """Answers leave out errors and warnings where they are empty."""
    return aim.fault(API, without=["errors", "warnings"])


@_named("null-arrays", "F20")
def _null_arrays(world: World, aim: Aim) -> list[Fault]:
    """errors and warnings are null instead of empty."""
    return aim.fault(API, rewrite={"errors": None, "warnings": None})


def _application(world: World, aim: Aim) -> Application:
    if aim.client_id not in world.applications:
        raise LookupError(f"There is no application {aim.client_id!r}")
    return world.applications[aim.client_id]


def _grants(world: World, aim: Aim) -> list[Grant]:
    """What the application may do by itself, and what people consented to."""
    return [_application(world, aim).grant, *(grant for grant in world.grants if grant.client_id == aim.client_id)]


def _busy_with(aim: Aim, **effect: object) -> list[Fault]:
    return aim.fault("*", status=429, reset_in_s=2.0 if aim.seconds is None else aim.seconds, **effect)


def _failed_creation(member: str) -> str:
    failure = {"type": "validation", "code": "invalid", "instance": "/", "title": "Segment is invalid",
               "detail": "Segment is invalid", "traceId": "0" * 32, "traceIdentifier": "0" * 32}  # fmt: skip
    return msgspec.json.encode({"data": [], "errors": [], "warnings": [], member: [failure]}).decode()
