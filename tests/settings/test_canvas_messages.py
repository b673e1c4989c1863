"""Bad canvases: every rule names file, key and mend, all at once, and shows nothing from the file."""
# ruff: noqa: E501 (a rule and its sentence read best on one line)

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from criteo_provider.settings.load import load_canvases

Change = Callable[[Any], object]

GOOD: dict[str, Any] = {
    "name": "Good",
    "owner": "team",
    "entry": {
        "user_key": "id",
        "source": {"sql": {"connection": "shop", "query": "segments/all.sql", "cursor": ["changed", "id"]}},
        "identifiers": {"email": "email", "madid": "maid", "gum": {"column": "gum_id", "caller_id": 123}},
        "eligibility": {"value": {"min": 5}},
        "consent": {"require": {"ads": True}},
    },
    "steps": [
        {
            "id": "a",
            "audience_sync": {"operation": "add", "ad_account": "1001", "audience": "VIP", "fields": ["email"]},
        },
        {"id": "w", "delay": "30d"},
        {
            "id": "r",
            "audience_sync": {"operation": "remove", "ad_account": 1001, "audience": "VIP", "fields": ["email"]},
        },
    ],
}
HTTP = {"connection": "crm", "endpoint": "/people"}


@pytest.fixture
def include(tmp_path: Path) -> Path:
    """An include folder with one segment and no canvas."""
    (tmp_path / "include" / "canvases").mkdir(parents=True)
    (tmp_path / "include" / "segments").mkdir()
    (tmp_path / "include" / "segments" / "all.sql").write_text("SELECT * FROM people;\n")
    (tmp_path / "include" / "segments" / "empty.sql").write_text(" ;\n")
    (tmp_path / "elsewhere.sql").write_text("SELECT 1")
    return tmp_path / "include"


def write(include: Path, data: object, name: str = "c.yaml") -> None:
    (include / "canvases" / name).write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))


def problems(include: Path) -> list[str]:
    """Read the folder and show the sentences, without the file they all begin with."""
    found = [str(problem) for problem in load_canvases(include).problems]
    assert all(sentence.startswith("include/canvases/c.yaml: ") for sentence in found), found
    return [sentence.removeprefix("include/canvases/c.yaml: ") for sentence in found]


def put(*path: str | int, to: object) -> Change:
    """Change one spot of a canvas."""

    def change(data: Any) -> None:
        for part in path[:-1]:
            data = data[part]
        data[path[-1]] = to

    return change


def drop(*path: str | int) -> Change:
    """Take one key out of a canvas."""

    def change(data: Any) -> None:
        for part in path[:-1]:
            data = data[part]
        del data[path[-1]]

    return change


SQL = ("entry", "source", "sql")
STEP = ("steps", 0, "audience_sync")
LENGTH = "is not a length of time. Write numbers with d, h, m or s: 30d, 13h, 1h30m, 5s."
ONE_WORD = "has to be 1 to 64 of a-z, 0-9 and underscore. Write it like `id: add_vip`."
CONNECTION = "has to be the id of an Airflow connection: letters, digits, dot, dash, underscore."
NO_FILE = "leads to a file that is not there or not UTF-8 text. Create it, or correct the path."
INSIDE = "has to lead to an .sql file inside the include folder. Move it to segments/."

RULES: list[tuple[Change, str]] = [
    (put("steps", 0, "paused", to="yes"), "steps[0].paused (step a) has to be true or false. Write it like `paused: true`."),
    (put("steps", 1, "paused", to=True), "steps[1].paused (step w) belongs to an audience_sync, and this step is a delay. Remove it, or pause the audience_sync behind it."),
    (put(*STEP, "when_deleted", to="ignore"), "steps[0].audience_sync.when_deleted (step a) has to be one of wait, recreate or fail. Write it like `when_deleted: wait`."),
    (drop("name"), "name is missing. Write it like `name: High-value targeting`."),
    (put("name", to=5), "name has to be text. Write it like `name: High-value targeting`."),
    (put("owner", to="  "), "owner is empty. Write it like `owner: growth-team`."),
    (put("ownr", to="x"), "ownr is not a key that belongs here. Did you mean owner?"),
    (put("zzz", to=1), "zzz is not a key that belongs here. Keys here are: name, connection, owner, retry_for, flush"),
    (put("id", to="x"), "id is not a key that belongs here."),
    (put("file name", to="x"), "file name is not a key that belongs here."),
    (put(7, to="x"), "[7] has a key that is not text. Put the key in quotes."),
    (put("connection", to="a b"), f"connection {CONNECTION} Write it like `connection: criteo_default`."),
    (put("retry_for", to=13), f"retry_for {LENGTH}"),
    (put("retry_for", to="13"), f"retry_for {LENGTH}"),
    (put("flush", to="0s"), f"flush {LENGTH}"),
    (put("entry", to=[]), "entry has to be a block of keys. Write it like `entry: {user_key: ..."),
    (drop("entry", "user_key"), "entry.user_key is missing. Write it like `user_key: customer_id`."),
    (drop("entry", "consent"), "entry.consent is missing. Write it like `consent: {require: {ads_tracking_enabled: true"),
    (put("entry", "consent", "require", to={}), "entry.consent.require is empty. Write it like `require: {ads_track"),
    (put("entry", "consent", "require", "ads", to=None), "entry.consent.require.ads is a condition that cannot be used: The condition is empty"),
    (put("entry", "eligibility", "value", to={"mn": 1}), "entry.eligibility.value is a condition that cannot be used: A condition is one value, or a block of in, not, min, max; mn is not known here. Write one of them."),
    (put("entry", "eligibility", to=[]), "entry.eligibility has to be a block of keys. Write it like `eligibility: {life"),
    (put("entry", "source", to={}), "entry.source names no source. Keep exactly one of sql, files, http, python."),
    (put("entry", "source", "http", to=HTTP), "entry.source has sql and http at once. Keep exactly one of sql, files, http, python."),
    (drop(*SQL, "cursor"), "entry.source.sql.cursor is missing. Write it like `cursor: [updated_at, customer_id]`."),
    (put(*SQL, "cursor", to=[]), "entry.source.sql.cursor is empty. Write it like `cursor: [updated_at, customer_id]`."),
    (put(*SQL, "late_comit", to="5s"), "entry.source.sql.late_comit is not a key that belongs here. Did you mean late_commit?"),
    (put(*SQL, "query", to="segments/none.sql"), f"entry.source.sql.query {NO_FILE}"),
    (put(*SQL, "query", to="segments/empty.sql"), "entry.source.sql.query leads to an empty file. Write the segment's SELECT there."),
    (put(*SQL, "query", to="../elsewhere.sql"), f"entry.source.sql.query {INSIDE}"),
    (put(*SQL, "query", to="canvases/c.yaml"), f"entry.source.sql.query {INSIDE}"),
    (put(*SQL, "query", to=5), "entry.source.sql.query has to be the path of an .sql file. Write it like `query: segments/"),
    (put("entry", "source", to={"files": {"path": "x", "format": "xml"}}), "entry.source.files.format has to be one of parquet, csv or ndjson. Write it like `format: parquet`."),
    (put("entry", "source", to={"http": HTTP | {"page": {"kind": "cursor", "param": "c"}}}), "entry.source.http.page.next is missing, and pages of kind cursor need it. Add `next:`."),
    (put("entry", "source", to={"http": HTTP | {"page": {"kind": "offset", "param": "o"}}}), "entry.source.http.page.size is missing, and pages of kind offset need it. Add `size:`."),
    (put("entry", "source", to={"python": {"callable": "people", "cursor": "at"}}), "entry.source.python.callable has to be a dotted path, module.function. Write it like `callable: my_segments.people`."),
    (put("entry", "identifiers", to={}), "entry.identifiers names no identifier, so nobody could be sent. Add `email:`."),
    (put("entry", "identifiers", "mail", to="x"), "entry.identifiers.mail is not a key that belongs here. Did you mean email?"),
    (put("entry", "identifiers", "madid", to="email"), "entry.identifiers.madid takes the same column as email. Name the column that holds this identifier."),
    (put("entry", "identifiers", "gum", to={"column": "g"}), "entry.identifiers.gum.caller_id is missing. Write it like `caller_id: 123`."),
    (put("entry", "identifiers", "gum", "caller_id", to=0), "entry.identifiers.gum.caller_id has to be at least 1. Write it like `caller_id: 123`."),
    (put("entry", "identifiers", "gum", "caller_id", to="x"), "entry.identifiers.gum.caller_id has to be a whole number."),
    (put("entry", "identifiers", "gum", to="gum_id"), "entry.identifiers.gum has to be a block of keys. Write it like `gum: {column: gum_id, caller_id: 123}`."),
    (put("entry", "identifiers", "email", to={"column": "e", "hash": ["sha1"]}), "entry.identifiers.email.hash[0] has to be one of sha256, md5 or sha256_md5. Write it like `hash: sha256`."),
    (put("entry", "identifiers", "email", to={"column": "e", "hash": []}), "entry.identifiers.email.hash is empty."),
    (put("entry", "identifiers", "email", to={"column": "e", "input": "md5"}), "entry.identifiers.email.input has to be one of auto or sha256_md5."),
    (put("steps", to=[]), "steps holds no audience_sync, so nobody would be sent. Add one."),
    (put("steps", to={}), "steps has to be a list. Write it like `steps: [{id: add_vip, audience_sync: {...}}]`."),
    (put("steps", 0, to="x"), "steps[0] has to be a block of keys."),
    (put("steps", 1, "id", to="Wait 30"), f"steps[1].id (step Wait 30) {ONE_WORD}"),
    (drop("steps", 1, "id"), "steps[1].id is missing. Write it like `id: add_vip`."),
    (put("steps", 2, "id", to="a"), "steps[2].id (step a) is the id of steps[0] too. Give each step an id of its own, for ever."),
    (drop("steps", 1, "delay"), "steps[1] (step w) is neither an audience_sync nor a delay. Add `audience_sync:` or `delay:`."),
    (put("steps", 0, "delay", to="5s"), "steps[0] (step a) is both an audience_sync and a delay. Make two steps of it."),
    (put("steps", 1, "delay", to="a month"), f"steps[1].delay (step w) {LENGTH}"),
    (drop("steps", 2), "steps[1] (step w) is a delay at the end, after which nothing happens. Remove it, or put an audience_sync behind it."),
    (put("steps", 0, to={"id": "b", "delay": "1d"}), "steps[1] (step w) is a delay right after a delay. Make one delay of the two."),
    (put("steps", 1, to=GOOD["steps"][0] | {"id": "b"}), "steps[1] (step b) does the same as the step before it. Remove one of the two."),
    (put(*STEP, "operation", to="ad"), "steps[0].audience_sync.operation (step a) has to be one of add or remove. Write it like `operation: add`."),
    (put(*STEP, "ad_account", to="shop"), "steps[0].audience_sync.ad_account (step a) has to be Criteo's number of the ad account. Write it like `ad_account: \"1001\"`."),
    (put(*STEP, "audience", to=" "), "steps[0].audience_sync.audience (step a) is empty. Write it like `audience: High-value customers`."),
    (put(*STEP, "audience", to="x" * 256), "steps[0].audience_sync.audience (step a) is longer than 255 characters."),
    (put(*STEP, "fields", to=[]), "steps[0].audience_sync.fields (step a) is empty. Write it like `fields: [email, madid]`."),
    (put(*STEP, "fields", to=["email", "email"]), "steps[0].audience_sync.fields[1] (step a) is listed twice. Remove one."),
    (put(*STEP, "fields", to=["phone"]), "steps[0].audience_sync.fields[0] (step a) has to be one of email, madid, gum or identity_link."),
    (put(*STEP, "fields", to=["identity_link"]), "steps[0].audience_sync.fields[0] (step a) is a field that entry.identifiers does not declare. Add it there, or choose from: email, madid, gum."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), RULES, ids=[sentence[:60] for _, sentence in RULES])
def test_each_rule_names_key_and_mend(include: Path, change: Change, sentence: str) -> None:
    """One thing wrong gives exactly one sentence, which begins with its key and says how to mend it."""
    data = copy.deepcopy(GOOD)
    change(data)
    write(include, data)
    assert load_canvases(include).canvases == ()
    (found,) = problems(include)
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the file holds no canvas. Begin with keys: name, owner, entry, steps."),
        ("- a\n- b\n", "the file holds no canvas."),
        ("name: [x\n", "the file is not readable as YAML in line 2, column 1. Correct that line."),
        (
            "name:\n\tx: 1\n",
            "the file is not readable as YAML in line 2, column 1. Correct that line. Indent with spaces",
        ),
        ("name: !!python/name:os.system\n", "the file is not readable as YAML in line 1, column 7."),
        ("a: 1\n---\nb: 1\n", "the file is not readable as YAML in line 2, column 1."),
        ("name: 2026-13-45\n", "the file is not readable as YAML. Write plain UTF-8 text, and no impossible dates."),
        ('name: "\x00"\n', "the file is not readable as YAML."),
    ],
)
def test_what_is_no_yaml_names_the_line(include: Path, text: str, sentence: str) -> None:
    """A file that is no canvas at all is told by line and column where there is one, and runs no code."""
    write(include, text)
    (found,) = problems(include)
    assert found.startswith(sentence)


def test_a_file_of_other_bytes_is_told(include: Path) -> None:
    """A file that is not UTF-8 is a problem like any other."""
    (include / "canvases" / "c.yaml").write_bytes(b"\xff\xfe")
    assert problems(include) == ["the file cannot be read as UTF-8 text. Save it as UTF-8, readable by Airflow."]


def test_a_key_twice_in_one_block_is_refused(include: Path) -> None:
    """YAML would silently take the last one; here both lines are named, at any depth."""
    text = (
        yaml.safe_dump(GOOD, sort_keys=False)
        .replace("  - id: w\n", "  - id: w\n    id: v\n")
        .replace("- id: w\n", "- id: w\n  id: v\n")
    )
    write(include, text)
    line = text.splitlines().index("- id: w") + 1
    assert problems(include) == [f"id stands twice in one block, in lines {line} and {line + 1}. Keep one of them."]


def test_all_problems_of_a_file_come_together_in_its_order(include: Path) -> None:
    """Wrong shapes and broken rules of one file are told at once, in the order in which they stand there."""
    data = copy.deepcopy(GOOD)
    for change in (put("retry_for", to=1), put("owner", to=""), drop("steps", 2), put("entry", "source", to={})):
        change(data)
    write(include, data)
    assert [sentence.split(" ")[0] for sentence in problems(include)] == [
        "owner",
        "entry.source",
        "steps[1]",
        "retry_for",
    ]


def test_messages_show_nothing_of_what_is_written(include: Path) -> None:
    """A value, which may be an address or a secret pasted by mistake, is in no message."""
    secret = "ann@example.com"
    for path in [
        ("owner",),
        ("retry_for",),
        (*SQL, "connection"),
        (*SQL, "query"),
        (*STEP, "operation"),
        (*STEP, "fields", 0),
    ]:
        data = copy.deepcopy(GOOD)
        put(*path, to=secret)(data)
        put("entry", "eligibility", "value", to={"min": secret})(data)
        write(include, data)
        found = load_canvases(include).problems
        assert found
        assert secret not in "".join(map(str, found))
        assert secret not in repr(found)


def test_one_bad_file_never_stops_the_others(include: Path) -> None:
    """Good canvases load beside bad ones; each problem names its own file."""
    write(include, GOOD, "good.yaml")
    write(include, "name: [", "bad.yaml")
    write(include, GOOD, "Not-An-Id.yaml")
    write(include, GOOD, "good.yml")
    loaded = load_canvases(include)
    assert [canvas.id for canvas in loaded.canvases] == ["good"]
    assert {problem.file.name: problem.what for problem in loaded.problems} == {
        "bad.yaml": "is not readable as YAML in line 1, column 8.",
        "Not-An-Id.yaml": "has a name that cannot be a canvas id: 1 to 64 of a-z, 0-9 and underscore.",
        "good.yml": "has the name of another canvas.",
    }


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    """Without a canvases folder there is one problem that names it."""
    (problem,) = load_canvases(tmp_path / "include").problems
    assert (
        str(problem)
        == "include/canvases: the folder is not there, so no canvas can run. Create it, or correct the setting."
    )


def test_steps_of_one_audience_that_disagree_are_told_in_the_later_one(include: Path) -> None:
    """Two steps of one audience say the same of its deletion, or one of them says nothing; across files too."""
    first, second = copy.deepcopy(GOOD), copy.deepcopy(GOOD)
    first["steps"][0]["audience_sync"]["when_deleted"] = "recreate"
    write(include, first, "a.yaml")
    write(include, second)
    assert problems(include) == []
    second["steps"][2]["audience_sync"]["when_deleted"] = "fail"
    write(include, second)
    assert problems(include) == [
        "steps[2].audience_sync.when_deleted (step r) disagrees with step a of canvas a, which says recreate for the "
        "same audience. Say the same in both, or in one of them only."
    ]
    assert [canvas.id for canvas in load_canvases(include).canvases] == ["a"]
    second["steps"][2]["audience_sync"]["ad_account"] = "1002"
    write(include, second)
    assert problems(include) == []
