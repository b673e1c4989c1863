"""Who has withdrawn consent, and the feeds that say so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "opt_out_feed",
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("canvases", sa.Text(), nullable=True),
        sa.Column("kinds", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_opt_out_feed_canvas_id")),
        sa.PrimaryKeyConstraint("canvas_id", name=op.f("pk_opt_out_feed")),
    )
    op.create_table(
        "opt_out",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("feed", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("mark", sa.LargeBinary(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["feed"], ["canvas.id"], name=op.f("fk_opt_out_feed")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_opt_out")),
    )
    op.create_index("ix_opt_out_mark", "opt_out", ["kind", "mark"], unique=False)
    rounds = op.create_table(
        "opt_out_round",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("after_id", sa.BigInteger(), nullable=False),
        sa.Column("upto_id", sa.BigInteger(), nullable=False),
        sa.Column("after_chunk", sa.BigInteger(), nullable=False),
        sa.Column("upto_chunk", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_opt_out_round")),
    )
    op.bulk_insert(rounds, [{"id": 1, "after_id": 0, "upto_id": 0, "after_chunk": 0, "upto_chunk": 0}])
