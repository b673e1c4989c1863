"""The tables of who may speak for this workspace at Criteo."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, Table, Text, text

from criteo_provider.store.schema import metadata

consent = Table(
    "consent",
    metadata,
    Column("connection_id", Text, primary_key=True),
    Column("role", Text, primary_key=True),  # current, candidate (still being checked), forgotten
    Column("application", Text, nullable=False),
    Column("holder", Text, nullable=False),  # of its tokens
    Column("given_by", Text, nullable=False),
    Column("given_us", BigInteger, nullable=False),
    Column("renewed_us", BigInteger, nullable=False),
    Column("dead_us", BigInteger),  # since when Criteo does not honour it
    Column("seed", Text),  # fingerprint of the refresh token the connection brought last
    Column("ad_accounts", Integer),  # how many it covers …
    Column("counted_us", BigInteger, nullable=False, server_default=text("0")),  # … when somebody looked
)
