"""The app the API server mounts at /audience-sync: pages as HTML, data as JSON, everything for signed-in users only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException

from criteo_provider.core.errors import CriteoSyncError
from criteo_provider.core.model import Metric
from criteo_provider.ui import accounts, oauth
from criteo_provider.ui.clerk import Clerk
from criteo_provider.ui.doorkeeper import OUR_HEADER, SAME_ORIGIN, SIGNED_IN, SafeHeaders, UnsaidCallback, sign_in_url
from criteo_provider.ui.meanings import LAW, MEANINGS, ON_THEIR_WAY
from criteo_provider.ui.onlooker import Onlooker
from criteo_provider.ui.overview import Overview

_HERE = Path(__file__).parent
_templates = Jinja2Templates(directory=_HERE / "templates")

# Whoever adds a route here adds it for signed-in users, and safe from foreign pages; a test walks them all.
router = APIRouter(dependencies=[SIGNED_IN, SAME_ORIGIN])


@router.get("/", response_class=HTMLResponse)
def audiences(request: Request) -> Response:
    """The page Audiences; its numbers come from ``/api/steps``."""
    columns = [(metric.name.lower(), metric.value, MEANINGS[metric]) for metric in Metric]
    return _page(request, "audiences.html", here="audiences", columns=columns, on_their_way=ON_THEIR_WAY, law=LAW)


@router.get("/accounts", response_class=HTMLResponse)
def accounts_page(request: Request) -> Response:
    """The page Accounts; what it shows comes from ``/api/accounts``."""
    return _page(request, "accounts.html", here="accounts", our_header=OUR_HEADER)


# A plain function: FastAPI runs it in a thread, so a slow ledger does not hold up Airflow's event loop.
@router.get("/api/steps")
def steps(request: Request) -> Overview:
    """All steps by canvas with their numbers, and everything that is to be mended."""
    onlooker: Onlooker = request.app.state.onlooker
    return onlooker.overview()


def create_app() -> FastAPI:
    """Make the app; it has no description of itself, which would be public."""
    app = FastAPI(lifespan=_lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.onlooker, app.state.clerk = Onlooker(), Clerk()
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")  # public: no data in there
    for routes in (accounts.router, oauth.router):
        router.include_router(routes)
    app.include_router(router)
    app.add_exception_handler(HTTPException, _on_refusal)
    app.add_exception_handler(CriteoSyncError, _on_trouble)
    app.add_middleware(SafeHeaders)
    app.add_middleware(UnsaidCallback)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.onlooker.close()


def _page(request: Request, name: str, *, status_code: int = 200, **context: object) -> Response:
    """Render a page; its links are relative to ``root``, so it works behind any prefix."""
    known = {"root": request.scope["root_path"], "sign_in": sign_in_url()}
    return _templates.TemplateResponse(request, name, {**known, **context}, status_code=status_code)


async def _on_refusal(request: Request, refusal: Exception) -> Response:
    """Answer a page without a session with a page; programs get JSON, as everywhere in Airflow."""
    assert isinstance(refusal, HTTPException)  # noqa: S101 - registered for this class only
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, refusal)
    if refusal.status_code == 401:
        return _page(request, "signin.html", status_code=401)
    return _page(request, "refused.html", sentence=refusal.detail, status_code=refusal.status_code)


async def _on_trouble(request: Request, trouble: Exception) -> Response:
    """Answer what cannot be done with the sentence that says why, and what to do."""
    if "text/html" in request.headers.get("accept", ""):
        return _page(request, "refused.html", sentence=str(trouble), status_code=409)
    return JSONResponse({"detail": str(trouble)}, 409)
