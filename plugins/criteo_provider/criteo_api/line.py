"""Line: the one door to Criteo; every call has an end in time, and no exception carries a request out."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import urlsplit

import httpx

from criteo_provider import __version__
from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.json_items import JsonItems, Piece
from criteo_provider.core.outcome import Trouble
from criteo_provider.core.ports import SlotGate

log = logging.getLogger(__name__)

DEFAULT_BASE_URL = "https://api.criteo.com"
DEFAULT_API_VERSION = "2026-07"
USER_AGENT = f"criteo-audience-sync/{__version__}"
_VERSION = re.compile(r"\d{4}-\d{2}|experimental|preview", re.ASCII)
# Handed to the socket in slices: a slice is what is written or copied, and what the deadline is looked at between.
_SLICE = 256 * 1024
_LARGEST_ANSWER = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Which application, where, and how long a call may take (seconds)."""

    client_id: str
    client_secret: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    api_version: str = DEFAULT_API_VERSION
    connect_s: float = 10.0
    read_s: float = 60.0
    write_s: float = 60.0
    pool_s: float = 10.0
    deadline_s: float = 120.0

    def __post_init__(self) -> None:
        for key, value in (
            ("client id (login)", self.client_id),
            ("client secret (password)", self.client_secret),
        ):
            if not value.strip():
                raise Misconfigured(f"Criteo connection: {key} is empty. Copy it from Criteo's developer portal.")
        if not _is_url(self.base_url):
            raise Misconfigured(
                "Criteo connection: base URL (host) is not a web address. "
                f"Write {DEFAULT_BASE_URL}, or http://… for a sandbox; no path, no user."
            )
        if not _VERSION.fullmatch(self.api_version):
            raise Misconfigured(
                "Criteo connection: api_version is not a version of Criteo's API. "
                f"Write it as year and month, such as {DEFAULT_API_VERSION}."
            )

    @property
    def request_timeout_s(self) -> float:
        """The longest a call can take from its slot to its outcome; a lease has to be longer."""
        return self.connect_s + self.pool_s + self.deadline_s + max(self.read_s, self.write_s)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the stages of a call may take (seconds), and all of it."""

    connect_s: float
    read_s: float
    write_s: float
    pool_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came over the wire; an oversized or broken body is ``b""``."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Line:
    """HTTP/1.1 to one Criteo application; thread-safe; TLS verified, proxies of the environment honoured."""

    def __init__(
        self, settings: ClientSettings, slots: SlotGate, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.settings = settings
        self._slots = slots
        self._busy_in_a_row = 0
        self._told_of_end = False
        self._http = httpx.Client(
            base_url=settings.base_url.rstrip("/"),
            headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
            timeout=_timeout(settings),
            transport=transport,
        )

    @property
    def busy_before(self) -> int:
        """How many 429s came in a row before the latest answer."""
        return max(0, self._busy_in_a_row - 1)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for_slot(self, *, interactive: bool = False) -> None:
        """Take the slot of the next call."""
        self._slots.enter(interactive=interactive)

    def send(
        self,
        method: str,
        path: str,
        *,
        pieces: Sequence[Piece] = (),
        content_type: str = "application/json",
        bearer: str | None = None,
        params: Mapping[str, int] | None = None,
        before_first_byte: Callable[[], None] | None = None,
        patience: Patience | None = None,
    ) -> Reply | Trouble:
        """Make one call inside a slot taken before; what goes wrong comes back as a Trouble.

        ``before_first_byte`` is called before connecting and again right before the request's first byte;
        what it raises ends the call with nothing sent. ``patience`` is for a call in more of a hurry.
        """
        deadline_s = time.monotonic() + (patience or self.settings).deadline_s
        request = self._request(method, path, pieces, content_type, bearer, params, deadline_s)
        if patience is not None:
            request.extensions["timeout"] = _timeout(patience).as_dict()
        if before_first_byte is not None:
            before_first_byte()
            request.extensions["trace"] = _before_headers(before_first_byte)
        reply: Reply | Trouble
        try:
            reply = self._answer(request, deadline_s)
        except (httpx.HTTPError, httpx.StreamError) as error:
            reply = _trouble(error)
        if isinstance(reply, Reply):  # outside of the handler, so that no exception carries the request along
            self._observe(reply)
        return reply

    def _request(
        self,
        method: str,
        path: str,
        pieces: Sequence[Piece],
        content_type: str,
        bearer: str | None,
        params: Mapping[str, int] | None,
        deadline_s: float,
    ) -> httpx.Request:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer is not None else {}
        body = None
        if pieces:
            headers |= {"Content-Type": content_type, "Content-Length": str(sum(map(len, pieces)))}
            body = _Slices(pieces, deadline_s)
        return self._http.build_request(method, path, headers=headers, params=params, content=body)

    def _answer(self, request: httpx.Request, deadline_s: float) -> Reply:
        response = self._http.send(request, stream=True)
        try:
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > _LARGEST_ANSWER or time.monotonic() > deadline_s:
                    body.clear()
                    break
        except (httpx.HTTPError, httpx.StreamError):
            body.clear()  # the status alone still says much
        finally:
            response.close()
        return Reply(response.status_code, response.headers, bytes(body))

    def _observe(self, reply: Reply) -> None:
        self._tell_of_end(reply)
        self._busy_in_a_row = self._busy_in_a_row + 1 if reply.status == 429 else 0
        try:
            self._slots.observed(reply.status, reply.headers)
        except Exception as error:  # the answer counts more than the pacer's news of it
            log.warning("The pacer could not take in an answer's rate limit (%s).", type(error).__name__)

    def _tell_of_end(self, reply: Reply) -> None:
        """Say once that the API version is to be retired, and when, as far as Criteo's headers tell."""
        deprecated = reply.headers.get("deprecation", "").lower() not in ("", "false")
        if self._told_of_end or not deprecated:
            return
        self._told_of_end = True
        try:
            when = f" on {parsedate_to_datetime(reply.headers.get('sunset', '')):%d %B %Y}"
        except ValueError:
            when = ""
        log.warning(
            "Criteo retires API version %s%s. Set a newer one in the Criteo connection before that.",
            self.settings.api_version,
            when,
        )


class _Slices(httpx.SyncByteStream):
    """The pieces of a body in slices; can be read again; ends with a time-out at the deadline."""

    def __init__(self, pieces: Sequence[Piece], deadline_s: float) -> None:
        self._pieces = pieces
        self._deadline_s = deadline_s

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            for part in _sliced(piece):
                if time.monotonic() > self._deadline_s:
                    raise httpx.WriteTimeout("the deadline of the call is over")
                yield part


def _sliced(piece: Piece) -> Iterator[bytes]:
    if isinstance(piece, JsonItems):
        return piece.stretches(_SLICE)
    return (piece[start : start + _SLICE] for start in range(0, len(piece), _SLICE))


def _timeout(patience: Patience | ClientSettings) -> httpx.Timeout:
    return httpx.Timeout(connect=patience.connect_s, read=patience.read_s, write=patience.write_s, pool=patience.pool_s)


def _before_headers(check: Callable[[], None]) -> Callable[[str, Mapping[str, object]], None]:
    def trace(event: str, _info: Mapping[str, object]) -> None:
        if event == "http11.send_request_headers.started":
            check()

    return trace


def _trouble(error: Exception) -> Trouble:
    """Sort an exception of httpx by whether the request can have reached Criteo."""
    if isinstance(error, httpx.ProxyError):
        return Trouble.PROXY
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol):
        return Trouble.UNTRUSTED if _is_certificate_trouble(error) else Trouble.UNREACHABLE
    if isinstance(error, httpx.PoolTimeout):
        return Trouble.NOT_SENT
    return Trouble.NO_ANSWER if isinstance(error, httpx.ReadTimeout) else Trouble.CUT_OFF


def _is_certificate_trouble(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("https", "http")
            and bool(parts.hostname)
            and parts.port != 0
            and parts.path in ("", "/")
            and not (parts.query or parts.fragment or parts.username or parts.password)
        )
    except ValueError:  # a port that is no number, a bracket that does not close
        return False
