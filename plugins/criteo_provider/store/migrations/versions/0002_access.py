"""Who may speak for this workspace at Criteo: consents, refresh tokens, and the ad accounts chosen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    _accounts()


def _accounts() -> None:
    op.create_table(
        "account",
        sa.Column("connection_id", sa.Text(), nullable=False),
        sa.Column("ad_account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("chosen", sa.Boolean(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("connection_id", "ad_account", name=op.f("pk_account")),
    )
    op.create_table(
        "checkup",
        sa.Column("connection_id", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("ad_accounts", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("connection_id", name=op.f("pk_checkup")),
    )
    op.create_table(
        "handover",
        sa.Column("connection_id", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Text(), nullable=False),
        sa.Column("beat_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("connection_id", name=op.f("pk_handover")),
    )
