"""What has to be known for the last intent to win, and re-queues by a person."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from criteo_provider.store.views import USER_STATUS

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Apply."""
    dialect = op.get_bind().dialect.name
    op.add_column("part", sa.Column("look_back", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("part", sa.Column("earlier_id", sa.BigInteger(), nullable=True))
    op.add_column("part", sa.Column("again", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    # Removals that are still on their way look up what they have to remove.
    op.execute("UPDATE part SET look_back = 1 WHERE operation = 'remove' AND state IN (0, 1, 2)")
    for name, column, condition in (
        ("ix_part_errored", "deadline_us", "state = 5"),
        ("ix_part_look_back", "audience_id", "look_back = 1"),
    ):
        where = sa.text(condition)
        op.create_index(name, "part", [column], unique=False, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "earlier",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("stage_id", sa.BigInteger(), nullable=False),
        sa.Column("form", sa.Text(), nullable=False),
        sa.Column("gum_caller_id", sa.Integer(), nullable=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("present", sa.Text(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stage.id"], name=op.f("fk_earlier_stage_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_earlier")),
    )
    op.create_index("ix_earlier_stage", "earlier", ["stage_id"], unique=False)
    op.create_table(
        "key_filter",
        sa.Column("chunk_id", sa.BigInteger(), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunk.id"], name=op.f("fk_key_filter_chunk_id")),
        sa.PrimaryKeyConstraint("chunk_id", name=op.f("pk_key_filter")),
    )
    op.create_table(
        "requeue",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("canvas_id", sa.Text(), nullable=True),
        sa.Column("step", sa.Text(), nullable=True),
        sa.Column("people", sa.BigInteger(), nullable=False),
        sa.Column("parts", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requeue")),
    )
    # Few requests narrow anything; an index of all of them would be taken for a poor one, and not used.
    op.drop_index("ix_request_narrow_root", "request")
    narrowing = sa.text("narrow_root IS NOT NULL")
    op.create_index(
        "ix_request_narrow_root",
        "request",
        ["narrow_root"],
        unique=False,
        sqlite_where=narrowing,
        postgresql_where=narrowing,
    )
    if dialect == "postgresql":
        op.execute("ALTER TABLE earlier ALTER COLUMN packed SET STORAGE EXTERNAL")
        op.execute("ALTER TABLE key_filter ALTER COLUMN hashes SET STORAGE EXTERNAL")
    # The view tells who is past the deadline before a sweep has recorded it.
    op.execute("DROP VIEW user_status")
    op.execute(USER_STATUS[dialect])
