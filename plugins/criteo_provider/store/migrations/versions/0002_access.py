"""Who may speak for this workspace at Criteo: consents, refresh tokens, and the ad accounts chosen."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
