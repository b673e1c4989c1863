"""The tables that keep a large ledger quick: backlogs, running totals, what was pruned, and the index of people."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, SmallInteger, Table, Text, text

from criteo_provider.store.schema import BigId, metadata

# The metrics of a step, in the order of model.Metric, as columns.
COUNTED = ("entered", "proceeded", "synced", "not_synced", "pending", "errored", "exited")

step_total = Table(
    "step_total",
    metadata,
    Column("step_id", BigInteger, ForeignKey("step.id"), primary_key=True),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in COUNTED),
)

backlog = Table(
    "backlog",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("canvas_id", Text, ForeignKey("canvas.id"), nullable=False),
    Column("position", Text, nullable=False),  # JSON; what lies behind it is still to be read
    Column("upto", Text, nullable=False),  # JSON; the last position that belongs to it
    Column("since_us", BigInteger, nullable=False),  # when it was set aside: its people came before that
    Column("version", BigInteger, nullable=False),
    Column("owner", Text, nullable=False, server_default=text("''")),
    Column("lease_until_us", BigInteger, nullable=False, server_default=text("0")),
    Index("ix_backlog_canvas", "canvas_id"),
)

step_reason = Table(
    "step_reason",
    metadata,
    Column("step_id", BigInteger, ForeignKey("step.id"), primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("people", BigInteger, nullable=False),
)

step_pruned = Table(
    "step_pruned",
    metadata,
    Column("step_id", BigInteger, ForeignKey("step.id"), primary_key=True),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in COUNTED),
)

people_segment = Table(
    "people_segment",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("first_chunk", BigInteger, nullable=False),
    Column("last_chunk", BigInteger, nullable=False),
    Column("pages", SmallInteger, nullable=False),  # a value is on the page that its first byte names
    Index("ix_people_segment_last", "last_chunk"),
)

people_page = Table(
    "people_page",
    metadata,
    Column("segment_id", BigInteger, ForeignKey("people_segment.id"), primary_key=True),
    Column("kind", Text, primary_key=True),  # user_key, or an identifier form
    Column("page", SmallInteger, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("entries", LargeBinary, nullable=False),  # ascending 4-byte prefixes, then as many 4-byte chunk offsets
)
