"""Consent: the address a person is sent to at Criteo, and what comes back with them.

Source: Criteo's pages authorization-code-setup and authorization-code-pkce-setup; RFC 6749 (4.1), RFC 7636 (S256).
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from criteo_provider.core.answer import plain_words

CRITEO_API_HOST = "api.criteo.com"
CRITEO_CONSENT_URL = "https://consent.criteo.com/request"
_CANCELLED = "access-denied"
_CODE = re.compile(r"[\x21-\x7e]{1,4096}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for consent: what to keep until the person is back, bound to that person and shown to nobody."""

    state: str = field(repr=False)
    verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Returned:
    """What a person came back with: a code, or ``error`` (Criteo's word for why there is none)."""

    state: str = field(repr=False)
    code: str = field(repr=False)
    error: str

    @property
    def is_cancelled(self) -> bool:
        """Whether the person has said no."""
        return self.error == _CANCELLED

    def answers(self, asked: Asked) -> bool:
        """Whether it belongs to this request; whoever cannot show its state was sent here by somebody else."""
        return secrets.compare_digest(self.state.encode(), asked.state.encode())


def new_request() -> Asked:
    """Return a state and a PKCE verifier that nobody can guess."""
    return Asked(state=secrets.token_urlsafe(32), verifier=secrets.token_urlsafe(64))


def default_consent_url(base_url: str) -> str:
    """Return where consent is given for an API address: at Criteo on a host of its own, elsewhere beside the API."""
    if urlsplit(base_url).hostname == CRITEO_API_HOST:
        return CRITEO_CONSENT_URL
    return base_url.rstrip("/") + "/request"


def consent_url(where: str, client_id: str, redirect_uri: str, asked: Asked) -> str:
    """Return the address to send a person to, so that Criteo sends them back to ``redirect_uri`` with a code."""
    question = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "state": asked.state,
        "code_challenge": challenge_of(asked.verifier),
        "code_challenge_method": "S256",
    }
    return f"{where}{'&' if urlsplit(where).query else '?'}{urlencode(question)}"


def challenge_of(verifier: str) -> str:
    """Return the S256 challenge of a verifier: it can be shown, the verifier cannot be told from it."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode()


def read_redirect(query: Mapping[str, str]) -> Returned:
    """Read the query Criteo sends a person back with; what makes no sense is an error called ``no-answer``."""
    state, code, error = (query.get(name, "") for name in ("state", "code", "error"))
    if error or not _CODE.fullmatch(code):
        return Returned(state, "", plain_words(error.replace("_", "-")) or "no-answer")
    return Returned(state, code, "")
