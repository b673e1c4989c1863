"""The sandbox's HTTP face."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Mount, Route

from criteo_provider.sandbox import (
    admin,
    desk,
    page,
    routes_account,
    routes_audiences,
    routes_contact_list,
    routes_oauth,
    routes_segments,
)
from criteo_provider.sandbox.calls import Operation
from criteo_provider.sandbox.state import World

OPERATIONS: tuple[Operation, ...] = (
    *routes_oauth.OPERATIONS,
    *routes_account.OPERATIONS,
    *routes_segments.OPERATIONS,
    *routes_contact_list.OPERATIONS,
    *routes_audiences.OPERATIONS,
)
UNKNOWN = Operation("unknown", "*", "/{rest:path}", "nothing", desk.unknown_route)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def create_app(world: World) -> Starlette:
    """Return the application that shows ``world``: Criteo's API, the consent page, ``/_admin``, and a page to watch."""
    api = [
        Route(operation.path, desk.endpoint(world, operation), methods=[operation.method]) for operation in OPERATIONS
    ]
    return Starlette(
        routes=[
            Mount("/_admin", routes=admin.routes(world)),
            *page.routes(world),
            *routes_oauth.consent_routes(world),
            *api,
            Route(UNKNOWN.path, desk.endpoint(world, UNKNOWN), methods=METHODS),
        ]
    )
