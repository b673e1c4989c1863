"""The lookout: one look a second at all canvases, shared by everything that waits in one process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from criteo_provider.hooks.surroundings import include_folder, open_house

if TYPE_CHECKING:
    from criteo_provider.wiring import House, Waiting

# Connections may be corrected and configuration mended while nothing is edited in the include folder.
REOPEN_AFTER_S = 60.0


class Lookout:
    """Keeps one house open for looking, and opens it anew when canvases change, once a minute, and after an error.

    Belongs to one thread.
    """

    def __init__(self, *, same_look_s: float = 0.5) -> None:
        self.same_look_s = same_look_s
        self._house: House | None = None
        self._opened_s = 0.0
        self._stamp: frozenset[tuple[str, int, int]] = frozenset()
        self._waiting: Waiting | None = None
        self._looked_s = 0.0

    def look(self) -> Waiting:
        """Tell what is waiting; blocks for the look, and callers within ``same_look_s`` share its answer.

        Raises what the house raises; the next look starts with a house opened anew.
        """
        if self._waiting is None or time.monotonic() - self._looked_s > self.same_look_s:
            self._waiting = None
            self._waiting = self._fresh_look()
            self._looked_s = time.monotonic()
        return self._waiting

    def close(self) -> None:
        """Close the house, if one is open."""
        house, self._house = self._house, None
        if house is not None:
            house.close()

    def _fresh_look(self) -> Waiting:
        try:
            return self._current().waiting()
        except BaseException:
            self.close()
            raise

    def _current(self) -> House:
        stamp = _stamp(include_folder())
        if self._house is None or stamp != self._stamp or time.monotonic() - self._opened_s > REOPEN_AFTER_S:
            self.close()
            self._house = open_house()
            self._stamp, self._opened_s = stamp, time.monotonic()
        return self._house


def _stamp(folder: Path) -> frozenset[tuple[str, int, int]]:
    """What the canvases and their SQL look like from outside: names, sizes, times of change."""
    files = [*folder.glob("canvases/*.y*ml"), *folder.glob("segments/*.sql")]
    return frozenset((str(file), stat.st_size, stat.st_mtime_ns) for file in files if (stat := file.stat()))
