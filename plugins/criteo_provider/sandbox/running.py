"""A sandbox for the length of a test or a benchmark: in a thread, or in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from criteo_provider.sandbox.rules import Rules
from criteo_provider.sandbox.serve import HOST, listening_socket, server_for
from criteo_provider.sandbox.state import ADVERTISERS, CLIENT_ID, CLIENT_SECRET, World

START_S = 30.0
# The memory of one large body is kept for the next one: to ask for it anew costs a seventh of what a request does.
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "67108864", "MALLOC_MMAP_THRESHOLD_": "33554432"}


class Sandbox:
    """A running sandbox: its ``url``, credentials, admin calls, and (in a thread only) its ``world``."""

    client_id = CLIENT_ID
    client_secret = CLIENT_SECRET
    advertiser_id = ADVERTISERS[0][0]

    def __init__(self, url: str, world: World | None = None) -> None:
        self.url = url
        self._world = world

    @property
    def world(self) -> World:
        """The world itself, to look into between calls; only where the sandbox runs in this process."""
        if self._world is None:
            raise LookupError("This sandbox runs in a process of its own: use the admin calls.")
        return self._world

    def state(self) -> dict[str, Any]:
        """Return everything at a glance: rules, applications, segments with sizes, faults, request counts."""
        return dict(self._ask("GET", "state"))

    def reset(self) -> None:
        """Start over as it was started: no segments, tokens, faults or log; the first rules and applications."""
        self._ask("POST", "reset")

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock forward."""
        self._ask("POST", "clock", {"advance_s": seconds})

    def rules(self, **patch: object) -> None:
        """Replace some rules (see ``rules.Rules``)."""
        self._ask("POST", "rules", patch)

    def fault(self, **fault: object) -> None:
        """Put one fault in force (see ``faults.Fault``)."""
        self._ask("POST", "faults", fault)

    def throw(self, name: str, **aim: object) -> None:
        """Throw a named fault (see ``catalogue``), such as ``throw("token-expired")`` or ``throw("busy", times=3)``."""
        self._ask("POST", "faults/throw", {"name": name, **aim})

    def take_back(self, name: str) -> None:
        """Take the named faults of this name back; others stay."""
        self._ask("DELETE", f"faults/{name}")

    def catalogue(self) -> list[dict[str, str]]:
        """Return the named faults, each with its source and what happens."""
        return list(self._ask("GET", "faults/catalogue"))

    def clear_faults(self) -> None:
        """Take every fault back."""
        self._ask("DELETE", "faults")

    def application(self, client_id: str = CLIENT_ID, **change: object) -> None:
        """Change an application or declare one (see ``admin.ApplicationChange``)."""
        self._ask("POST", f"applications/{client_id}", change)

    def add_segment(self, advertiser_id: str, name: str, **more: object) -> str:
        """Make a segment as Criteo's own UI would; return its id."""
        return str(self._ask("POST", "segments", {"advertiser_id": advertiser_id, "name": name, **more})["id"])

    def delete_segment(self, segment_id: str) -> None:
        """Delete a segment behind everybody's back."""
        self._ask("DELETE", f"segments/{segment_id}")

    def mark(self, **marks: object) -> None:
        """Make identifiers invalid, refused or known (see ``admin.Marks``)."""
        self._ask("POST", "identifiers", marks)

    def new_code(self, redirect_uri: str, advertisers: Sequence[str], client_id: str = CLIENT_ID) -> str:
        """Consent without the page; return the authorization code."""
        wanted = {"client_id": client_id, "redirect_uri": redirect_uri, "advertisers": list(advertisers)}
        return str(self._ask("POST", "codes", wanted)["code"])

    def is_member(self, segment_id: str, identifiers: Sequence[str], identifier_type: str = "email",
                  gum_caller_id: int | None = None) -> list[bool]:  # fmt: skip
        """Tell of each identifier, in order, whether it is in the list."""
        question = {"segment_id": int(segment_id), "identifiers": list(identifiers),
                    "identifier_type": identifier_type, "gum_caller_id": gum_caller_id}  # fmt: skip
        return list(self._ask("POST", "membership", question)["present"])

    def size(self, segment_id: str) -> int:
        """Return how many identifiers a list holds now."""
        sizes = {str(segment["id"]): segment["size"] for segment in self.state()["segments"]}
        return int(sizes[segment_id])

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the calls after number ``since`` (see ``journal.Entry``)."""
        return list(self._ask("GET", f"requests?since={since}"))

    def rate(self, window_s: float | None = None) -> dict[str, Any]:
        """Return the largest number of calls in any rolling window, the total, and how many were refused."""
        query = "" if window_s is None else "?" + urlencode({"window_s": window_s})
        return dict(self._ask("GET", f"rate{query}"))

    def _ask(self, method: str, path: str, content: object = None) -> Any:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        try:
            body = None if content is None else msgspec.json.encode(content)
            connection.request(method, f"/_admin/{path}", body)
            response = connection.getresponse()
            answer = msgspec.json.decode(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"The sandbox refuses this admin call: {answer['error']}")
        return answer


@contextmanager
def running_sandbox(world: World | None = None, **rules: object) -> Iterator[Sandbox]:
    """Run a sandbox in a thread on a free port: ``world``, or the example world under these ``rules.Rules``."""
    world = world or World.example(Rules().changed(rules))
    sock = listening_socket()
    server = server_for(world)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="sandbox", daemon=True)
    thread.start()
    try:
        _wait_until(lambda: server.started or not thread.is_alive())
        yield Sandbox(f"http://{HOST}:{sock.getsockname()[1]}", world)
    finally:
        server.should_exit = True
        thread.join(START_S)
        sock.close()


@contextmanager
def sandbox_process(*, port: int = 0, **rules: object) -> Iterator[Sandbox]:
    """Run a sandbox in a process of its own, which ends with this one, however this one dies."""
    checked = msgspec.json.encode(Rules().changed(rules)).decode()
    command = [sys.executable, "-m", "criteo_provider.sandbox", "--port", str(port), "--until-stdin-closes"]
    process = subprocess.Popen(  # noqa: S603 - our own module, no shell
        [*command, "--rules", checked],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **_KEEP_MEMORY},
    )
    assert process.stdin is not None  # noqa: S101 - asked for with PIPE
    assert process.stdout is not None  # noqa: S101
    try:
        sentence = process.stdout.readline()
        if not sentence:
            raise RuntimeError(f"The sandbox did not start (exit code {process.wait(START_S)}).")
        yield Sandbox(next(word for word in sentence.split() if word.startswith("http://")))
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        process.stdout.close()


def _wait_until(there: Any) -> None:
    deadline = time.monotonic() + START_S
    while not there():
        if time.monotonic() > deadline:
            raise TimeoutError("The sandbox did not start in time.")
        time.sleep(0.005)
