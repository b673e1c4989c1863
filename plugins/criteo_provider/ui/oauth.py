"""A person's way to Criteo and back: what was asked travels in a cookie that only this Airflow can read.

State and PKCE verifier are kept by the browser, encrypted with Airflow's Fernet key and bound to the user, so any API
server of a deployment can finish what another has begun. One cookie for each attempt: two tabs do not disturb another.
"""

from __future__ import annotations

import hashlib
import json
import time

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from criteo_provider.core.errors import AccessLost, Busy, CriteoSyncError, Misconfigured
from criteo_provider.criteo_api.consent import Asked, new_request, read_redirect
from criteo_provider.hooks import airflow_inside
from criteo_provider.hooks.addresses import accounts_page, oauth_path, served_over_tls
from criteo_provider.store.consents import no_cipher
from criteo_provider.ui.clerk import Clerk
from criteo_provider.ui.doorkeeper import MAY_CHANGE, User, may_write, name_of, note

TIME_TO_CONSENT_S = 600
_LOST = (
    "This way back from Criteo is unknown here, belongs to another user, or took longer than 10 minutes; nothing was "
    "stored. Start again on the Accounts page. If you are connecting from a command line, copy the whole address of "
    "this page and paste it there."
)

router = APIRouter(prefix="/oauth")


@router.get("/start/{conn_id}", dependencies=[MAY_CHANGE])
def start(request: Request, conn_id: str, user: User) -> Response:
    """Send a person to Criteo's consent page."""
    clerk: Clerk = request.app.state.clerk
    asked = new_request()
    answer = RedirectResponse(clerk.consent_address(conn_id, asked), 302)
    answer.set_cookie(
        _cookie(asked.state),
        _sealed(asked, str(user.get_id()), conn_id),
        max_age=TIME_TO_CONSENT_S,
        path=oauth_path(),
        secure=served_over_tls(),
        httponly=True,
        # Not "strict": then it would not come along on the way back from another site.
        samesite="lax",
    )
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


@router.get("/callback")
def callback(request: Request, user: User) -> Response:
    """Take a person in who comes back from Criteo; nothing is stored unless they have consented."""
    clerk: Clerk = request.app.state.clerk
    returned = read_redirect(request.query_params)
    kept = _kept(request.cookies.get(_cookie(returned.state), ""))
    asked = Asked(kept.get("state", ""), kept.get("verifier", ""))
    if not kept or not returned.answers(asked) or kept["user"] != str(user.get_id()):
        raise HTTPException(400, _LOST)
    conn_id = kept["conn_id"]
    if not may_write(user, "PUT", conn_id):
        raise HTTPException(403, "Only who may write Airflow connections may do this.")
    told = {"connection": conn_id}
    if returned.error:
        told["returned"] = "cancelled" if returned.is_cancelled else "refused"
    else:
        try:
            clerk.came_back(conn_id, returned.code, asked.verifier, by=name_of(user))
        except CriteoSyncError as error:
            told["returned"] = _why(error)
        else:
            note(user, "consent.give", conn_id)
            told["returned"] = "consented"
    answer = RedirectResponse(accounts_page(**told), 303)
    answer.delete_cookie(_cookie(returned.state), path=oauth_path())
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


def _cookie(state: str) -> str:
    return f"criteo_consent_{hashlib.sha256(state.encode()).hexdigest()[:12]}"


def _sealed(asked: Asked, user: str, conn_id: str) -> str:
    cipher = airflow_inside.cipher()
    if cipher is None:
        raise no_cipher()
    until_s = str(time.time() + TIME_TO_CONSENT_S)
    kept = {"state": asked.state, "verifier": asked.verifier, "user": user, "conn_id": conn_id, "until_s": until_s}
    return cipher.encrypt(json.dumps(kept).encode()).decode()


def _kept(sealed: str) -> dict[str, str]:
    """Open what ``start`` has sealed; empty when it is forged, too old, or under another key."""
    cipher = airflow_inside.cipher()
    if cipher is None:
        return {}
    try:
        kept: dict[str, str] = json.loads(cipher.decrypt(sealed.encode()))
    except ValueError:
        return {}
    return kept if float(kept["until_s"]) > time.time() else {}


def _why(error: CriteoSyncError) -> str:
    """Name what went wrong by a word the page has a sentence for: an address is no place for a sentence."""
    if isinstance(error, AccessLost):
        return error.code if error.code in {"wrong-client-pair", "consent-lost"} else "refused"
    if isinstance(error, Misconfigured):
        return "misconfigured"
    return "busy" if isinstance(error, Busy) else "unavailable"
