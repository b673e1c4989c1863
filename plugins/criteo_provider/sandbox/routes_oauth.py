"""OAuth: the token endpoint with its three grants, and the consent page in front of the second."""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import secrets
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from criteo_provider.sandbox.answers import Answer, Refusal
from criteo_provider.sandbox.calls import Call, Operation
from criteo_provider.sandbox.state import Application, Code, Grant, RefreshToken, World

WRONG_CLIENT = "The client authentication failed, the provided client_id doesn't exist or the client_secret is invalid"
Form = dict[str, str]


class OAuthRefusal(Refusal):
    """A refusal of the token endpoint: OAuth's form, not Criteo's envelope."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(status, "authentication", error, description)

    def answer(self, instance: str) -> Answer:
        """Return it as ``error`` and ``error_description``."""
        body = msgspec.json.encode({"error": self.code, "error_description": self.title})
        return Answer(self.status, body, code=self.code)


def caller(world: World, body: bytes) -> Grant:
    """Return whose limit a token call counts against, as far as its form says."""
    form = dict(_pairs(body))
    application = world.applications.get(form.get("client_id", ""))
    held: Code | RefreshToken | None = None
    if form.get("grant_type") == "refresh_token":
        held = world.refresh_tokens.get(form.get("refresh_token", ""))
    elif form.get("grant_type") == "authorization_code":
        held = world.codes.get(form.get("code", ""))
    if held is not None:
        return held.grant
    return application.grant if application else world.anonymous


def token(call: Call) -> Answer:
    """Exchange credentials, a code or a refresh token for an access token of 900 s."""
    form = _form(call.body)
    grant_type = _needed(form, "grant_type")
    if grant_type not in GRANTS:
        raise OAuthRefusal(400, "unsupported_grant_type", "The grant type is not supported")
    application = _authenticated(call.world, form)
    grant, refresh_token = GRANTS[grant_type](call.world, application, form)
    content = {
        "access_token": call.world.new_token(grant),
        "token_type": "Bearer",
        "refresh_token": refresh_token,
        "expires_in": int(call.world.rules.token_life_s),
    }
    return Answer(200, msgspec.json.encode(content), headers={"cache-control": "no-store"})


def _client_credentials(world: World, application: Application, form: Form) -> tuple[Grant, None]:
    return application.grant, None


def _authorization_code(world: World, application: Application, form: Form) -> tuple[Grant, str]:
    code = world.codes.pop(_needed(form, "code"), None)  # one exchange, right or wrong
    if code is None or code.grant.client_id != application.client_id or code.ends_s <= world.clock.monotonic_s():
        raise _dead("The authorization code is unknown, used or expired")
    if _needed(form, "redirect_uri") != code.redirect_uri:
        raise _dead("The redirect_uri is not the one of the consent")
    if code.challenge is not None and challenge_of(_needed(form, "code_verifier")) != code.challenge:
        raise _dead("The code_verifier does not match")
    return code.grant, _new_refresh_token(world, code.grant)


def _refresh_token(world: World, application: Application, form: Form) -> tuple[Grant, str]:
    value = _needed(form, "refresh_token")
    held = world.refresh_tokens.get(value)
    if held is None or held.grant.client_id != application.client_id or held.grant.revoked or held.uses_left == 0:
        raise _dead("The refresh token is unknown, used or revoked")
    if held.uses_left is None:
        held.uses_left = 0 if world.rules.refresh_rotation == "strict" else 1
    else:
        held.uses_left -= 1
    return held.grant, _new_refresh_token(world, held.grant)


GRANTS = {
    "client_credentials": _client_credentials,
    "authorization_code": _authorization_code,
    "refresh_token": _refresh_token,
}


def challenge_of(verifier: str) -> str:
    """Return the S256 challenge of a PKCE verifier."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def new_code(
    world: World, client_id: str, redirect_uri: str, advertiser_ids: list[str], challenge: str | None = None
) -> str:
    """Return a code as the consent page would: somebody consented for these advertisers."""
    value = secrets.token_urlsafe(24)
    ends_s = world.clock.monotonic_s() + world.rules.code_life_s
    grant = Grant(client_id, "authorization_code", advertiser_ids, number=len(world.grants) + 1)
    world.grants.append(grant)
    world.codes[value] = Code(grant, redirect_uri, challenge, ends_s)
    return value


def consent_routes(world: World) -> list[Route]:
    """Return the consent page (consent.criteo.com/request at Criteo)."""

    async def page(request: Request) -> Response:
        problem = _consent_problem(world, dict(request.query_params))
        return problem or HTMLResponse(_consent_page(world, str(request.url.query)))

    async def decide(request: Request) -> Response:
        asked = dict(request.query_params)
        if problem := _consent_problem(world, asked):
            return problem
        pairs = _pairs(await request.body())
        chosen = [value for name, value in pairs if name == "advertiser" and value in world.advertisers]
        if ("decision", "allow") not in pairs or not chosen:
            return _back(asked, {"error": "access_denied"})
        code = new_code(world, asked["client_id"], asked["redirect_uri"], chosen, asked.get("code_challenge"))
        return _back(asked, {"code": code})

    return [Route("/request", page, methods=["GET"]), Route("/request", decide, methods=["POST"])]


def _consent_problem(world: World, asked: Form) -> Response | None:
    """Refuse on the spot what must not be redirected; send back what is the application's own mistake."""
    application = world.applications.get(asked.get("client_id", ""))
    if application is None:
        return HTMLResponse("<p>This application is unknown.</p>", 400)
    if asked.get("redirect_uri") not in application.redirect_uris:
        return HTMLResponse("<p>This redirect URI is not declared on the application.</p>", 400)
    if asked.get("response_type") != "code":
        return _back(asked, {"error": "unsupported_response_type"})
    wrong_method = "code_challenge" in asked and asked.get("code_challenge_method") != "S256"
    if wrong_method or (application.needs_pkce and "code_challenge" not in asked):
        return _back(asked, {"error": "invalid_request"})
    return None


def _back(asked: Form, outcome: Form) -> Response:
    if "state" in asked:
        outcome = {**outcome, "state": asked["state"]}
    joint = "&" if "?" in asked["redirect_uri"] else "?"
    return RedirectResponse(asked["redirect_uri"] + joint + urlencode(outcome), 302)


def _consent_page(world: World, query: str) -> str:
    boxes = "".join(
        f'<p><label><input type="checkbox" name="advertiser" value="{html.escape(number)}" checked> '
        f"{html.escape(name)}</label></p>"
        for number, name in world.advertisers.items()
    )
    return (
        '<!doctype html><html lang="en"><title>Consent - sandbox Criteo</title><h1>Sandbox Criteo</h1>'
        "<p>An application asks for access to these advertisers:</p>"
        f'<form method="post" action="?{html.escape(query)}">{boxes}'
        '<button name="decision" value="allow">Approve</button> '
        '<button name="decision" value="deny">Cancel</button></form></html>'
    )


def _pairs(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        return []


def _form(body: bytes) -> Form:
    pairs = _pairs(body)
    form = dict(pairs)
    if not pairs or len(form) != len(pairs):
        raise OAuthRefusal(400, "invalid_request", "The form is malformed, or names a field twice")
    return form


def _needed(form: Form, name: str) -> str:
    if not form.get(name):
        raise OAuthRefusal(400, "invalid_request", f"{name} is required")
    return form[name]


def _authenticated(world: World, form: Form) -> Application:
    application = world.applications.get(_needed(form, "client_id"))
    given = _needed(form, "client_secret").encode()
    if application is None or not hmac.compare_digest(given, application.client_secret.encode()):
        raise OAuthRefusal(world.rules.invalid_client_status, "invalid_client", WRONG_CLIENT)
    return application


def _new_refresh_token(world: World, grant: Grant) -> str:
    value = secrets.token_urlsafe(32)
    world.refresh_tokens[value] = RefreshToken(grant)
    return value


def _dead(description: str) -> OAuthRefusal:
    return OAuthRefusal(400, "invalid_grant", description)


OPERATIONS = (Operation("token", "POST", "/oauth2/token", "nothing", token),)
