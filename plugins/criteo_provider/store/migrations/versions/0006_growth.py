"""Backlogs set aside, running totals, the index of people, and what was pruned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COUNTED = ("entered", "proceeded", "synced", "not_synced", "pending", "errored", "exited")
_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# What the stages of an older ledger say is where the totals begin.
_TOTALS = """
INSERT INTO step_total (step_id, entered, proceeded, synced, not_synced, pending, errored, exited)
SELECT stage.step_id, sum(stage.people), sum(CASE WHEN version.is_last THEN 0 ELSE stage.people END),
       sum(stage.synced), sum(stage.not_synced), sum(stage.pending), sum(stage.errored),
       sum(CASE WHEN version.is_last THEN stage.people ELSE 0 END)
FROM stage JOIN step_version AS version ON version.id = stage.version_id
WHERE stage.state = 1 GROUP BY stage.step_id
"""
_REASONS = """
INSERT INTO step_reason (step_id, reason, people)
SELECT step_id, reason, sum(people) FROM (
    SELECT stage.step_id AS step_id, coalesce(found.reason, '') AS reason, found.last - found.first AS people
    FROM stage_exception AS found JOIN stage ON stage.id = found.stage_id
    WHERE found.status = 2 AND stage.state = 1
    UNION ALL
    SELECT stage.step_id, coalesce(stage.reason, ''), stage.people - coalesce(excepted.people, 0)
    FROM stage LEFT JOIN (
        SELECT stage_id, sum(last - first) AS people FROM stage_exception GROUP BY stage_id
    ) AS excepted ON excepted.stage_id = stage.id
    WHERE stage.status = 2 AND stage.state = 1
) AS told GROUP BY step_id, reason
"""


def upgrade() -> None:
    """Apply."""
    for name in ("step_total", "step_pruned"):
        op.create_table(
            name,
            sa.Column("step_id", sa.BigInteger(), nullable=False),
            *(sa.Column(counted, sa.BigInteger(), server_default=sa.text("0"), nullable=False) for counted in _COUNTED),
            sa.ForeignKeyConstraint(["step_id"], ["step.id"], name=op.f(f"fk_{name}_step_id")),
            sa.PrimaryKeyConstraint("step_id", name=op.f(f"pk_{name}")),
        )
    op.create_table(
        "step_reason",
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("people", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["step_id"], ["step.id"], name=op.f("fk_step_reason_step_id")),
        sa.PrimaryKeyConstraint("step_id", "reason", name=op.f("pk_step_reason")),
    )
    op.create_table(
        "backlog",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Text(), nullable=False),
        sa.Column("upto", sa.Text(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("lease_until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_backlog_canvas_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_backlog")),
    )
    op.create_index("ix_backlog_canvas", "backlog", ["canvas_id"], unique=False)
    op.create_table(
        "people_segment",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("first_chunk", sa.BigInteger(), nullable=False),
        sa.Column("last_chunk", sa.BigInteger(), nullable=False),
        sa.Column("pages", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people_segment")),
    )
    op.create_index("ix_people_segment_last", "people_segment", ["last_chunk"], unique=False)
    op.create_table(
        "people_page",
        sa.Column("segment_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("page", sa.SmallInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("entries", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["segment_id"], ["people_segment.id"], name=op.f("fk_people_page_segment_id")),
        sa.PrimaryKeyConstraint("segment_id", "kind", "page", name=op.f("pk_people_page")),
    )
    where = sa.text("cause <> 'a minute'")
    op.create_index("ix_metric_single", "metric", ["at_us"], unique=False, sqlite_where=where, postgresql_where=where)
    op.create_index("ix_chunk_sealed", "chunk", ["sealed_us"], unique=False)
    op.execute(_TOTALS)
    op.execute(_REASONS)
    if op.get_bind().dialect.name == "postgresql":
        # Prefixes do not compress, and a page is read as a whole.
        op.execute("ALTER TABLE people_page ALTER COLUMN entries SET STORAGE EXTERNAL")
