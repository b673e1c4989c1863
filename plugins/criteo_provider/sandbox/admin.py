"""The admin API under ``/_admin``: move the clock, change the rules, throw faults, look inside.

It shows counts, sizes and times; never a token, a secret or an identifier.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from criteo_provider.sandbox import routes_oauth
from criteo_provider.sandbox.catalogue import CATALOGUE
from criteo_provider.sandbox.faults import Fault
from criteo_provider.sandbox.identifiers import key_of
from criteo_provider.sandbox.journal import Entry
from criteo_provider.sandbox.ratelimit import largest_in_window
from criteo_provider.sandbox.routes_contact_list import mark
from criteo_provider.sandbox.state import Segment, World
from criteo_provider.sandbox.throwing import Aim, NamedFault

Result = object
Handler = Callable[[World, Request, bytes], Result]


class AdminRefused(Exception):
    """The admin call is wrong; the text says how."""


class _Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A body of the admin API."""


class ClockMove(_Body):
    """How far to move the clock."""

    advance_s: Annotated[float, msgspec.Meta(ge=0)]


class ApplicationChange(_Body):
    """What to change about an application, or to say about a new one."""

    client_secret: str | UnsetType = UNSET
    permission: Literal["none", "read", "manage"] | UnsetType = UNSET
    advertisers: list[str] | UnsetType = UNSET
    revoked: bool | UnsetType = UNSET
    limit: int | UnsetType | None = UNSET
    redirect_uris: list[str] | UnsetType = UNSET
    needs_pkce: bool | UnsetType = UNSET


class Throw(Aim, forbid_unknown_fields=True, kw_only=True):
    """Which named fault to throw, and at whom."""

    name: str


class NewSegment(_Body):
    """A segment that appears as if made in Criteo's own UI."""

    advertiser_id: str
    name: str
    kind: Literal["ContactList", "InMarket", "Lookalike"] = "ContactList"
    read_only: bool = False


class NewCode(_Body):
    """A consent given without the page."""

    client_id: str
    redirect_uri: str
    advertisers: list[str]


class Marks(_Body):
    """Identifiers to treat specially; each member given replaces the former set."""

    identifier_type: Literal["email", "madid", "identityLink", "gum", "phoneNumber"] = "email"
    gum_caller_id: int | None = None
    invalid: list[str] | UnsetType = UNSET
    refused: list[str] | UnsetType = UNSET
    known_addresses: list[str] = []


class Question(_Body):
    """Whose membership is asked."""

    segment_id: int
    identifiers: list[str]
    identifier_type: Literal["email", "madid", "identityLink", "gum", "phoneNumber"] = "email"
    gum_caller_id: int | None = None


def state(world: World, request: Request, body: bytes) -> Result:
    """Show everything at a glance."""
    return {
        "clock_epoch_s": world.clock.wall_s(),
        "rules": world.rules,
        "advertisers": world.advertisers,
        "applications": [
            {
                "client_id": application.client_id,
                "name": application.name,
                "permission": application.permission,
                "limit": world.limit_of(application.grant),
                "advertisers": application.grant.advertiser_ids,
                "revoked": application.grant.revoked,
            }
            for application in world.applications.values()
        ],
        "segments": [_segment(segment) for segment in world.segments.values()],
        "faults": world.faults.listed(),
        "faults_in_force": world.faults.names_in_force(),
        "requests": {
            "total": world.journal.total,
            "by_status": world.journal.by_status,
            "by_operation": world.journal.by_operation,
        },
    }


def reset(world: World, request: Request, body: bytes) -> Result:
    """Start over: applications and rules as first declared; no segments, tokens, faults or log."""
    world.reset()
    return {}


def advance(world: World, request: Request, body: bytes) -> Result:
    """Move the clock forward: tokens age, the rate window rolls on."""
    world.clock.advance(msgspec.json.decode(body, type=ClockMove).advance_s)
    return {"clock_epoch_s": world.clock.wall_s()}


def change_rules(world: World, request: Request, body: bytes) -> Result:
    """Replace some rules (see ``rules.Rules``)."""
    world.rules = world.rules.changed(msgspec.json.decode(body, type=dict[str, object]))
    return world.rules


def add_fault(world: World, request: Request, body: bytes) -> Result:
    """Put one fault in force (see ``faults.Fault``)."""
    world.faults.add(msgspec.json.decode(body, type=Fault))
    return world.faults.listed()


def list_faults(world: World, request: Request, body: bytes) -> Result:
    """List the faults in force."""
    return world.faults.listed()


def clear_faults(world: World, request: Request, body: bytes) -> Result:
    """Take every fault back."""
    world.faults.clear()
    return []


def show_catalogue(world: World, request: Request, body: bytes) -> Result:
    """List the named faults: where each was seen, whether it hits calls or lasts, and what happens."""
    return [
        {"name": named.name, "source": named.source, "kind": named.kind, "says": named.says}
        for named in CATALOGUE.values()
    ]


def throw_fault(world: World, request: Request, body: bytes) -> Result:
    """Throw a named fault (see ``catalogue``)."""
    wanted = msgspec.json.decode(body, type=Throw)
    _fault(wanted.name).throw(world, wanted)
    return world.faults.names_in_force()


def take_back_fault(world: World, request: Request, body: bytes) -> Result:
    """Take back the named faults of one name; others stay."""
    world.faults.take_back(_fault(request.path_params["name"]).name)
    return world.faults.names_in_force()


def change_application(world: World, request: Request, body: bytes) -> Result:
    """Change an application, or declare a new one."""
    change = msgspec.json.decode(body, type=ApplicationChange)
    client_id = request.path_params["client_id"]
    application = world.applications.get(client_id)
    if application is None:
        if isinstance(change.client_secret, UnsetType):
            raise AdminRefused("A new application needs a client_secret")
        application = world.add_application(client_id, change.client_secret, name=client_id)
    for name in ("client_secret", "permission", "limit", "redirect_uris", "needs_pkce"):
        if (value := getattr(change, name)) is not UNSET:
            setattr(application, name, value)
    of_people = [grant for grant in world.grants if grant.client_id == client_id]
    if not isinstance(change.advertisers, UnsetType):
        application.grant.advertiser_ids = change.advertisers
    if not isinstance(change.revoked, UnsetType):
        for grant in (application.grant, *of_people):
            grant.revoked = change.revoked
    return {"client_id": client_id}


def add_advertiser(world: World, request: Request, body: bytes) -> Result:
    """Declare an advertiser; nobody consented for it yet."""
    world.advertisers[request.path_params["advertiser_id"]] = msgspec.json.decode(body, type=dict[str, str])["name"]
    return world.advertisers


def add_segment(world: World, request: Request, body: bytes) -> Result:
    """Make a segment as Criteo's UI would; a name that is taken is not refused."""
    wanted = msgspec.json.decode(body, type=NewSegment)
    if wanted.advertiser_id not in world.advertisers:
        raise AdminRefused("This advertiser is not declared")
    segment = world.new_segment(wanted.advertiser_id, wanted.name, kind=wanted.kind, read_only=wanted.read_only)
    return _segment(segment)


def delete_segment(world: World, request: Request, body: bytes) -> Result:
    """Delete a segment as somebody in Criteo's UI would."""
    return {"deleted": world.segments.pop(request.path_params["segment_id"], None) is not None}


def add_code(world: World, request: Request, body: bytes) -> Result:
    """Consent without the page; returns the authorization code."""
    wanted = msgspec.json.decode(body, type=NewCode)
    return {"code": routes_oauth.new_code(world, wanted.client_id, wanted.redirect_uri, wanted.advertisers)}


def mark_identifiers(world: World, request: Request, body: bytes) -> Result:
    """Say which identifiers count as invalid, which make a request refused, and which addresses are known."""
    marks = msgspec.json.decode(body, type=Marks)
    if not isinstance(marks.invalid, UnsetType):
        world.called_invalid = mark(marks.identifier_type, marks.invalid, marks.gum_caller_id)
    if not isinstance(marks.refused, UnsetType):
        world.refused = mark(marks.identifier_type, marks.refused, marks.gum_caller_id)
    world.know(marks.known_addresses)
    return {
        "invalid": len(world.called_invalid),
        "refused": len(world.refused),
        "known": len(world.people) // 3,
    }


def membership(world: World, request: Request, body: bytes) -> Result:
    """Tell of each identifier, in order, whether it is in the list."""
    question = msgspec.json.decode(body, type=Question)
    segment = world.segments.get(question.segment_id)
    if segment is None:
        raise AdminRefused("There is no such segment")
    keys = (key_of(text, question.identifier_type, question.gum_caller_id) for text in question.identifiers)
    members = segment.members
    return {"present": [key is not None and members.has(question.identifier_type, key) for key in keys]}


def requests(world: World, request: Request, body: bytes) -> Result:
    """List the calls after number ``since``, oldest first, with their real arrival times."""
    return world.journal.since(int(request.query_params.get("since", "0")))


def rate(world: World, request: Request, body: bytes) -> Result:
    """Count the API calls in the fullest rolling window, on real arrival times, refused ones included."""
    window_s = float(request.query_params.get("window_s", world.rules.window_s))
    entries: list[Entry] = world.journal.since()
    return {
        "window_s": window_s,
        "largest": largest_in_window([entry.arrived_s for entry in entries], window_s),
        "total": len(entries),
        "refused": sum(entry.status == 429 for entry in entries),
    }


def routes(world: World) -> list[Route]:
    """Return the routes below ``/_admin``."""
    table: list[tuple[str, str, Handler]] = [
        ("GET", "/state", state),
        ("POST", "/reset", reset),
        ("POST", "/clock", advance),
        ("POST", "/rules", change_rules),
        ("GET", "/faults", list_faults),
        ("POST", "/faults", add_fault),
        ("DELETE", "/faults", clear_faults),
        ("GET", "/faults/catalogue", show_catalogue),
        ("POST", "/faults/throw", throw_fault),
        ("DELETE", "/faults/{name}", take_back_fault),
        ("POST", "/applications/{client_id}", change_application),
        ("POST", "/advertisers/{advertiser_id}", add_advertiser),
        ("POST", "/segments", add_segment),
        ("DELETE", "/segments/{segment_id:int}", delete_segment),
        ("POST", "/codes", add_code),
        ("POST", "/identifiers", mark_identifiers),
        ("POST", "/membership", membership),
        ("GET", "/requests", requests),
        ("GET", "/rate", rate),
    ]
    return [Route(path, _endpoint(world, handle), methods=[method]) for method, path, handle in table]


def _endpoint(world: World, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def attend(request: Request) -> Response:
        body = await request.body()
        try:
            content, status = handle(world, request, body), 200
        except (AdminRefused, LookupError, ValueError, msgspec.MsgspecError) as error:
            content, status = {"error": str(error)}, 400
        return Response(msgspec.json.encode(content), status, media_type="application/json")

    return attend


def _fault(name: str) -> NamedFault:
    if name not in CATALOGUE:
        raise AdminRefused(f"There is no fault named {name!r}: GET /_admin/faults/catalogue lists them")
    return CATALOGUE[name]


def _segment(segment: Segment) -> dict[str, object]:
    return {
        "id": segment.number,
        "advertiser_id": segment.advertiser_id,
        "name": segment.name,
        "kind": segment.kind,
        "read_only": segment.read_only,
        "size": len(segment.members),
        "added": segment.members.added,
        "removed": segment.members.removed,
    }
