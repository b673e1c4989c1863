"""A ledger from nothing to the schema of this release, and where it may be opened."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, inspect, select, text, update

from criteo_provider.core.errors import LedgerRefused
from criteo_provider.store import migrate, schema_order
from criteo_provider.store.engine import open_engine, writing
from criteo_provider.store.ledger import Ledger
from criteo_provider.store.migrate import VERSION_TABLE, current, refuse_if_foreign, upgrade
from criteo_provider.store.schema import metadata, origin
from tests.world import START_US

UPGRADER = """
import sys
from criteo_provider.store.engine import open_engine
from criteo_provider.store.migrate import upgrade
engine = open_engine(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(upgrade(engine, now_us=1), flush=True)
"""


def test_the_migrations_end_at_the_schema(ledger_url: str) -> None:
    """What the migrations make is what the tables in the code say: columns, keys, indexes and their conditions."""
    engine = open_engine(ledger_url)
    upgrade(engine, now_us=START_US)
    with engine.connect() as connection:
        options = {
            "version_table": VERSION_TABLE,
            "compare_type": True,
            "compare_server_default": True,
            "include_name": lambda name, kind, _parents: kind != "table" or name in metadata.tables,
        }
        assert {schema_order.earlier.name, schema_order.requeue.name} <= set(metadata.tables)
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        looked_at = inspect(connection)
        assert set(metadata.tables) <= set(looked_at.get_table_names())
        assert looked_at.get_view_names() == ["user_status"]
        dialect = engine.dialect.name
        for table in metadata.sorted_tables:
            made = {one["name"]: one for one in looked_at.get_indexes(table.name)}
            for index in table.indexes:
                condition = index.dialect_options[dialect].get("where")
                found = made[index.name].get("dialect_options", {}).get(f"{dialect}_where")
                assert (condition is None) == (found is None), index.name
            assert {one.name for one in table.indexes} <= set(made)
    engine.dispose()


def test_upgrading_again_does_nothing(ledger_url: str) -> None:
    """A second upgrade finds the head and leaves the ledger, and where it was made, alone."""
    engine = open_engine(ledger_url)
    assert current(engine) is None
    head = upgrade(engine, now_us=START_US)
    assert upgrade(engine, now_us=START_US + 1) == head == current(engine)
    with engine.connect() as connection:
        made = connection.execute(select(origin.c.made_us)).scalars().all()
    assert made == ([START_US] if engine.dialect.name == "sqlite" else [])
    engine.dispose()


def test_two_processes_may_upgrade_at_once(ledger_url: str) -> None:
    """Of processes that all find an empty database one makes the ledger, and the others find it made."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADER, ledger_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], [error for _, error in told]
    engine = open_engine(ledger_url)
    # Whoever had to wait says so in the lines before.
    assert {out.splitlines()[-1] for out, _ in told} == {current(engine)}
    engine.dispose()


def test_a_failed_upgrade_leaves_nothing_behind(ledger_url: str) -> None:
    """A migration that breaks half-way is as if it had not begun; mended, it goes through."""
    engine = open_engine(ledger_url)
    with writing(engine) as connection:
        connection.execute(text("CREATE TABLE upload (id integer)"))
    with pytest.raises(Exception, match="upload"):
        upgrade(engine, now_us=START_US)
    assert current(engine) is None
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() in (
            ["upload"],
            ["upload", VERSION_TABLE],
            [VERSION_TABLE, "upload"],
        )
    with writing(engine) as connection:
        connection.execute(text("DROP TABLE upload"))
    assert upgrade(engine, now_us=START_US) == current(engine)
    engine.dispose()


def test_an_older_ledger_with_people_in_it_upgrades(ledger_url: str) -> None:
    """People pending in a ledger of the first revision go on as they were, and removals will look back."""
    engine = open_engine(ledger_url)
    with writing(engine) as connection:
        _upgrade_to("0001", connection)
        for statement in FIRST_PEOPLE:
            connection.execute(text(statement))
    upgrade(engine, now_us=START_US)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT user_key, step, status FROM user_status ORDER BY user_key, step")).all()
        looks = connection.execute(text("SELECT operation, look_back, again FROM part ORDER BY operation")).all()
        totals = connection.execute(text("SELECT entered, proceeded, pending, exited FROM step_total")).all()
    assert [tuple(one) for one in totals] == [(1, 1, 1, 0), (1, 1, 1, 0)]
    assert rows == [("user-1", "join", "Pending"), ("user-1", "leave", "Pending")]
    assert [tuple(look) for look in looks] == [("add", 0, False), ("remove", 1, False)]
    engine.dispose()


FIRST_PEOPLE = (
    "INSERT INTO canvas VALUES ('tour', 'Tour', 'team', 'criteo_default', 46800000000, 'x', true, 1)",
    "INSERT INTO audience (id, connection_id, ad_account, name) VALUES (1, 'criteo_default', '1001', 'Shoppers')",
    "INSERT INTO chunk (id, canvas_id, sealed_us, people, user_keys) VALUES (1, 'tour', 1, 1, '[\"user-1\"]')",
    *(
        statement
        for number, name, operation in ((1, "join", "add"), (2, "leave", "remove"))
        for statement in (
            f"INSERT INTO step (id, canvas_id, name, position, declared) VALUES ({number}, 'tour', '{name}', 0, true)",
            "INSERT INTO step_version (id, step_id, audience_id, operation, fields, delay_s, is_last, since_us) "
            f"VALUES ({number}, {number}, 1, '{operation}', '[]', 0, false, 1)",
            "INSERT INTO stage (id, chunk_id, step_id, version_id, state, enters_us, people, status, pending, synced, "
            f"not_synced, errored) VALUES ({number}, 1, {number}, {number}, 1, 1, 1, 0, 1, 0, 0, 0)",
            f"INSERT INTO upload (id, stage_id, form, identifiers) VALUES ({number}, {number}, 'email_sha256', 1)",
            "INSERT INTO part (upload_id, stage_id, chunk_id, step_id, audience_id, operation, form, identifier_type, "
            f"spans, identifiers, intent_us, state, attempts, due_us, narrow_level) VALUES ({number}, {number}, 1, "
            f"{number}, 1, '{operation}', 'email_sha256', 'email', '[[0,1]]', 1, 1, 1, 0, 1, 0)",
        )
    ),
)


def _upgrade_to(revision: str, connection: Connection) -> None:
    """Bring a ledger to an earlier revision."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def test_a_ledger_of_a_later_release_is_refused_with_a_sentence(ledger_url: str) -> None:
    """A release that does not know the ledger's revision says so, and does not touch it."""
    engine = open_engine(ledger_url)
    upgrade(engine, now_us=START_US)
    with writing(engine) as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(LedgerRefused, match="release"):
        upgrade(engine, now_us=START_US)
    engine.dispose()


# --- where a SQLite ledger may be opened


@contextmanager
def opened(path: Path) -> Iterator[Engine]:
    """Open the SQLite file ``path``."""
    engine = open_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    """A SQLite ledger made here."""
    with opened(tmp_path / "ledger.db") as engine:
        upgrade(engine, now_us=START_US)
    return tmp_path / "ledger.db"


@pytest.mark.parametrize("executor", ["LocalExecutor", "airflow.executors.local_executor.LocalExecutor"])
def test_a_sqlite_ledger_opens_where_it_was_made(ledger_file: Path, executor: str) -> None:
    """The host, path and executor it was made under may open it, made already or not."""
    for path in (ledger_file, ledger_file.with_name("not-made-yet.db")):
        with opened(path) as engine:
            refuse_if_foreign(engine, executor=executor)


@pytest.mark.parametrize("executor", ["CeleryExecutor", "KubernetesExecutor", "LocalExecutor,CeleryExecutor"])
def test_a_sqlite_ledger_is_refused_under_other_executors(ledger_file: Path, executor: str) -> None:
    """Tasks may run on other hosts there: the sentence names the executor and the connection that mends it."""
    with opened(ledger_file) as engine, pytest.raises(LedgerRefused, match="criteo_ledger") as refusal:
        refuse_if_foreign(engine, executor=executor)
    assert executor in str(refusal.value)


def test_a_copied_sqlite_ledger_is_refused(ledger_file: Path) -> None:
    """A copy at another path would count people twice."""
    copy = shutil.copyfile(ledger_file, ledger_file.with_name("copy.db"))
    with opened(copy) as engine, pytest.raises(LedgerRefused, match="criteo_ledger"):
        refuse_if_foreign(engine, executor="LocalExecutor")


def test_a_sqlite_ledger_of_another_host_is_refused(ledger_file: Path) -> None:
    """A ledger on a shared disk, opened from another host, is refused."""
    with opened(ledger_file) as engine:
        with writing(engine) as connection:
            connection.execute(update(origin).values(host="not-" + socket.gethostname()))
        with pytest.raises(LedgerRefused, match="another host") as refusal:
            refuse_if_foreign(engine, executor="LocalExecutor")
    assert "criteo_ledger" in str(refusal.value)


def test_the_way_to_the_file_does_not_matter(ledger_file: Path) -> None:
    """A ledger reached through a link is the ledger it links to."""
    (ledger_file.parent / "link").symlink_to(ledger_file.parent)
    with opened(ledger_file.parent / "link" / "ledger.db") as engine:
        refuse_if_foreign(engine, executor="LocalExecutor")


def test_postgresql_has_no_such_limits(postgres_url: str) -> None:
    """A ledger on PostgreSQL may be opened from anywhere, under any executor."""
    engine = open_engine(postgres_url)
    upgrade(engine, now_us=START_US)
    refuse_if_foreign(engine, executor="CeleryExecutor")
    engine.dispose()


# --- what an older ledger brings along


def test_canvases_of_an_older_ledger_that_have_people_count_as_launched(ledger_url: str) -> None:
    """A ledger of the first revision keeps its people; a canvas without people has to be launched."""
    engine = open_engine(ledger_url)
    config = migrate._config()
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for canvas_id in ("vip", "empty"):
            connection.execute(
                text(
                    "INSERT INTO canvas (id, name, owner, connection_id, retry_for_us, fingerprint, declared,"
                    " launched_us) VALUES (:id, 'Canvas', 'team', 'criteo_default', 1, 'print', true, 5)"
                ),
                {"id": canvas_id},
            )
        connection.execute(
            text("INSERT INTO chunk (canvas_id, sealed_us, people, user_keys) VALUES ('vip', 6, 1, '[\"user-1\"]')")
        )
    assert upgrade(engine, now_us=START_US) == current(engine)
    with engine.connect() as connection:
        launched = dict(connection.execute(text("SELECT id, launched_us FROM canvas")).all())
        assert connection.execute(text("SELECT count(*) FROM chunk")).scalar() == 1
    assert launched == {"vip": 5, "empty": None}
    assert Ledger(engine).launches.unlaunched() == {"empty"}
    engine.dispose()
