"""The tables of launches: the last preflight of each canvas, and how full ad accounts are."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, Table, Text

from criteo_provider.store.schema import metadata

preflight = Table(
    "preflight",
    metadata,
    Column("canvas_id", Text, ForeignKey("canvas.id"), primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("stamp", Text, nullable=False),  # changes with the file and the connections that were checked
    Column("findings", Text, nullable=False),  # JSON
)

fullness = Table(
    "fullness",
    metadata,
    Column("connection_id", Text, primary_key=True),
    Column("ad_account", Text, primary_key=True),
    Column("audiences", Integer, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
)
