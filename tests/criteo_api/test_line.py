"""The one door to Criteo: settings, time limits, what becomes of exceptions; on real sockets where it matters."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
import pytest

from criteo_provider.core.errors import Misconfigured
from criteo_provider.core.identifiers import Form
from criteo_provider.core.json_items import Piece, as_piece
from criteo_provider.core.outcome import Trouble
from criteo_provider.criteo_api.line import USER_AGENT, ClientSettings, Line, Reply, _trouble
from tests.criteo_api.doubles import CountedSlots

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nx-ratelimit-remaining: 9\r\n\r\n{}"


@contextmanager
def server(answer: bytes | None, *, read: bool = True) -> Iterator[tuple[str, list[bytes]]]:
    """A server for one connection after another: reads a request, sends ``answer`` (None: hangs up)."""
    received: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                received.append(_request(connection) if read else b"")
                if answer is None:
                    continue
                connection.sendall(answer)
                if not read:
                    done.wait(10)

    done = threading.Event()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", received
    finally:
        done.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    wanted = int(lengths[0]) if lengths else 0
    parts, got = [body], len(body)
    while got < wanted:
        part = connection.recv(65536)
        if not part:
            break
        got += len(part)
        if got < 1_000_000:  # enough to look at; a large body is not kept
            parts.append(part)
    return head + b"\r\n\r\n" + b"".join(parts)


def line(url: str, slots: CountedSlots | None = None, **limits: float) -> Line:
    return Line(ClientSettings("id", "secret", url, **limits), slots or CountedSlots())  # type: ignore[arg-type]


def test_a_request_on_the_wire() -> None:
    """A PATCH carries its length, its type, our name and the token, and no transfer encoding of any kind."""
    slots = CountedSlots()
    with server(OK) as (url, received), line(url, slots) as door:
        reply = door.send("PATCH", "/x", pieces=(b"ab", b"c" * 600_000), bearer="tok")
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (200, b"{}")
    head, _, body = received[0].partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "patch /x http/1.1"
    assert "content-length: 600002" in lines
    assert "content-type: application/json" in lines
    assert "authorization: bearer tok" in lines
    assert f"user-agent: {USER_AGENT}" in lines
    assert not [one for one in lines if one.startswith(("transfer-encoding", "content-encoding"))]
    assert body == b"ab" + b"c" * 600_000
    assert slots.seen == [(200, "9")]


def test_values_are_written_while_they_are_sent() -> None:
    """Stored values go out as their text, at a second try too, and take a fraction of it in memory."""
    values, many_values = bytes(range(32)) * 10_000, bytes(32) * 300_000
    body: tuple[Piece, ...] = (b"[", as_piece(values, Form.EMAIL_SHA256, lambda: values), b"]")
    large = as_piece(many_values, Form.EMAIL_SHA256, lambda: many_values)
    text = b"".join(map(bytes, body))
    assert len(text) > 600_000  # several slices
    with server(OK) as (url, received):
        for _ in range(2):
            with line(url) as door:
                door.send("PATCH", "/x", pieces=body)
        tracemalloc.start()
        try:
            with line(url) as door:
                door.send("PATCH", "/x", pieces=(large,))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(large) > 20_000_000
    assert peak < 5_000_000
    for request in received[:2]:
        head, _, sent = request.partition(b"\r\n\r\n")
        assert f"content-length: {len(text)}" in head.decode().lower()
        assert sent == text


def test_a_body_is_never_copied_whole() -> None:
    """Sending 20 MB takes a fraction of 20 MB more memory."""
    piece = b"a" * 20_000_000
    with server(OK) as (url, _), line(url) as door:
        tracemalloc.start()
        try:
            door.send("PATCH", "/x", pieces=(piece,))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nConten", b"nonsense\r\n\r\n"])
def test_a_broken_answer_is_cut_off(answer: bytes | None) -> None:
    """A server that hangs up, or talks nonsense, after the request makes it cut off: it may have been applied."""
    with server(answer) as (url, _), line(url) as door:
        assert door.send("PATCH", "/x", pieces=(b"ab",)) is Trouble.CUT_OFF


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 429 Slow\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 429 Slow\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_a_status_outlives_its_body(answer: bytes) -> None:
    """When only the body is broken the status still counts."""
    with server(answer) as (url, _), line(url) as door:
        reply = door.send("PATCH", "/x", pieces=(b"ab",))
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (429, b"")


def test_a_silent_server_has_an_end() -> None:
    """A server that never answers ends as no-answer after the read time-out."""
    with server(b"", read=False) as (url, _), line(url, read_s=0.2) as door:
        assert door.send("GET", "/x") is Trouble.NO_ANSWER


def test_a_server_that_takes_no_bytes_has_an_end() -> None:
    """A server that stops reading ends as cut off after the write time-out."""
    with server(b"", read=False) as (url, _), line(url, write_s=0.2, read_s=0.2) as door:
        assert door.send("PATCH", "/x", pieces=(b"a" * 30_000_000,)) is Trouble.CUT_OFF


def test_the_deadline_ends_a_slow_body() -> None:
    """The overall deadline ends a request that trickles, whatever the single time-outs say."""
    with server(OK) as (url, _), line(url, deadline_s=-1.0) as door:
        assert door.send("PATCH", "/x", pieces=(b"ab",)) is Trouble.CUT_OFF


def test_nobody_there() -> None:
    """A refused connection is unreachable: nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with line(f"http://127.0.0.1:{port}") as door:
        assert door.send("GET", "/x") is Trouble.UNREACHABLE


def test_the_last_check_comes_after_connecting() -> None:
    """before_first_byte is called once more when the connection stands, and what it raises stops every byte."""
    calls: list[int] = []

    def check() -> None:
        calls.append(len(received))
        if len(calls) == 2:
            raise TimeoutError("the lease is over")

    with server(OK) as (url, received), line(url) as door:
        with pytest.raises(TimeoutError):
            door.send("PATCH", "/x", pieces=(b"ab",), before_first_byte=check)
        assert isinstance(door.send("GET", "/again"), Reply)
    assert len(calls) == 2
    assert [one for one in received if one.startswith(b"PATCH")] == []


def test_proxies_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY is honoured, and a proxy that refuses has its own name."""
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as (url, received):
        monkeypatch.setenv("HTTP_PROXY", url)
        with line("http://criteo.invalid") as door:
            assert isinstance(door.send("GET", "/x"), Reply)
    assert received[0].startswith(b"GET http://criteo.invalid/x ")
    with server(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as (url, _):
        monkeypatch.setenv("HTTPS_PROXY", url)
        with line("https://criteo.invalid") as door:
            assert door.send("GET", "/x") is Trouble.PROXY


def test_redirects_are_not_followed() -> None:
    """A redirect comes back as it is, so that the token never travels elsewhere."""
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with server(answer) as (url, received), line(url) as door:
        reply = door.send("GET", "/x", bearer="tok")
    assert isinstance(reply, Reply)
    assert reply.status == 302
    assert len(received) == 1


def test_certificates_are_verified() -> None:
    """A certificate that is not trusted is told apart from a server that is not there."""
    chain = httpx.ConnectError("x")
    chain.__cause__ = ssl.SSLCertVerificationError("self-signed")
    assert _trouble(chain) is Trouble.UNTRUSTED
    assert _trouble(httpx.ConnectError("x")) is Trouble.UNREACHABLE
    assert _trouble(httpx.PoolTimeout("x")) is Trouble.NOT_SENT


def test_trouble_at_the_pacer_does_not_lose_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """When the pacer cannot take in the headers, the answer is still handed back and the log says so."""

    class Broken(CountedSlots):
        def observed(self, status: int, headers: Mapping[str, str]) -> None:
            raise OSError("database is locked")

    with server(OK) as (url, _), line(url, Broken()) as door, caplog.at_level(logging.WARNING):
        assert isinstance(door.send("GET", "/x"), Reply)
    assert "OSError" in caplog.text


def test_429s_in_a_row_are_counted() -> None:
    """The 429s before the latest answer are counted, and any other answer starts over."""
    statuses = iter([429, 429, 429, 200, 429])
    transport = httpx.MockTransport(lambda _: httpx.Response(next(statuses)))
    with Line(ClientSettings("id", "s"), CountedSlots(), transport=transport) as door:
        counts = []
        for _ in range(5):
            door.send("GET", "/x")
            counts.append(door.busy_before)
    assert counts == [0, 1, 2, 0, 0]


def test_no_secret_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Neither body nor token nor secret is in any log line, down to the finest level."""
    for name in ("httpx", "httpcore"):  # whoever was imported before may have silenced them
        caplog.set_level(logging.DEBUG, name)
    with server(OK) as (url, _), line(url) as door:
        door.send("PATCH", "/x", pieces=(b'"person@example.com"',), bearer="tok-1-secret")
    assert "person" not in caplog.text
    assert "tok-1" not in caplog.text
    assert "HTTP Request: PATCH" in caplog.text


def test_the_secret_is_in_no_repr() -> None:
    """The settings do not show the client secret."""
    assert "hush" not in repr(ClientSettings("id", "hush"))


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"client_id": " "}, "client id"),
        ({"client_secret": ""}, "client secret"),
        ({"base_url": "api.criteo.com"}, "base URL"),
        ({"base_url": "https://user:pw@api.criteo.com"}, "base URL"),
        ({"base_url": "https://api.criteo.com/2026-07"}, "base URL"),
        ({"base_url": "http://[::1"}, "base URL"),
        ({"base_url": "https://x:99999"}, "base URL"),
        ({"base_url": ""}, "base URL"),
        ({"api_version": "2026-7"}, "api_version"),
        ({"api_version": "../x"}, "api_version"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, str], key: str) -> None:
    """A setting that cannot work is refused at once with its name and the mend."""
    with pytest.raises(Misconfigured, match=key) as caught:
        ClientSettings(**{"client_id": "id", "client_secret": "hush"} | wrong)
    assert "hush" not in str(caught.value)


def test_the_longest_call_is_known() -> None:
    """Leases can be longer than any call: the bound holds connecting, the deadline and one more wait."""
    assert ClientSettings("id", "s").request_timeout_s == 10 + 10 + 120 + 60


@pytest.mark.parametrize(
    ("headers", "when"),
    [
        (b"Deprecation: true\r\nSunset: Tue, 02 Feb 2027 00:00:00 GMT\r\n", " on 02 February 2027"),
        (b"Deprecation: true\r\nSunset: soon\r\n", ""),
        (b"deprecation: true\r\n", ""),
        (b"Deprecation: false\r\n", None),
        (b"", None),
    ],
)
def test_the_end_of_an_api_version_is_told_once(
    headers: bytes, when: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Criteo announces that a version is to be retired, one warning says which, when, and what to do."""
    headers += b"Connection: close\r\n"  # the server hangs up, and must not do so on the second call
    with (
        server(OK.replace(b"x-ratelimit", headers + b"x-ratelimit", 1)) as (url, _),
        Line(ClientSettings("id", "secret", url), CountedSlots()) as line,
    ):
        for _ in range(2):
            assert isinstance(line.send("GET", "/x"), Reply)
    told = [record.getMessage() for record in caplog.records if "retires" in record.getMessage()]
    sentence = f"Criteo retires API version 2026-07{when}. Set a newer one in the Criteo connection before that."
    assert told == ([] if when is None else [sentence])
