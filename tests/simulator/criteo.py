"""A Criteo in memory, behind a wire that loses, delays and reorders: what a list holds changes when Criteo takes a
request, which may be long after the client has given up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from criteo_provider.core.errors import AccessLost, AudienceGone, Refused, Unavailable
from criteo_provider.core.identifiers import Form, to_wire
from criteo_provider.core.model import ClaimedRequest, Operation
from criteo_provider.core.outcome import Trouble

# How long a request may be under way; whoever sends it promises to wait no less before the opposite is sent.
WIRE_S = 100.0
CLIENT_GIVES_UP_S = 40.0

HTML, CUT = b"<html><body>Bad gateway</body></html>", b'{"data": {"type": "ContactListAmendm'


def _errors(kind: str, code: str) -> bytes:
    return json.dumps({"errors": [{"type": kind, "code": code}]}).encode()


# What Criteo may answer: status, headers, body (None: the counts), and whether the list has changed all the same.
ANSWERS: dict[str, tuple[int, dict[str, str], bytes | None, bool]] = {
    "ok": (200, {}, None, True),
    "429 named": (429, {"Retry-After": "7"}, b"", False),
    "429 blind": (429, {}, b"", False),
    "429 reset": (429, {"x-ratelimit-reset": "{now+30}", "x-ratelimit-limit": "200"}, b"", False),
    "500 applied": (500, {}, HTML, True),
    "502": (502, {}, HTML, False),
    "503": (503, {"Retry-After": "20"}, b"", False),
    "504 applied": (504, {}, b"", True),
    "408": (408, {}, b"", False),
    "200 errors": (200, {}, _errors("unknown", "internal-error"), False),
    "200 html applied": (200, {}, HTML, True),
    "200 cut applied": (200, {}, CUT, True),
    "200 empty applied": (200, {}, b"", True),
    "400": (400, {}, _errors("validation", "invalid-request"), False),
    "413": (413, {}, b"", False),
    "401": (401, {}, _errors("authentication", "token-invalid"), False),
    "403": (403, {}, _errors("access-control", "not-allowed"), False),
    "404": (404, {}, b"", False),
    "gone": (404, {}, _errors("validation", "audience-invalid"), False),
}
# What the wire may do to a request instead.
WIRE = {"lost before": Trouble.UNREACHABLE, "lost after": Trouble.CUT_OFF, "slow": Trouble.NO_ANSWER}
# What may go on for a while: every request gets it.
WEATHERS = ("401", "403", "gone", "503", "400", "429 named", "revoked")

Values = dict[str, list[bytes]]


@dataclass(eq=False)
class Letter:
    """A request on its way to Criteo, and what came of it."""

    claimed: ClaimedRequest
    values: Values
    sent_us: int
    answer: tuple[int, dict[str, str], bytes] | Trouble | None = None
    applied: bool = False

    @property
    def gives_up_us(self) -> int:
        """When the client stops waiting."""
        return self.sent_us + round(CLIENT_GIVES_UP_S * 1e6)


@dataclass
class Criteo:
    """Lists, and how Criteo feels about requests at the moment."""

    invalid: set[bytes] = field(default_factory=set)
    poison: set[bytes] = field(default_factory=set)
    names: str = "all"  # how many of the invalid identifiers an answer names: all, one or none
    weather: str | None = None
    next_answers: list[str] = field(default_factory=list)
    lists: dict[str, set[tuple[str, bytes]]] = field(default_factory=dict)
    audiences: dict[str, str] = field(default_factory=dict)
    made: int = 0  # audiences so far
    deleted: set[str] = field(default_factory=set)
    wire: list[Letter] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # when requests went out

    def post(self, letter: Letter) -> None:
        """Put a request on the wire; most are taken, and answered, at once."""
        self.sent.append(letter.sent_us)
        shape = self.next_answers.pop(0) if self.next_answers else "ok"
        match shape:
            case "slow":
                self.wire.append(letter)
            case "lost before":
                letter.answer = WIRE[shape]
            case "lost after":
                self.take(letter)
                letter.answer = WIRE[shape]
            case _:
                self.take(letter, shape)

    def take(self, letter: Letter, shape: str = "ok") -> None:
        """Apply a request, if it is one to be applied, and answer it."""
        if shape == "ok":
            shape = self._mood(letter)
        status, headers, body, applies = ANSWERS[shape]
        if applies:
            body = body if body is not None else self._counts(letter.values)
            # What Criteo refuses, or has no list for, it does not take however its answer is lost.
            if not self._is_refused(letter) and letter.claimed.criteo_id not in self.deleted:
                self._apply(letter)
        now_s = letter.sent_us / 1e6
        told = {name: str(now_s + 30) if value.startswith("{now") else value for name, value in headers.items()}
        letter.answer = (status, told, body or b"")

    def deliver(self, number: int, *, now_us: int) -> None:
        """Let Criteo take a request that was slow; too late, and it is lost for ever."""
        self.forget_old(now_us=now_us)
        if self.wire:
            self.take(self.wire.pop(number % len(self.wire)))

    def forget_old(self, *, now_us: int) -> None:
        """Nothing is under way for ever."""
        self.wire = [one for one in self.wire if one.sent_us + WIRE_S * 1e6 > now_us]

    def find(self, name: str, *, may_create: bool) -> tuple[str, bool]:
        """Find or create an audience; raises what the client would."""
        self.let_in()
        if self.weather == "400" and name not in self.audiences:
            raise Refused("Unable to create new audiences.", code="quota-reached")
        known = name in self.audiences
        if not known and not may_create:
            raise AudienceGone("There is no such audience yet.")
        if not known:
            self.make(name)
        return self.audiences[name], not known

    def make(self, name: str) -> None:
        """Make an audience of a name that no other has."""
        self.audiences[name] = f"70{self.made}"
        self.made += 1

    def delete(self, name: str) -> None:
        """Forget a list, and whoever is in it, for ever."""
        criteo_id = self.audiences.pop(name, None)
        if criteo_id is not None:
            self.lists.pop(criteo_id, None)
            self.deleted.add(criteo_id)

    def let_in(self) -> None:
        """Answer a question about audiences, if Criteo answers questions now."""
        if self.weather in ("401", "revoked"):
            raise AccessLost("No.", scope="connection", code="token-refused")
        if self.weather == "403":
            raise AccessLost("No.", scope="ad_account", code="not-permitted")
        if self.weather == "503":
            raise Unavailable("Criteo's servers have trouble.")

    def members(self, criteo_id: str) -> set[tuple[str, bytes]]:
        """What a list holds."""
        return self.lists.setdefault(criteo_id, set())

    def _mood(self, letter: Letter) -> str:
        if self.weather == "gone":
            return "gone" if letter.claimed.criteo_id == "700" else "ok"
        if self.weather is not None:
            return "401" if self.weather == "revoked" else self.weather
        if letter.claimed.criteo_id in self.deleted:
            return "gone"
        return "400" if self._is_refused(letter) else "ok"

    def _is_refused(self, letter: Letter) -> bool:
        return any(self.poison.intersection(values) for values in letter.values.values())

    def _apply(self, letter: Letter) -> None:
        held = self.members(letter.claimed.criteo_id)
        good = {(form, value) for form, values in letter.values.items() for value in values if not self._bad(value)}
        letter.applied = True
        if letter.claimed.operation is Operation.ADD:
            held |= good
        else:
            held -= good

    def _bad(self, value: bytes) -> bool:
        return value in self.invalid

    def _counts(self, values: Values) -> bytes:
        bad = [to_wire(value, Form(form)) for form, held in values.items() for value in held if self._bad(value)]
        named = {"all": bad, "one": bad[:1], "none": []}[self.names]
        attributes: dict[str, Any] = {
            "nbValidIdentifiers": sum(map(len, values.values())) - len(bad),
            "nbInvalidIdentifiers": len(bad),
            "sampleInvalidIdentifiers": named,
        }
        return json.dumps({"data": {"attributes": attributes}}).encode()
