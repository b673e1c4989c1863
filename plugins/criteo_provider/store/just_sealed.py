"""What this process sealed a moment ago, so that whoever sends it at once need not read it back."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from criteo_provider.core.model import PackedForm

# Two chunks of one form: while people wait longer than that, others are sealed, and memory is worth more.
MOST_BYTES = 3_250_000


class JustSealed:
    """Identifiers of the chunks sealed last, until they are given out; what is not here is in the ledger.

    Stored identifiers never change, so these cannot be out of date, unless another server has taken over that did not
    get all of them: whoever connects anew forgets. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, str], PackedForm] = OrderedDict()
        self._bytes = 0

    def keep(self, chunk_id: int, people: Sequence[PackedForm]) -> None:
        """Keep a chunk that is in the ledger by now, at the cost of the oldest ones."""
        with self._lock:
            for packed in people:
                self._drop((chunk_id, packed.form))
                self._kept[(chunk_id, packed.form)] = packed
                self._bytes += len(packed.blob)
            while self._bytes > MOST_BYTES:
                self._drop(next(iter(self._kept)))

    def take(self, chunk_id: int, form: str, identifiers: int) -> PackedForm | None:
        """Give out the values of one form of a chunk, None if they are not kept (any more).

        They are let go of, unless fewer of them go into this request than there are: others may be wanted soon.
        """
        with self._lock:
            packed = self._kept.get((chunk_id, form))
            if packed is not None and identifiers >= packed.count:
                self._drop((chunk_id, form))
            return packed

    def forget(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _drop(self, key: tuple[int, str]) -> PackedForm | None:
        packed = self._kept.pop(key, None)
        self._bytes -= len(packed.blob) if packed else 0
        return packed
