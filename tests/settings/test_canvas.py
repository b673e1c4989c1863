"""Good canvases: what the rest of the house reads from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from criteo_provider.core.model import AudienceKey, Operation
from criteo_provider.settings.canvas import Canvas, IdentifierColumn
from criteo_provider.settings.durations import parse_duration
from criteo_provider.settings.load import load_canvases

FULL = """
name: Full
owner: team
connection: criteo_eu
retry_for: 1h30m
flush: 10s
entry:
  user_key: id
  source:
    sql: {connection: shop, query: segments/all.sql, cursor: changed, late_commit: 2m}
  identifiers:
    email: {column: mail, hash: [sha256, md5], input: sha256_md5}
    madid: maid
    gum: {column: gum_id, caller_id: 123}
    identity_link: ramp
  eligibility: {value: {min: 5, max: 10}, country: {in: [DE, FR]}}
  consent: {require: {ads: true, dns: false}}
steps:
  - {id: first, audience_sync: {operation: add, ad_account: 1001, audience: " A ", fields: [email]}}
  - {id: wait, delay: 1d}
  - {id: second, audience_sync: {operation: add, ad_account: "1002", audience: B, fields: [madid, gum]}}
  - {id: wait_again, delay: 2h}
  - {id: third, audience_sync: {operation: remove, ad_account: "1001", audience: A, fields: [email]}}
"""


@pytest.fixture
def include(tmp_path: Path) -> Path:
    """An include folder with one segment."""
    (tmp_path / "canvases").mkdir()
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments" / "all.sql").write_text("-- all\nSELECT * FROM people ;\n\n")
    return tmp_path


def load(include: Path, text: str = FULL) -> Canvas:
    (include / "canvases" / "full.yaml").write_text(text)
    loaded = load_canvases(include)
    assert loaded.problems == ()
    return loaded.canvases[0]


def test_everything_written_is_read(include: Path) -> None:
    """Names, durations in seconds, the segment's SQL and the columns are there under plain attributes."""
    canvas = load(include)
    assert (canvas.id, canvas.name, canvas.owner, canvas.connection) == ("full", "Full", "team", "criteo_eu")
    assert (canvas.retry_for_s, canvas.flush_s) == (5_400, 10)
    sql = canvas.entry.source.sql
    assert canvas.entry.source.chosen is sql
    assert sql is not None
    assert (sql.connection, sql.cursor, sql.late_commit_s) == ("shop", ("changed",), 120)
    assert (sql.query.path, sql.query.text) == ("segments/all.sql", "-- all\nSELECT * FROM people")
    assert canvas.entry.identifiers.columns == (
        IdentifierColumn("email", "mail", None, ("sha256", "md5"), "sha256_md5"),
        IdentifierColumn("madid", "maid"),
        IdentifierColumn("gum", "gum_id", 123),
        IdentifierColumn("identity_link", "ramp"),
    )
    assert canvas.entry.columns == ("id", "mail", "maid", "gum_id", "ramp", "value", "country", "ads", "dns")


def test_defaults_are_those_of_the_design(include: Path) -> None:
    """Without a word a canvas uses criteo_default, retries for 13 hours, flushes every 5 s, and sends SHA-256."""
    data = yaml.safe_load(FULL)
    for key in ("connection", "retry_for", "flush"):
        del data[key]
    data["entry"]["identifiers"] = {"email": "mail", "madid": "maid", "gum": {"column": "g", "caller_id": 1}}
    del data["entry"]["source"]["sql"]["late_commit"], data["entry"]["eligibility"]
    canvas = load(include, yaml.safe_dump(data))
    assert (canvas.connection, canvas.retry_for_s, canvas.flush_s) == ("criteo_default", 46_800, 5)
    assert canvas.entry.identifiers.columns[0] == IdentifierColumn("email", "mail", None, ("sha256",), "auto")
    assert canvas.entry.source.sql is not None
    assert canvas.entry.source.sql.late_commit_s == 60
    assert canvas.entry.rule.columns == ("ads", "dns")


def test_audience_steps_know_their_place(include: Path) -> None:
    """Audience steps count from 0, add up all delays before them, and the last one knows that it is."""
    canvas = load(include)
    assert [(step.id, step.position, step.delay_s, step.is_last) for step in canvas.audience_steps] == [
        ("first", 0, 0, False),
        ("second", 1, 86_400, False),
        ("third", 2, 93_600, True),
    ]


def test_the_declaration_is_what_the_ledger_needs(include: Path) -> None:
    """The declaration carries connection, ad account, trimmed audience, operation, fields and patience."""
    declared = load(include).declaration
    assert (declared.canvas_id, declared.connection_id, declared.retry_for_s) == ("full", "criteo_eu", 5_400)
    first, second, third = declared.steps
    assert first.audience == third.audience == AudienceKey("criteo_eu", "1001", "A")
    assert (second.name, second.operation, second.fields) == ("second", Operation.ADD, ("madid", "gum"))
    assert (third.operation, third.is_last) == (Operation.REMOVE, True)


def test_the_rule_joins_eligibility_and_consent(include: Path) -> None:
    """A person enters who is eligible and consented; consent alone can be asked again later."""
    entry = load(include).entry
    columns = {"value": [7, 7, 70], "country": ["DE", "DE", "DE"], "ads": [1, 1, 1], "dns": [0, None, 0]}
    assert entry.rule.mask(columns) == [True, False, False]
    assert entry.consent.rule.mask(columns) == [True, False, True]


def test_the_fingerprint_is_of_the_meaning(include: Path) -> None:
    """Layout and comments leave the fingerprint as it is; another name, key or segment does not."""
    before = load(include).fingerprint
    relaid = "# a comment\n" + yaml.safe_dump(yaml.safe_load(FULL), sort_keys=True)
    assert load(include, relaid).fingerprint == before
    assert load(include, FULL.replace("delay: 1d", "delay: 2d")).fingerprint != before
    (include / "canvases" / "twin.yaml").write_text(FULL)
    assert len({canvas.fingerprint for canvas in load_canvases(include).canvases}) == 2
    (include / "segments" / "all.sql").write_text("SELECT * FROM others")
    assert load(include).fingerprint != before


@pytest.mark.parametrize(
    "source",
    [
        {"files": {"path": "s3://bucket/people/", "connection": "aws_default", "pattern": "*.parquet"}},
        {"http": {"connection": "crm", "endpoint": "/p", "records": "data.items", "params": {"status": 1}}},
        {
            "http": {
                "connection": "crm",
                "endpoint": "/p",
                "page": {"kind": "cursor", "param": "c", "next": "meta.next"},
            }
        },
        {"python": {"callable": "my_segments.people", "cursor": "updated_at"}},
    ],
)
def test_every_kind_of_source_can_be_declared(include: Path, source: dict[str, object]) -> None:
    """Files, HTTP endpoints and Python callables are read as well, and the chosen one is found."""
    data = yaml.safe_load(FULL)
    data["entry"]["source"] = source
    chosen = load(include, yaml.safe_dump(data)).entry.source.chosen
    assert type(chosen).__name__.lower().removesuffix("source") == next(iter(source))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("13h", 46_800), ("30d", 2_592_000), ("1h30m", 5_400), ("1d 2h 3m 4s", 93_784), ("0s", 0),
     ("", None), ("5", None), ("5x", None), ("5m1h", None), ("1.5h", None), ("-5s", None)],
)  # fmt: skip
def test_durations_are_read_as_people_write_them(text: str, seconds: int | None) -> None:
    """Days, hours, minutes and seconds in this order are a duration; anything else is none."""
    assert parse_duration(text) == seconds
