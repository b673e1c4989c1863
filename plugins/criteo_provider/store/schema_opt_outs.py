"""The tables of withdrawn consent: the feeds, who has withdrawn, and how far those already sent were followed."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, LargeBinary, SmallInteger, Table, Text

from criteo_provider.store.schema import BigId, metadata

opt_out_feed = Table(
    "opt_out_feed",
    metadata,
    Column("canvas_id", Text, ForeignKey("canvas.id"), primary_key=True),  # "opt_outs/<feed>"
    Column("canvases", Text),  # JSON list; null: all
    Column("kinds", Text, nullable=False),  # JSON list: what its marks are of
)

opt_out = Table(
    "opt_out",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("feed", Text, ForeignKey("canvas.id"), nullable=False),
    Column("kind", Text, nullable=False),  # user_key, or an identifier form
    Column("mark", LargeBinary, nullable=False),  # 16 bytes that tell nobody who it is
    Column("at_us", BigInteger, nullable=False),
    Column("until_us", BigInteger),  # when it was taken back: whoever enters from then on may be sent
    Index("ix_opt_out_mark", "kind", "mark"),
)

opt_out_round = Table(
    "opt_out_round",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("after_id", BigInteger, nullable=False),  # the opt-outs behind this one (-1: all, once more) …
    Column("upto_id", BigInteger, nullable=False),  # … and up to this one are being followed …
    Column("after_chunk", BigInteger, nullable=False),  # … in the chunks behind this one …
    Column("upto_chunk", BigInteger, nullable=False),  # … and up to this one
)
