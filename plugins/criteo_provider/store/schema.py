"""The tables of the ledger, in the words of the design; times are microseconds since the epoch, UTC.

Sealed things (chunk, identifiers, upload) never change; what moves is small (stage, part, request, cursor).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

# SQLite numbers rows by itself only in a column of type INTEGER.
BigId = BigInteger().with_variant(Integer, "sqlite")


# Some indexes cover one state only. Where a condition has the state as a parameter, SQLite plans the statement anew
# each time it is asked, and a statement that PostgreSQL has prepared misses the index.
class _Written(TypeEngine.Comparator[Any]):
    """Conditions on a state have it written in the statement."""

    def operate(self, op: Any, *other: Any, **more: Any) -> Any:
        return super().operate(op, *map(_written, other), **more)


def _written(state: Any) -> Any:
    match state:
        case int():
            return literal_column(str(int(state)))
        case str():
            return literal_column(f"'{state}'")
        case tuple():
            return [_written(one) for one in state]
    return state


class StateNumber(SmallInteger):
    """One of a few states, kept as a number."""

    comparator_factory = _Written


class StateName(Text):
    """One of a few states, kept as a word."""

    comparator_factory = _Written


origin = Table(
    "origin",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("host", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("made_us", BigInteger, nullable=False),
)

canvas = Table(
    "canvas",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("connection_id", Text, nullable=False),
    Column("retry_for_us", BigInteger, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("declared", Boolean, nullable=False),
    Column("launched_us", BigInteger),  # None: declared, and its preflight was never green
)

audience = Table(
    "audience",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("connection_id", Text, nullable=False),
    Column("ad_account", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("criteo_id", Text),
    Column("created_here", Boolean, nullable=False, server_default=text("false")),
    Column("resolved_us", BigInteger),
    Column("resolver_until_us", BigInteger, nullable=False, server_default=text("0")),
    Column("served", BigInteger, nullable=False, server_default=text("0")),
    Column("served_us", BigInteger, nullable=False, server_default=text("0")),
    Column("turn", Text),  # the operation that waits behind a barrier and is next …
    Column("turn_until_us", BigInteger, nullable=False, server_default=text("0")),  # … but not for ever
    Column("when_deleted", Text, nullable=False, server_default=text("'wait'")),  # wait, recreate, fail
    Column("gone_us", BigInteger),  # since when Criteo does not know it any more
    UniqueConstraint("connection_id", "ad_account", "name"),
)

step = Table(
    "step",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("canvas_id", Text, ForeignKey("canvas.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("declared", Boolean, nullable=False),
    Column("paused_us", BigInteger),  # since when it is no longer declared
    Column("held_us", BigInteger),  # since when its file says `paused: true`
    Column("dropped_upto", BigInteger),  # stages up to this id were given up by a person
    Column("version_id", BigInteger),
    UniqueConstraint("canvas_id", "name"),
)

step_version = Table(
    "step_version",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("step_id", BigInteger, ForeignKey("step.id"), nullable=False),
    Column("audience_id", BigInteger, ForeignKey("audience.id"), nullable=False),
    Column("operation", Text, nullable=False),
    Column("fields", Text, nullable=False),  # JSON list
    Column("delay_s", Integer, nullable=False),
    Column("is_last", Boolean, nullable=False),
    Column("since_us", BigInteger, nullable=False),
)

trouble = Table(
    "trouble",
    metadata,
    Column("scope", Text, primary_key=True),  # connection, ad_account, audience; source, launch, quota
    Column("key", Text, primary_key=True),
    Column("code", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("since_us", BigInteger, nullable=False),
    Column("next_probe_us", BigInteger, nullable=False),
    Column("probes", Integer, nullable=False),
)

news = Table(
    "news",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("scope", Text, nullable=False),  # of a trouble; or "people", for those given up
    Column("key", Text, nullable=False),
    Column("began", Boolean, nullable=False),  # false: it is over
    Column("sentence", Text, nullable=False),
    Column("told_us", BigInteger),  # when somebody was told
    Index("ix_news_untold", "id", sqlite_where=text("told_us IS NULL"), postgresql_where=text("told_us IS NULL")),
)

source_cursor = Table(
    "source_cursor",
    metadata,
    Column("canvas_id", Text, ForeignKey("canvas.id"), primary_key=True),
    Column("position", Text, nullable=False),  # JSON
    Column("version", BigInteger, nullable=False),
    Column("owner", Text, nullable=False, server_default=text("''")),
    Column("lease_until_us", BigInteger, nullable=False, server_default=text("0")),
    Column("read_us", BigInteger, nullable=False, server_default=text("0")),
)

source_unit = Table(
    "source_unit",
    metadata,
    Column("canvas_id", Text, ForeignKey("canvas.id"), primary_key=True),
    Column("unit", LargeBinary, primary_key=True),  # 16-byte digest of a finished unit's name
    Column("done_us", BigInteger, nullable=False),
)

look = Table(
    "look",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("canvas_id", Text, ForeignKey("canvas.id"), nullable=False),
    Column("after", Text, nullable=False),  # JSON
    Column("upto", Text, nullable=False),  # JSON
    Column("due_us", BigInteger, nullable=False),
    Column("last", Boolean, nullable=False),
    Column("marks", LargeBinary, nullable=False),
    Index("ix_look_due", "canvas_id", "due_us"),
)

chunk = Table(
    "chunk",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("canvas_id", Text, ForeignKey("canvas.id"), nullable=False),
    Column("sealed_us", BigInteger, nullable=False),
    Column("people", Integer, nullable=False),
    Column("user_keys", Text, nullable=False),  # JSON list of text, by ordinal
    Index("ix_chunk_sealed", "sealed_us"),
)

identifiers = Table(
    "identifiers",
    metadata,
    Column("chunk_id", BigInteger, ForeignKey("chunk.id"), primary_key=True),
    Column("form", Text, primary_key=True),
    Column("gum_caller_id", Integer),
    Column("count", Integer, nullable=False),
    Column("present", Text, nullable=False),  # JSON list of [first, last) ordinals: the validity mask
    Column("packed", LargeBinary, nullable=False),
)

stage = Table(
    "stage",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("chunk_id", BigInteger, ForeignKey("chunk.id"), nullable=False),
    Column("step_id", BigInteger, ForeignKey("step.id"), nullable=False),
    Column("version_id", BigInteger, ForeignKey("step_version.id"), nullable=False),
    Column("state", StateNumber, nullable=False),
    Column("enters_us", BigInteger, nullable=False),
    Column("people", Integer, nullable=False),
    Column("status", SmallInteger, nullable=False),  # of everybody who is no exception
    Column("reason", Text),
    Column("pending", Integer, nullable=False),
    Column("synced", Integer, nullable=False),
    Column("not_synced", Integer, nullable=False),
    Column("errored", Integer, nullable=False),
    Index("ix_stage_chunk", "chunk_id"),
    Index("ix_stage_step", "step_id"),
    Index("ix_stage_waiting", "enters_us", sqlite_where=text("state = 0"), postgresql_where=text("state = 0")),
)

stage_exception = Table(
    "stage_exception",
    metadata,
    Column("stage_id", BigInteger, ForeignKey("stage.id"), primary_key=True),
    Column("first", Integer, primary_key=True),
    Column("last", Integer, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("reason", Text),
)

upload = Table(
    "upload",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("stage_id", BigInteger, ForeignKey("stage.id"), nullable=False),
    Column("form", Text, nullable=False),
    Column("identifiers", Integer, nullable=False),
    UniqueConstraint("stage_id", "form"),
)

part = Table(
    "part",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("upload_id", BigInteger, ForeignKey("upload.id"), nullable=False),
    Column("stage_id", BigInteger, ForeignKey("stage.id"), nullable=False),
    Column("chunk_id", BigInteger, ForeignKey("chunk.id"), nullable=False),
    Column("step_id", BigInteger, ForeignKey("step.id"), nullable=False),
    Column("audience_id", BigInteger, ForeignKey("audience.id"), nullable=False),
    Column("operation", Text, nullable=False),
    Column("form", Text, nullable=False),
    Column("identifier_type", Text, nullable=False),
    Column("gum_caller_id", Integer),
    Column("spans", Text, nullable=False),  # JSON list of [first, last) ordinals: whose identifiers
    Column("identifiers", Integer, nullable=False),
    Column("intent_us", BigInteger, nullable=False),
    Column("state", StateNumber, nullable=False),
    Column("reason", Text),
    Column("attempts", Integer, nullable=False),
    Column("due_us", BigInteger, nullable=False),
    Column("deadline_us", BigInteger),
    Column("request_id", BigInteger),
    Column("narrow_level", SmallInteger, nullable=False),  # 0 may be merged, 1 goes alone, more: halves
    Column("narrow_root", BigInteger),  # the request whose refusal is being narrowed
    Column("narrow_group", BigInteger),  # parts that go into one request together while narrowing
    Column("look_back", StateNumber, nullable=False, server_default=text("0")),  # 1: a removal not looked up yet
    Column("earlier_id", BigInteger),  # its identifiers are those of this row of ``earlier``, not of the chunk
    Column("again", Boolean, nullable=False, server_default=text("false")),  # repeats what others have settled
    Index("ix_part_stage", "stage_id"),
    Index("ix_part_request", "request_id", sqlite_where=text("state = 2"), postgresql_where=text("state = 2")),
    Index(
        "ix_part_open",
        "audience_id",
        "operation",
        "due_us",
        sqlite_where=text("state = 1"),
        postgresql_where=text("state = 1"),
    ),
    Index(
        "ix_part_deadline",
        "deadline_us",
        sqlite_where=text("state = 1 AND deadline_us IS NOT NULL"),
        postgresql_where=text("state = 1 AND deadline_us IS NOT NULL"),
    ),
    Index("ix_part_errored", "deadline_us", sqlite_where=text("state = 5"), postgresql_where=text("state = 5")),
    Index(
        "ix_part_look_back",
        "audience_id",
        sqlite_where=text("look_back = 1"),
        postgresql_where=text("look_back = 1"),
    ),
    Index("ix_part_intent", "audience_id", "operation", "intent_us"),
    Index(
        "ix_part_narrow",
        "narrow_root",
        sqlite_where=text("narrow_root IS NOT NULL"),
        postgresql_where=text("narrow_root IS NOT NULL"),
    ),
)

request = Table(
    "request",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("audience_id", BigInteger, ForeignKey("audience.id"), nullable=False),
    Column("operation", Text, nullable=False),
    Column("identifier_type", Text, nullable=False),
    Column("identifiers", Integer, nullable=False),
    Column("parts", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("claimed_us", BigInteger, nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    # in_flight, released (unsent), settled (judged by Criteo), failed, unknown (answer lost), expired (owner lost)
    Column("state", StateName, nullable=False),
    Column("code", Text),
    Column("valid", Integer),
    Column("invalid", Integer),
    Column("narrow_root", BigInteger),
    Column("narrow_level", SmallInteger, nullable=False, server_default=text("0")),
    Index(
        "ix_request_in_flight",
        "audience_id",
        sqlite_where=text("state = 'in_flight' OR state = 'unknown'"),
        postgresql_where=text("state = 'in_flight' OR state = 'unknown'"),
    ),
    Index(
        "ix_request_narrow_root",
        "narrow_root",
        sqlite_where=text("narrow_root IS NOT NULL"),
        postgresql_where=text("narrow_root IS NOT NULL"),
    ),
)

metric = Table(
    "metric",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("cause", Text, nullable=False),
    Column("canvas_id", Text, ForeignKey("canvas.id"), nullable=False),
    Column("step_id", BigInteger, ForeignKey("step.id"), nullable=False),
    Column("metric", Text, nullable=False),
    Column("value", BigInteger, nullable=False),
    Index("ix_metric_step", "step_id", "at_us"),
    Index(
        "ix_metric_single",
        "at_us",
        sqlite_where=text("cause <> 'a minute'"),
        postgresql_where=text("cause <> 'a minute'"),
    ),
)

token = Table(
    "token",
    metadata,
    Column("holder", Text, primary_key=True),  # an application, or a consent given to one
    Column("serial", BigInteger, nullable=False, server_default=text("0")),
    Column("key_id", Text),  # of the Fernet key both are encrypted under
    Column("access", LargeBinary),
    Column("ends_at_s", BigInteger, nullable=False, server_default=text("0")),
    Column("refresh", LargeBinary),
    Column("renewer_until_us", BigInteger, nullable=False, server_default=text("0")),
)
