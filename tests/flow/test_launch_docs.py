"""docs/launch.md says of each finding what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from criteo_provider.wiring.findings import KINDS, Kind

PAGE = Path(__file__).parents[2] / "docs" / "launch.md"


def row(code: str, kind: Kind) -> str:
    """The row of a kind of finding, with the names of what is filled in."""
    cells = [re.sub(r"\{(\w+)(?::,)?\}", r"*\1*", text) for text in (kind.what, kind.why, kind.mend)]
    return f"| `{code}` | {kind.severity} | {' | '.join(cells)} |"


def test_the_page_tells_every_finding_and_no_other() -> None:
    """What, why and mend of each finding are in the page, word for word, and nothing else is told as one."""
    told = [line for line in PAGE.read_text().splitlines() if re.match(r"\| `[\w-]+` \| (failure|warning) \|", line)]
    assert told == [row(code, kind) for code, kind in KINDS.items()]


def test_every_finding_has_a_mend() -> None:
    """Nobody is left with a complaint alone."""
    assert all(kind.what and kind.why and kind.mend for kind in KINDS.values())
