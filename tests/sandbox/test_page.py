"""The sandbox's page shows how it stands, and nothing that must not be seen."""

from __future__ import annotations

import hashlib
import re

import pytest

from tests.sandbox.caller import Caller
from tests.sandbox.test_oauth import exchanged

ANN = hashlib.sha256(b"ann@example.com").hexdigest()


def shown(caller: Caller) -> str:
    answer = caller.http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def rows(page: str, title: str) -> list[list[str]]:
    """Return the cells of a section's table, its head left out."""
    section = page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", section)][1:]


def test_it_shows_segments_calls_windows_faults_and_the_clock(caller: Caller) -> None:
    """Sizes, the latest calls first, the fullest window of each grant, what was thrown, and how the clock was moved."""
    segment_id = caller.new_list("VIP")
    caller.amend(segment_id, [ANN, "jkl@gmail"])
    caller.sandbox.throw("busy", times=1)
    caller.amend(segment_id, [ANN])
    caller.sandbox.throw("consent-revoked")
    caller.sandbox.fault(operation="create", status=500)
    caller.sandbox.advance(60)
    page = shown(caller)
    assert rows(page, "Segments") == [[segment_id, "1001", "VIP", "ContactList", "1", "1", "0"]]
    calls = rows(page, "Latest calls")
    assert [(call[1], call[4]) for call in calls] == [
        ("amend", "429 too-many-requests (fault)"), ("amend", "200"), ("create", "200"), ("token", "200"),
    ]  # fmt: skip
    assert calls[1][3:7] == ["add email", "200", "1", "1"]
    (window,) = rows(page, "Applications and rate windows")
    assert window[1:] == ["client credentials", "revoked", "1001, 1002", "250", "0", "4", "1"]
    assert [fault[:2] for fault in rows(page, "Faults in force")] == [["consent-revoked", "F5"], ["unnamed", ""]]
    assert "moved 60 s ahead" in page
    assert 'http-equiv="refresh"' in page
    assert "light dark" in page


def test_nothing_secret_and_no_identifier_is_on_it(caller: Caller) -> None:
    """No token, code, secret, address or digest is on the page, whatever was sent; names are escaped."""
    caller.sandbox.add_segment("1001", "<script>alert(1)</script>")
    segment_id = caller.new_list()
    refresh_token = exchanged(caller, caller.sandbox)
    code = caller.sandbox.new_code("https://airflow.example.com/criteo/callback", ["1001"])
    caller.amend(segment_id, [ANN, "ann@example.com", "jkl@gmail"])
    caller.sandbox.mark(invalid=[ANN], known_addresses=["ann@example.com"])
    page = shown(caller)
    assert "&lt;script&gt;" in page
    secret = caller.sandbox.client_secret
    for hidden in ("<script", caller.token, refresh_token, code, secret, ANN, "@example.com", "jkl@gmail"):
        assert hidden not in page


@pytest.mark.parametrize("path", ["/", "/_admin/state", "/_admin/faults/catalogue"])
def test_looking_is_no_call(caller: Caller, path: str) -> None:
    """Watching the sandbox neither fills the rate window nor the log."""
    before = caller.sandbox.state()["requests"]
    assert caller.http.get(path).is_success
    assert caller.sandbox.state()["requests"] == before
