from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources.memory_of import MAKERS

ROWS = 100_000
MAY_GROW_MB = 24


def peak_mb(kind: str, rows: int) -> int:
    program = Path(__file__).with_name("memory_of.py")
    done = subprocess.run(
        [sys.executable, str(program), kind, str(rows)], capture_output=True, text=True, check=True, timeout=120
    )
    read, _, peak = done.stdout.split()
    assert int(read) == rows
    return int(peak)


@pytest.mark.parametrize("kind", MAKERS)
def test_memory_does_not_grow_with_the_number_of_people(kind: str) -> None:
    """Ten times the people take the same memory, whatever the source."""
    assert peak_mb(kind, 10 * ROWS) - peak_mb(kind, ROWS) < MAY_GROW_MB
