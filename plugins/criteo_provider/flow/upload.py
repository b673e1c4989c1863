"""Upload: claim what is due, wait for a slot, send, settle; several requests in flight, as latency asks for."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from criteo_provider.core.errors import Busy, LedgerUnwritable, LostClaim
from criteo_provider.core.identifiers import Form, distinct
from criteo_provider.core.model import MAX_IDENTIFIERS, ClaimedPart, ClaimedRequest, Role
from criteo_provider.core.outcome import Accepted, Outcome, Unavailable

log = logging.getLogger(__name__)

# 250 a minute at 12 s of latency: more in flight is no use at Criteo's limit.
MAX_IN_FLIGHT = 64
# 32 bytes each until they are sent: 42 MB, and Criteo's limit at 6 s of latency. The next claim may go beyond, once.
MAX_IDENTIFIERS_IN_FLIGHT = 26 * MAX_IDENTIFIERS
# Below this the queue at the pacer is other people's turn; above it nothing is claimed, so nothing is held back.
LONGEST_QUEUE_S = 5.0
# How often an idle uploader looks for work.
LOOK_EVERY_S = 0.2
# The retry DAG takes at most every fourth slot while first attempts wait.
RETRY_SPACING = 4


class Slot(Protocol):
    """One moment at which one call may start."""

    def is_fresh(self) -> bool:
        """Tell, right before the first byte, whether the call may still start."""


class Slots(Protocol):
    """The pacer of one Criteo application."""

    def take(self, *, spacing: int = 1, instead_of: Any = None) -> Slot:
        """Block until a slot is due, and return inside it; ``instead_of`` is one that was never used."""

    def queue_s(self) -> float:
        """Tell how far ahead the next free slot is."""


class UploadLedger(Protocol):
    """What upload asks of the ledger; each verb is one transaction."""

    def packed(self, wanted: ClaimedPart) -> bytes: ...

    def settle(self, claimed: ClaimedRequest, outcome: Outcome, *, now_us: int, jitter: float) -> int: ...

    def release(self, claimed: ClaimedRequest, *, now_us: int) -> None: ...

    def first_attempts_wait(self, *, now_us: int) -> bool: ...


class Courier(Protocol):
    """Carries one request to Criteo."""

    def pack(self, claimed: ClaimedRequest, values: Callable[[], dict[str, bytes]]) -> Any:
        """Make the request's body from distinct values, packed per identifier form; they can be read again."""

    def make_ready(self) -> Outcome | None:
        """See to a good access token before a slot is taken; what stands in the way is an outcome."""

    def send(self, claimed: ClaimedRequest, parcel: Any, before_first_byte: Callable[[], None]) -> Outcome:
        """Send it inside the caller's slot and tell what came of it; ``before_first_byte`` may still stop it."""


@dataclass(slots=True)
class Uploaded:
    """What an uploader has done so far."""

    requests: int = 0
    accepted: int = 0
    identifiers: int = 0
    lost_claims: int = 0


class Upload:
    """Drains what is due for one connection, in the caller's thread; requests fly in threads of their own."""

    def __init__(
        self,
        claim: Callable[[int], ClaimedRequest | None],
        ledger: UploadLedger,
        slots: Slots,
        courier: Courier,
        now_us: Callable[[], int],
        *,
        role: Role,
        request_timeout_s: float,
    ) -> None:
        self._claim, self._ledger, self._slots, self._courier = claim, ledger, slots, courier
        self._now_us, self._role, self._request_timeout_s = now_us, role, request_timeout_s
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._in_flight = self._identifiers = 0
        self.done = Uploaded()

    @property
    def is_flying(self) -> bool:
        """Whether a request is between its claim and its settlement."""
        with self._lock:
            return self._in_flight > 0

    def run(self, stop: threading.Event, busy: Callable[[], None]) -> None:
        """Send what is due until ``stop``, calling ``busy`` at each request; settle all before returning."""
        with ThreadPoolExecutor(MAX_IN_FLIGHT, thread_name_prefix="criteo-request") as threads:
            while not stop.is_set():
                if self._slots.queue_s() > LONGEST_QUEUE_S:
                    stop.wait(1.0)
                    continue
                claimed = self._next()
                if claimed is None:
                    stop.wait(LOOK_EVERY_S)
                    continue
                busy()
                self._launch(claimed, threads, stop, busy)

    def _next(self) -> ClaimedRequest | None:
        """Claim what is next; it flies from before it is claimed, so that no moment is left to cut it off in."""
        with self._room:
            self._room.wait_for(self._has_room)
            self._in_flight += 1
        claimed = None
        try:
            claimed = self._claim(self._now_us())
        finally:
            if claimed is None:
                self._made_room(0)
        with self._room:
            self._identifiers += claimed.identifiers if claimed else 0
        return claimed

    def _has_room(self) -> bool:
        return self._in_flight < MAX_IN_FLIGHT and self._identifiers < MAX_IDENTIFIERS_IN_FLIGHT

    def _made_room(self, identifiers: int) -> None:
        with self._room:
            self._in_flight -= 1
            self._identifiers -= identifiers
            self._room.notify()

    def _launch(
        self,
        claimed: ClaimedRequest,
        threads: ThreadPoolExecutor,
        stop: threading.Event,
        busy: Callable[[], None],
    ) -> None:
        try:
            obstacle = self._courier.make_ready()
            if obstacle is not None:
                self._land(claimed, obstacle, busy)
                return
            parcel = self._courier.pack(claimed, partial(self._values, claimed))
            slot = self._slots.take(spacing=self._spacing())
        except BaseException:
            self._land(claimed, None, busy)
            if stop.is_set():
                return
            raise
        threads.submit(self._fly, claimed, parcel, slot, busy)

    def _fly(self, claimed: ClaimedRequest, parcel: Any, slot: Slot, busy: Callable[[], None]) -> None:
        def still_ours() -> None:
            if self._now_us() + self._request_timeout_s * 1e6 >= claimed.lease_until_us:
                raise LostClaim(f"The lease of request {claimed.request_id} is too short to send it now.")

        outcome: Outcome | None = None
        try:
            while not slot.is_fresh():
                slot = self._slots.take(instead_of=slot)
            outcome = self._courier.send(claimed, parcel, still_ours)
        except (LostClaim, Busy) as reason:
            log.info("Request %d goes back unsent: %s", claimed.request_id, reason)
        except Exception as error:
            # Whatever broke here, these people must not be lost; the class is all that is safe to show.
            log.warning("Request %d was not sent: %s.", claimed.request_id, type(error).__name__)
            outcome = Unavailable("not-sent", f"The request could not be sent ({type(error).__name__}).")
        finally:
            self._land(claimed, outcome, busy)

    def _land(self, claimed: ClaimedRequest, outcome: Outcome | None, busy: Callable[[], None]) -> None:
        try:
            if outcome is None:
                self._ledger.release(claimed, now_us=self._now_us())
                return
            lost = self._ledger.settle(
                claimed,
                outcome,
                now_us=self._now_us(),
                jitter=random.random(),  # noqa: S311 - spreads retries
            )
            self._count(claimed, outcome, lost)
        # The lease gives the people back; what Criteo has taken is sent once more, which does no harm.
        except LedgerUnwritable as full:
            log.warning("Request %d could not be settled; its people are sent again. %s", claimed.request_id, full)
        except Exception:
            log.exception("Request %d could not be settled; its people are sent again later.", claimed.request_id)
        finally:
            busy()  # before it ceases to fly: its people may be due again
            self._made_room(claimed.identifiers)

    def _values(self, claimed: ClaimedRequest) -> dict[str, bytes]:
        """Read the identifiers of a request, each once, packed per form."""
        pieces: dict[str, list[bytes]] = {}
        for part in claimed.parts:
            pieces.setdefault(part.form, []).append(self._ledger.packed(part))
        return {form: distinct(packed, Form(form)) for form, packed in pieces.items()}

    def _spacing(self) -> int:
        if self._role is Role.RETRY and self._ledger.first_attempts_wait(now_us=self._now_us()):
            return RETRY_SPACING
        return 1

    def _count(self, claimed: ClaimedRequest, outcome: Outcome, lost: int) -> None:
        with self._lock:
            self.done.requests += 1
            self.done.lost_claims += lost
            if isinstance(outcome, Accepted):
                self.done.accepted += 1
                self.done.identifiers += outcome.valid + outcome.invalid
        if not isinstance(outcome, Accepted):
            log.warning("Request %d: %s", claimed.request_id, outcome.sentence)
