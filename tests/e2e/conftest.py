"""The scripts that run an Airflow of one's own are no package; tests of a running house use their rooms."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
