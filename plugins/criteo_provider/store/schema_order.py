"""More tables of the ledger: what has to be known for the last intent to win, and re-queues by a person."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text

from criteo_provider.store.schema import BigId, metadata

earlier = Table(
    "earlier",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("stage_id", BigInteger, ForeignKey("stage.id"), nullable=False),
    Column("form", Text, nullable=False),
    Column("gum_caller_id", Integer),
    Column("count", Integer, nullable=False),
    Column("present", Text, nullable=False),  # JSON list of [first, last) ordinals of the stage's chunk
    Column("packed", LargeBinary, nullable=False),
    Index("ix_earlier_stage", "stage_id"),
)

key_filter = Table(
    "key_filter",
    metadata,
    Column("chunk_id", BigInteger, ForeignKey("chunk.id"), primary_key=True),
    Column("hashes", LargeBinary, nullable=False),  # ascending 4-byte hashes of the chunk's user keys
)

requeue = Table(
    "requeue",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("canvas_id", Text),  # none: every canvas
    Column("step", Text),  # none: every step
    Column("people", BigInteger, nullable=False),
    Column("parts", BigInteger, nullable=False),
)
