"""Hands: what packs and seals the chunks of a source while it is read on; those of the reading thread, or others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from criteo_provider.core.model import SealedPeople
from criteo_provider.core.ports import CursorHold
from criteo_provider.flow.packing import Columns, FieldColumn, packed


class Hands(Protocol):
    """Take up one chunk after the other; what is returned waits for the result, and raises what was raised."""

    def begin_packing(
        self, fields: Sequence[FieldColumn], keys: Sequence[str], columns: Columns
    ) -> Callable[[], SealedPeople]: ...

    def begin_sealing(self, seal: Callable[[], CursorHold]) -> Callable[[], CursorHold]: ...


class OwnHands:
    """Those of the thread that reads: a chunk is packed when it is wanted, and sealed before it reads on."""

    def begin_packing(
        self, fields: Sequence[FieldColumn], keys: Sequence[str], columns: Columns
    ) -> Callable[[], SealedPeople]:
        return lambda: packed(fields, keys, columns)

    def begin_sealing(self, seal: Callable[[], CursorHold]) -> Callable[[], CursorHold]:
        hold = seal()
        return lambda: hold
