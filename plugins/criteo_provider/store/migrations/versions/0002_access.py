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
    _tokens_of_consents()
    _accounts()


def _tokens_of_consents() -> None:
    # An access token lives for 15 minutes and there were no others: nothing is carried over.
    op.drop_table("token")
    op.create_table(
        "token",
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("serial", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("access", sa.LargeBinary(), nullable=True),
        sa.Column("ends_at_s", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("refresh", sa.LargeBinary(), nullable=True),
        sa.Column("renewer_until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("holder", name=op.f("pk_token")),
    )
    op.create_table(
        "consent",
        sa.Column("connection_id", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("given_by", sa.Text(), nullable=False),
        sa.Column("given_us", sa.BigInteger(), nullable=False),
        sa.Column("renewed_us", sa.BigInteger(), nullable=False),
        sa.Column("dead_us", sa.BigInteger(), nullable=True),
        sa.Column("seed", sa.Text(), nullable=True),
        sa.Column("ad_accounts", sa.Integer(), nullable=True),
        sa.Column("counted_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("connection_id", "role", name=op.f("pk_consent")),
    )


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
