"""The ledger: chunks, stages, uploads and parts, requests, metric rows, cursors, audiences, troubles, tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from criteo_provider.store.views import USER_STATUS

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""

    op.create_table(
        "audience",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("connection_id", sa.Text(), nullable=False),
        sa.Column("ad_account", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("criteo_id", sa.Text(), nullable=True),
        sa.Column("created_here", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("resolved_us", sa.BigInteger(), nullable=True),
        sa.Column("resolver_until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("served", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("served_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("turn", sa.Text(), nullable=True),
        sa.Column("turn_until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audience")),
        sa.UniqueConstraint("connection_id", "ad_account", "name", name=op.f("uq_audience_connection_id")),
    )
    op.create_table(
        "canvas",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("connection_id", sa.Text(), nullable=False),
        sa.Column("retry_for_us", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("declared", sa.Boolean(), nullable=False),
        sa.Column("launched_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_canvas")),
    )
    op.create_table(
        "news",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("began", sa.Boolean(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("told_us", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_news")),
    )
    op.create_index(
        "ix_news_untold",
        "news",
        ["id"],
        unique=False,
        sqlite_where=sa.text("told_us IS NULL"),
        postgresql_where=sa.text("told_us IS NULL"),
    )
    op.create_table(
        "origin",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("made_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_origin")),
    )
    op.create_table(
        "token",
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("serial", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("access", sa.LargeBinary(), nullable=True),
        sa.Column("ends_at_s", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("refresh", sa.LargeBinary(), nullable=True),
        sa.Column("renewer_until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("application", name=op.f("pk_token")),
    )
    op.create_table(
        "trouble",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.Column("next_probe_us", sa.BigInteger(), nullable=False),
        sa.Column("probes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("pk_trouble")),
    )
    op.create_table(
        "chunk",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("sealed_us", sa.BigInteger(), nullable=False),
        sa.Column("people", sa.Integer(), nullable=False),
        sa.Column("user_keys", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_chunk_canvas_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunk")),
    )
    op.create_table(
        "look",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("upto", sa.Text(), nullable=False),
        sa.Column("due_us", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.Boolean(), nullable=False),
        sa.Column("marks", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_look_canvas_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_look")),
    )
    op.create_index("ix_look_due", "look", ["canvas_id", "due_us"], unique=False)
    op.create_table(
        "request",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("audience_id", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("identifier_type", sa.Text(), nullable=False),
        sa.Column("identifiers", sa.Integer(), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("claimed_us", sa.BigInteger(), nullable=False),
        sa.Column("lease_until_us", sa.BigInteger(), nullable=False),
        sa.Column("ended_us", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("valid", sa.Integer(), nullable=True),
        sa.Column("invalid", sa.Integer(), nullable=True),
        sa.Column("narrow_root", sa.BigInteger(), nullable=True),
        sa.Column("narrow_level", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["audience_id"], ["audience.id"], name=op.f("fk_request_audience_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request")),
    )
    op.create_index(
        "ix_request_in_flight",
        "request",
        ["audience_id"],
        unique=False,
        sqlite_where=sa.text("state = 'in_flight' OR state = 'unknown'"),
        postgresql_where=sa.text("state = 'in_flight' OR state = 'unknown'"),
    )
    op.create_index("ix_request_narrow_root", "request", ["narrow_root"], unique=False)
    op.create_table(
        "source_cursor",
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("lease_until_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("read_us", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_source_cursor_canvas_id")),
        sa.PrimaryKeyConstraint("canvas_id", name=op.f("pk_source_cursor")),
    )
    op.create_table(
        "source_unit",
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("unit", sa.LargeBinary(), nullable=False),
        sa.Column("done_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_source_unit_canvas_id")),
        sa.PrimaryKeyConstraint("canvas_id", "unit", name=op.f("pk_source_unit")),
    )
    op.create_table(
        "step",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("declared", sa.Boolean(), nullable=False),
        sa.Column("paused_us", sa.BigInteger(), nullable=True),
        sa.Column("dropped_upto", sa.BigInteger(), nullable=True),
        sa.Column("version_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_step_canvas_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_step")),
        sa.UniqueConstraint("canvas_id", "name", name=op.f("uq_step_canvas_id")),
    )
    op.create_table(
        "identifiers",
        sa.Column("chunk_id", sa.BigInteger(), nullable=False),
        sa.Column("form", sa.Text(), nullable=False),
        sa.Column("gum_caller_id", sa.Integer(), nullable=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("present", sa.Text(), nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunk.id"], name=op.f("fk_identifiers_chunk_id")),
        sa.PrimaryKeyConstraint("chunk_id", "form", name=op.f("pk_identifiers")),
    )
    op.create_table(
        "metric",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("canvas_id", sa.Text(), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["canvas_id"], ["canvas.id"], name=op.f("fk_metric_canvas_id")),
        sa.ForeignKeyConstraint(["step_id"], ["step.id"], name=op.f("fk_metric_step_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metric")),
    )
    op.create_index("ix_metric_step", "metric", ["step_id", "at_us"], unique=False)
    op.create_table(
        "step_version",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("audience_id", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.Column("delay_s", sa.Integer(), nullable=False),
        sa.Column("is_last", sa.Boolean(), nullable=False),
        sa.Column("since_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["audience_id"], ["audience.id"], name=op.f("fk_step_version_audience_id")),
        sa.ForeignKeyConstraint(["step_id"], ["step.id"], name=op.f("fk_step_version_step_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_step_version")),
    )
    op.create_table(
        "stage",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("chunk_id", sa.BigInteger(), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("enters_us", sa.BigInteger(), nullable=False),
        sa.Column("people", sa.Integer(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("pending", sa.Integer(), nullable=False),
        sa.Column("synced", sa.Integer(), nullable=False),
        sa.Column("not_synced", sa.Integer(), nullable=False),
        sa.Column("errored", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunk.id"], name=op.f("fk_stage_chunk_id")),
        sa.ForeignKeyConstraint(["step_id"], ["step.id"], name=op.f("fk_stage_step_id")),
        sa.ForeignKeyConstraint(["version_id"], ["step_version.id"], name=op.f("fk_stage_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stage")),
    )
    op.create_index("ix_stage_chunk", "stage", ["chunk_id"], unique=False)
    op.create_index("ix_stage_step", "stage", ["step_id"], unique=False)
    op.create_index(
        "ix_stage_waiting",
        "stage",
        ["enters_us"],
        unique=False,
        sqlite_where=sa.text("state = 0"),
        postgresql_where=sa.text("state = 0"),
    )
    op.create_table(
        "stage_exception",
        sa.Column("stage_id", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["stage_id"], ["stage.id"], name=op.f("fk_stage_exception_stage_id")),
        sa.PrimaryKeyConstraint("stage_id", "first", name=op.f("pk_stage_exception")),
    )
    op.create_table(
        "upload",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stage_id", sa.BigInteger(), nullable=False),
        sa.Column("form", sa.Text(), nullable=False),
        sa.Column("identifiers", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["stage_id"], ["stage.id"], name=op.f("fk_upload_stage_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
        sa.UniqueConstraint("stage_id", "form", name=op.f("uq_upload_stage_id")),
    )
    op.create_table(
        "part",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("upload_id", sa.BigInteger(), nullable=False),
        sa.Column("stage_id", sa.BigInteger(), nullable=False),
        sa.Column("chunk_id", sa.BigInteger(), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("audience_id", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("form", sa.Text(), nullable=False),
        sa.Column("identifier_type", sa.Text(), nullable=False),
        sa.Column("gum_caller_id", sa.Integer(), nullable=True),
        sa.Column("spans", sa.Text(), nullable=False),
        sa.Column("identifiers", sa.Integer(), nullable=False),
        sa.Column("intent_us", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_us", sa.BigInteger(), nullable=False),
        sa.Column("deadline_us", sa.BigInteger(), nullable=True),
        sa.Column("request_id", sa.BigInteger(), nullable=True),
        sa.Column("narrow_level", sa.SmallInteger(), nullable=False),
        sa.Column("narrow_root", sa.BigInteger(), nullable=True),
        sa.Column("narrow_group", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["audience_id"], ["audience.id"], name=op.f("fk_part_audience_id")),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunk.id"], name=op.f("fk_part_chunk_id")),
        sa.ForeignKeyConstraint(["stage_id"], ["stage.id"], name=op.f("fk_part_stage_id")),
        sa.ForeignKeyConstraint(["step_id"], ["step.id"], name=op.f("fk_part_step_id")),
        sa.ForeignKeyConstraint(["upload_id"], ["upload.id"], name=op.f("fk_part_upload_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_part")),
    )
    op.create_index(
        "ix_part_deadline",
        "part",
        ["deadline_us"],
        unique=False,
        sqlite_where=sa.text("state = 1 AND deadline_us IS NOT NULL"),
        postgresql_where=sa.text("state = 1 AND deadline_us IS NOT NULL"),
    )
    op.create_index("ix_part_intent", "part", ["audience_id", "operation", "intent_us"], unique=False)
    op.create_index(
        "ix_part_narrow",
        "part",
        ["narrow_root"],
        unique=False,
        sqlite_where=sa.text("narrow_root IS NOT NULL"),
        postgresql_where=sa.text("narrow_root IS NOT NULL"),
    )
    op.create_index(
        "ix_part_open",
        "part",
        ["audience_id", "operation", "due_us"],
        unique=False,
        sqlite_where=sa.text("state = 1"),
        postgresql_where=sa.text("state = 1"),
    )
    op.create_index(
        "ix_part_request",
        "part",
        ["request_id"],
        unique=False,
        sqlite_where=sa.text("state = 2"),
        postgresql_where=sa.text("state = 2"),
    )
    op.create_index("ix_part_stage", "part", ["stage_id"], unique=False)

    if op.get_bind().dialect.name == "postgresql":
        # Digests do not compress, and compressing keys would cost more than writing them.
        op.execute("ALTER TABLE identifiers ALTER COLUMN packed SET STORAGE EXTERNAL")
        op.execute("ALTER TABLE chunk ALTER COLUMN user_keys SET STORAGE EXTERNAL")
        op.execute("ALTER TABLE look ALTER COLUMN marks SET STORAGE EXTERNAL")
    # Pauses come with 0003, and 0004 makes the view anew.
    op.execute(USER_STATUS[op.get_bind().dialect.name].replace(" AND step.held_us IS NULL", ""))
