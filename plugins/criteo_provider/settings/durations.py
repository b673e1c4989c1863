"""Durations as people write them: 5s, 13h, 30d, 1h30m."""

from __future__ import annotations

import re

_SIZES_S = (86_400, 3_600, 60, 1)
_WRITTEN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_duration(text: str) -> int | None:
    """Return the seconds of days, hours, minutes and seconds in this order, or None for anything else."""
    written = _WRITTEN.fullmatch("".join(text.split()))
    if not written or not any(written.groups()):
        return None
    numbers = [int(number or 0) for number in written.groups()]
    return sum(number * size_s for number, size_s in zip(numbers, _SIZES_S, strict=True))
