"""Versions, routes, the admin API, and the ways to run a sandbox."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from criteo_provider.sandbox.app import OPERATIONS, create_app
from criteo_provider.sandbox.running import Sandbox, running_sandbox, sandbox_process
from criteo_provider.sandbox.serve import listening_socket
from criteo_provider.sandbox.state import World
from tests.sandbox.caller import Caller, code_of


@pytest.mark.parametrize(
    ("version", "status"),
    [("2025-10", 410), ("2026-01", 200), ("2026-07", 200), ("2027-01", 200), ("2026-04", 404)],
)
def test_versions_are_served_deprecated_or_gone(caller: Caller, version: str, status: int) -> None:
    """Three versions answer, the oldest with Deprecation and Sunset; a dead one is 410, another 404."""
    answer = caller.call("GET", f"/{version}/marketing-solutions/me")
    assert answer.status_code == status
    assert ("sunset" in answer.headers) == ("deprecation" in answer.headers) == (version == "2026-01")
    if status == 410:
        assert answer.json()["errors"][0]["type"] == "deprecation"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/2026-07/marketing-solutions/audience-segments/1/contactlist"),
        ("PATCH", "/2026-07/audiences/1/contactlist"),
        ("PUT", "/2026-07/marketing-solutions/audience-segments/1/contact-list"),
        ("GET", "/oauth2/token"),
        ("POST", "/"),
        ("GET", "/nothing"),
    ],
)
def test_unknown_routes_are_404_in_the_envelope(caller: Caller, method: str, path: str) -> None:
    """A path or method that Criteo does not have is 404 with equal trace ids; so is the old contactlist."""
    answer = caller.call(method, path)
    assert (answer.status_code, code_of(answer)) == (404, "not-found")
    error = answer.json()["errors"][0]
    assert error["traceId"] == error["traceIdentifier"]


def test_a_reset_starts_over(caller: Caller) -> None:
    """After a reset there are no segments, tokens, faults or log; rules and application are as declared."""
    caller.new_list()
    caller.sandbox.rules(limit=1)
    caller.sandbox.advance(900)
    caller.sandbox.application(permission="none", advertisers=[])
    caller.sandbox.fault(status=500)
    caller.sandbox.reset()
    state = caller.sandbox.state()
    assert (state["segments"], state["faults"], caller.sandbox.requests()) == ([], [], [])
    assert caller.search().status_code == 401
    assert caller.sign_in().create("x").json()["data"]


def test_the_state_shows_no_secret(caller: Caller) -> None:
    """Names, sizes and counts are shown; the secret is not."""
    caller.new_list("VIP")
    state = caller.sandbox.state()
    assert [segment["name"] for segment in state["segments"]] == ["VIP"]
    assert state["requests"]["by_operation"] == {"token": 1, "create": 1}
    assert caller.sandbox.client_secret not in str(state)


@pytest.mark.parametrize("rules", [{"latency_s": -1}, {"membership": "some"}, {"speed": 3}])
def test_a_wrong_rule_is_refused(sandbox: Sandbox, rules: dict[str, object]) -> None:
    """A rule that does not exist or cannot be is refused, and the rules stay."""
    before = sandbox.state()["rules"]
    with pytest.raises(ValueError, match="refuses this admin call"):
        sandbox.rules(**rules)
    assert sandbox.state()["rules"] == before


def test_the_world_can_be_looked_into_from_the_same_process() -> None:
    """In a thread the world is at hand; its thread is gone afterwards."""
    before = threading.active_count()
    with running_sandbox(limit=3) as sandbox, Caller(sandbox) as caller:
        segment_id = caller.sign_in().new_list()
        assert sandbox.world.segments[int(segment_id)].name == "VIP"
        assert sandbox.world.rules.limit == 3
    assert threading.active_count() == before


def test_a_sandbox_in_a_process_of_its_own() -> None:
    """The same calls and admin calls work; the world is not at hand; the process is gone afterwards."""
    with sandbox_process(membership="count", limit=7) as sandbox, Caller(sandbox) as caller:
        segment_id = caller.sign_in().new_list()
        answer = caller.amend(segment_id, ["a@example.com"])
        assert answer.headers["x-ratelimit-limit"] == "7"
        assert sandbox.size(segment_id) == 1
        with pytest.raises(LookupError, match="process of its own"):
            _ = sandbox.world
    with pytest.raises(ConnectionRefusedError):
        sandbox.state()


def test_a_sandbox_dies_with_the_process_that_started_it() -> None:
    """However the starter dies, the end of its pipe ends the sandbox."""
    command = [sys.executable, "-m", "criteo_provider.sandbox", "--port", "0", "--until-stdin-closes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "listens on http://127.0.0.1:" in process.stdout.readline()
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize("where", ["in a terminal", "in the background of a script"])
def test_an_interrupt_ends_it_in_silence(where: str) -> None:
    """Ctrl-C is the way to stop it: no traceback, exit code 0; a shell that let it ignore SIGINT does not matter."""
    command = [sys.executable, "-m", "criteo_provider.sandbox", "--port", "0"]
    if where != "in a terminal":
        command = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (0, "")


def test_a_port_that_is_taken_gets_a_sentence() -> None:
    """The command line names the port and the mend, and exits 1."""
    with listening_socket() as sock:
        port = str(sock.getsockname()[1])
        command = [sys.executable, "-m", "criteo_provider.sandbox", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"Port {port} cannot be used" in done.stderr
    assert "--port" in done.stderr


def test_operations_have_names_of_their_own() -> None:
    """Faults and the log name operations, so each name is one operation."""
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)
    assert create_app(World.example()).routes
