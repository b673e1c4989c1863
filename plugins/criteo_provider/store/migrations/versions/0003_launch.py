"""When a canvas was launched, what its preflight found, paused steps, and audiences deleted at Criteo."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    _let_canvases_be_unlaunched()
    op.add_column("audience", sa.Column("when_deleted", sa.Text(), nullable=False, server_default=sa.text("'wait'")))
    op.add_column("audience", sa.Column("gone_us", sa.BigInteger(), nullable=True))
    op.add_column("step", sa.Column("held_us", sa.BigInteger(), nullable=True))
    op.create_table(
        "preflight",
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("stamp", sa.Text(), nullable=False),
        sa.Column("findings", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_preflight_canvas_id")),
        sa.PrimaryKeyConstraint("canvas_id", name=op.f("pk_preflight")),
    )
    op.create_table(
        "fullness",
        sa.Column("connection_id", sa.Text(), nullable=False),
        sa.Column("ad_account", sa.Text(), nullable=False),
        sa.Column("audiences", sa.Integer(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("connection_id", "ad_account", name=op.f("pk_fullness")),
    )


def _let_canvases_be_unlaunched() -> None:
    """Make ``launched_us`` nullable; whoever has people counts as launched, the others have to be launched first."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("canvas", "launched_us", nullable=True)
    else:
        # SQLite cannot do that, and a copied table would leave the keys that point to it hanging.
        op.execute("ALTER TABLE canvas RENAME COLUMN launched_us TO declared_us")
        op.execute("ALTER TABLE canvas ADD COLUMN launched_us BIGINT")
        op.execute("UPDATE canvas SET launched_us = declared_us")
        op.execute("ALTER TABLE canvas DROP COLUMN declared_us")
    op.execute("UPDATE canvas SET launched_us = NULL WHERE id NOT IN (SELECT canvas_id FROM chunk)")
