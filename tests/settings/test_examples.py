"""The four examples: they load, and their segments run on the example shop."""

from __future__ import annotations

import importlib.util
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import ModuleType

import pytest

from criteo_provider.core.identifiers import Unusable, normalise
from criteo_provider.settings.canvas import Canvas
from criteo_provider.settings.load import load_canvases
from criteo_provider.settings.opt_outs import load_feeds

INCLUDE = Path(__file__).parent.parent.parent / "include"
EXAMPLES = load_canvases(INCLUDE)
PEOPLE = 4_000


@pytest.fixture(scope="module")
def example_data() -> ModuleType:
    """include/example_data.py, which is no package."""
    spec = importlib.util.spec_from_file_location("example_data", INCLUDE / "example_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shop_file(example_data: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop of made-up people."""
    path = tmp_path_factory.mktemp("shop") / "shop.db"
    example_data.create(path, PEOPLE)
    return path


@pytest.fixture
def shop(shop_file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(shop_file)) as connection:
        yield connection


def segment(shop: sqlite3.Connection, canvas: Canvas) -> dict[str, list[object]]:
    """Run a canvas's segment and return its columns."""
    sql = canvas.entry.source.sql
    assert sql is not None
    found = shop.execute(sql.query.text)
    names = [column[0] for column in found.description]
    return dict(zip(names, map(list, zip(*found.fetchall(), strict=True)), strict=True))


def canvas_named(canvas_id: str) -> Canvas:
    return next(canvas for canvas in EXAMPLES.canvases if canvas.id == canvas_id)


def test_the_four_use_cases_load_without_a_problem() -> None:
    """One example per use case, none with a problem."""
    assert [str(problem) for problem in EXAMPLES.problems] == []
    assert [canvas.id for canvas in EXAMPLES.canvases] == [
        "high_value_targeting", "lookalike_seed", "retargeting", "suppression",
    ]  # fmt: skip


@pytest.mark.parametrize("canvas", EXAMPLES.canvases, ids=lambda canvas: canvas.id)
def test_each_example_asks_for_both_consents(canvas: Canvas) -> None:
    """Every example needs ad tracking allowed and no objection to selling or sharing."""
    assert canvas.entry.consent.require == {"ads_tracking_enabled": True, "do_not_sell_or_share": False}


@pytest.mark.parametrize("canvas", EXAMPLES.canvases, ids=lambda canvas: canvas.id)
def test_each_segment_has_the_columns_its_canvas_declares(shop: sqlite3.Connection, canvas: Canvas) -> None:
    """The SQL runs, gives every declared and cursor column, and some of its people may enter, some may not."""
    columns = segment(shop, canvas)
    assert canvas.entry.source.sql is not None
    assert {*canvas.entry.columns, *canvas.entry.source.sql.cursor} == set(columns)
    mask = canvas.entry.rule.mask(columns)
    assert 0 < sum(mask) < len(mask)
    consents = zip(columns["ads_tracking_enabled"], columns["do_not_sell_or_share"], mask, strict=True)
    assert all(consent == (1, 0) for *consent_list, held in consents if held for consent in [tuple(consent_list)])


def test_everybody_is_in_one_to_three_segments(shop: sqlite3.Connection) -> None:
    """The segments overlap in part, and leave nobody out."""
    counts = Counter(key for canvas in EXAMPLES.canvases for key in segment(shop, canvas)["customer_id"])
    assert len(counts) == PEOPLE
    assert set(counts.values()) == {1, 2, 3}


def test_nobody_is_retargeted_and_suppressed_at_once(shop: sqlite3.Connection) -> None:
    """Who is to be retargeted has not bought of late, so the two canvases do not undo each other at the start."""
    quiet, buyers = (set(segment(shop, canvas_named(name))["customer_id"]) for name in ("retargeting", "suppression"))
    assert not quiet & buyers


def test_example_people_are_made_up_and_imperfect(shop: sqlite3.Connection) -> None:
    """All addresses are under example domains, and every trouble a real table has occurs."""
    emails = [email for (email,) in shop.execute("SELECT email FROM customers")]
    plain = [email.strip().lower() for email in emails if email and "@" in email]
    assert {address.rpartition("@")[2] for address in plain} == {"example.com", "example.org", "example.net"}
    assert any(not address.isascii() for address in plain)
    assert len(set(plain)) < len(plain)
    found = normalise("email", emails)
    assert {form.value for form in found.values} == {"email_sha256", "email_md5"}
    assert set(found.unusable.values()) == {*Unusable}
    assert len(found.unusable) < len(emails)
    devices = [device for (device,) in shop.execute("SELECT maid FROM customers")]
    unusable = normalise("madid", devices).unusable
    assert {Unusable.MISSING, Unusable.MALFORMED} <= set(unusable.values())
    assert len(unusable) < len(devices)


def test_changes_are_stamped_in_one_format_and_in_the_past(shop: sqlite3.Connection) -> None:
    """The cursor column sorts as text as it sorts in time, which a cursor needs."""
    stamps = [stamp for (stamp,) in shop.execute("SELECT updated_at FROM customers ORDER BY updated_at")]
    moments = [datetime.fromisoformat(stamp) for stamp in stamps]
    assert {len(stamp) for stamp in stamps} == {len("2026-01-31T08:00:00.000000+00:00")}
    assert moments == sorted(moments)
    assert moments[-1] < datetime.now(moments[-1].tzinfo)


def test_somebody_added_enters_and_can_be_found(example_data: ModuleType, tmp_path: Path) -> None:
    """An added person is the newest row, enters high-value targeting, and has a hash to look for."""
    path = tmp_path / "shop.db"
    example_data.create(path, 50)
    customer_id = example_data.add_person(path)
    canvas = canvas_named("high_value_targeting")
    with closing(sqlite3.connect(path)) as shop:
        columns = segment(shop, canvas)
        (newest,) = shop.execute("SELECT customer_id FROM customers ORDER BY updated_at DESC LIMIT 1").fetchone()
    assert newest == customer_id
    assert canvas.entry.rule.mask(columns)[columns["customer_id"].index(customer_id)]
    assert len(bytes.fromhex(example_data.email_sha256(path, customer_id))) == 32


def test_a_backfill_enters_retargeting(example_data: ModuleType, tmp_path: Path) -> None:
    """All people of a backfill may enter one canvas, and are written in more than one transaction when many."""
    path = tmp_path / "shop.db"
    example_data.create(path, 10)
    example_data.add_people(path, example_data.ROWS_PER_TRANSACTION + 5)
    canvas = canvas_named("retargeting")
    with closing(sqlite3.connect(path)) as shop:
        columns = segment(shop, canvas)
    added = [
        held for key, held in zip(columns["customer_id"], canvas.entry.rule.mask(columns), strict=True) if key > 10
    ]
    assert added == [True] * (example_data.ROWS_PER_TRANSACTION + 5)
    assert len(set(columns["updated_at"][-len(added) :])) == 2


def test_the_example_feed(shop: sqlite3.Connection) -> None:
    """The feed loads, its query runs on the example shop, and exactly those who said no are opt-outs."""
    found = load_feeds(INCLUDE)
    assert found.problems == ()
    (feed,) = found.feeds
    sql = feed.source.sql
    assert sql is not None
    rows = shop.execute(sql.query.text)
    names = [column[0] for column in rows.description]
    columns = dict(zip(names, zip(*rows.fetchall(), strict=True), strict=True))
    assert set(feed.columns) | set(sql.cursor) <= set(names)
    taken_back = feed.taken_back_rule.mask(columns)
    (said_no,) = shop.execute("SELECT count(*) FROM customers WHERE do_not_sell_or_share = 1").fetchone()
    assert taken_back.count(False) == said_no > 0
