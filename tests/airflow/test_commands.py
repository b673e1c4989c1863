"""`airflow criteo ...` as a shell sees it: sentences, tables and exit codes, against a real ledger and the sandbox."""

from __future__ import annotations

import io
import json
import re
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from airflow.models import connection as metadata
from airflow.sdk.configuration import conf
from airflow.utils.session import create_session
from cryptography.fernet import Fernet
from sqlalchemy import select, update

from criteo_provider.cli.command import show
from criteo_provider.core.model import Operation, Role, StepPlan
from criteo_provider.core.outcome import outcome_of
from criteo_provider.hooks.surroundings import open_house
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.store.claim import ClaimTerms
from criteo_provider.store.engine import writing
from criteo_provider.store.schema import part, step
from criteo_provider.store.seal import seal
from tests.airflow.command_line import (
    FEED,
    Airflow,
    airflow,
    enter_people,
    forget_keys,
    include,
    metadata_database,
    sandbox,
)
from tests.world import crowd

__all__ = ["airflow", "include", "metadata_database", "sandbox"]


def test_sees_connections_made_in_the_ui(airflow: Airflow) -> None:
    """`accounts check` finds a connection that is only in Airflow's database, and names what it lets us into."""
    code, said = airflow("accounts", "check")
    assert code == 0, said
    assert "Example Shop" in said


def test_a_wrong_secret_is_one_sentence(airflow: Airflow) -> None:
    """A wrong secret is exit code 1 and a sentence that says what to do, and the secret is not in it."""
    with create_session() as session:
        session.query(metadata.Connection).filter_by(conn_id="criteo_default").one().set_password("not-it-4711")
    code, said = airflow("accounts", "check")
    assert code == 1
    assert len(said.strip().splitlines()) == 1
    assert "not-it-4711" not in said


def test_a_missing_connection_names_itself(airflow: Airflow) -> None:
    """A connection that does not exist is named, with the three ways to make one."""
    code, said = airflow("accounts", "check", "--conn-id", "criteo_other")
    assert code == 1
    assert "there is no Airflow connection 'criteo_other'" in said
    assert "AIRFLOW_CONN_CRITEO_OTHER" in said


def test_accounts_list(airflow: Airflow) -> None:
    """`accounts list` prints the consented ad accounts for scripts."""
    code, said = airflow("accounts", "list", "--output", "json")
    assert code == 0, said
    assert {row["ad_account"]: row["name"] for row in json.loads(said)} == {
        "1001": "Example Shop",
        "1002": "Example Shop DE",
    }


def test_ledger_commands(airflow: Airflow) -> None:
    """`db upgrade` makes the ledger, `db check` proves it, and doing either again changes nothing."""
    for _ in range(2):
        code, said = airflow("db", "upgrade")
        assert (code, said.startswith("The ledger is at revision")) == (0, True), said
    assert airflow("db", "check") == (0, "All laws hold: the numbers add up.\n")


def test_status(airflow: Airflow) -> None:
    """`status` has a row for each declared step with all seven metrics."""
    airflow("preflight")
    code, said = airflow("status", "--output", "json")
    assert code == 0, said
    (row,) = json.loads(said)
    assert (row["canvas"], row["step"], row["audience"]) == ("example", "add", "Everybody")
    counts = ("entered", "proceeded", "synced", "not_synced", "pending", "errored", "exited")
    assert [row[name] for name in counts] == ["0"] * 7


def test_retry_brings_errored_users_back_and_says_by_whom(airflow: Airflow, tmp_path: Path) -> None:
    """A reason is asked for, unknown names are told apart, and who is Errored is Pending again."""
    airflow("db", "upgrade")
    with closing(open_house()) as house:
        house.declare()
        hold = house.ledger.hold_cursor("example", "me", now_us=1, lease_s=30)
        assert hold is not None
        with writing(house.ledger.engine) as connection:
            (step_id, version_id) = connection.execute(select(step.c.id, step.c.version_id)).one()
            plan = StepPlan(step_id, version_id, 1, Operation.ADD, ("email",), 0, is_last=True)
            seal(connection, "example", crowd(range(3)), [plan], now_us=1)
            connection.execute(update(part).values(deadline_us=2, attempts=1))
    assert airflow("retry", "example", "add", "--reason", "Criteo was down") == (
        0,
        "3 Errored users are Pending again.\n",
    )
    assert airflow("retry", "example", "--reason", "once more") == (0, "Nobody there is Errored.\n")
    assert airflow("retry", "--reason", "x") == (1, "Name a canvas (and a step), or say --all.\n")
    code, said = airflow("retry", "nowhere", "--reason", "x")
    assert (code, said) == (1, "There is no such canvas or step. Known are: example add.\n")
    with closing(open_house()) as house:
        assert [(one.why, one.people) for one in house.ledger.requeues.told()] == [
            ("once more", 0),
            ("Criteo was down", 3),
        ]
        assert all(one.who for one in house.ledger.requeues.told())


def test_drop_takes_only_what_no_file_declares(airflow: Airflow, include: Path) -> None:
    """A declared step is not dropped, and the sentence says so; when its file is gone it is."""
    airflow("preflight")
    code, said = airflow("drop", "example", "add")
    assert (code, said) == (1, "No such step is held: a declared step is not dropped. Held now: none.\n")
    (include / "canvases" / "example.yaml").unlink()
    code, said = airflow("drop", "example", "add")
    assert code == 0, said
    assert said.startswith("Step add of canvas example is dropped")


def test_opt_outs_are_counted_by_feed(airflow: Airflow, include: Path) -> None:
    """`opt-outs` has a row for each feed; a file that cannot be read is exit code 1 and its sentence."""
    (include / "opt_outs").mkdir()
    file = include / "opt_outs" / "do_not_sell.yaml"
    file.write_text(FEED.replace("CANVASES", "all"))
    code, said = airflow("opt-outs", "--output", "json")
    assert code == 0, said
    assert json.loads(said) == [{"feed": "opt_outs/do_not_sell", "opted_out": "0", "taken_back": "0"}]
    file.write_text(FEED.replace("CANVASES", "[]"))
    code, said = airflow("opt-outs", "--output", "json")
    assert code == 1
    assert "include/opt_outs/do_not_sell.yaml: canvases is empty. Write it like `canvases: all`." in said


def test_the_fernet_key_is_rotated(airflow: Airflow, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """`db rotate-key` says how many tokens were under the old key; with the old key gone too soon it says whose."""
    sandbox.application(redirect_uris=["https://airflow.example.com/callback"])
    form = {
        "grant_type": "authorization_code", "client_id": sandbox.client_id, "client_secret": sandbox.client_secret,
        "redirect_uri": "https://airflow.example.com/callback",
        "code": sandbox.new_code("https://airflow.example.com/callback", ["1001"]),
    }  # fmt: skip
    brought = httpx.post(f"{sandbox.url}/oauth2/token", data=form).json()["refresh_token"]
    with create_session() as session:
        criteo = session.query(metadata.Connection).filter_by(conn_id="criteo_default").one()
        extra = {"grant_type": "authorization_code", "refresh_token": brought, "requests_per_minute": 60_000}
        criteo.set_extra(json.dumps(extra))
    code, said = airflow("accounts", "check")
    assert code == 0, said
    old, new = conf.get("core", "fernet_key"), Fernet.generate_key().decode()
    for keys, answer in ((f"{new},{old}", (0, "1 token encrypted")), (f"{new},{old}", (0, "0 tokens encrypted"))):
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", keys)
        forget_keys()
        code, said = airflow("db", "rotate-key")
        assert (code, said.partition(" anew")[0]) == answer
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", Fernet.generate_key().decode())
    forget_keys()
    code, said = airflow("db", "rotate-key")
    assert code == 1
    assert "The consent of criteo_default is under a key that is not among them" in said
    assert brought not in said


def test_audiences(airflow: Airflow, sandbox: Sandbox) -> None:
    """A list can be made by hand, once; it is listed with who uses it, and its size is never a bare 0."""
    code, said = airflow("audiences", "list", "--output", "json")
    (row,) = json.loads(said)
    assert (code, row["audience"], row["criteo_id"], row["used_by"]) == (0, "Everybody", "", "example / add (add)")
    assert row["state"] == "not at Criteo yet: nobody has needed it"
    for what in ("is created", "was there already"):
        code, said = airflow("audiences", "create", "Everybody", "--ad-account", "1001")
        assert code == 0, said
        assert said.startswith(f"Audience “Everybody” {what} in ad account 1001: Criteo id ")
    code, said = airflow("audiences", "list", "--output", "json")
    (row,) = json.loads(said)
    assert (row["origin"], row["state"], row["criteo_id"] != "") == ("created here", "ok", True)
    code, said = airflow("audiences", "sizes", "--output", "json")
    (size,) = json.loads(said)
    assert code == 0
    assert size["identifiers"] == size["matches"] == size["match_rate"] == "not counted yet, or hidden"
    assert "hides sizes under about 1,000" in size["note"]
    assert airflow("audiences", "sizes", "Nobody")[0] == 1
    sandbox.delete_segment(row["criteo_id"])
    code, said = airflow("audiences", "sizes", "--output", "json")
    assert code == 1
    assert "not at Criteo any more" in json.loads(said)[0]["note"]


def test_an_audience_is_not_made_where_nobody_may(airflow: Airflow) -> None:
    """An ad account that did not consent is one sentence and exit code 1."""
    code, said = airflow("audiences", "create", "New", "--ad-account", "4711")
    assert code == 1
    assert len(said.strip().splitlines()) == 1


def test_status_says_how_steps_fare(airflow: Airflow) -> None:
    """A canvas that was never launched is told, and one that does not exist is exit code 1."""
    code, said = airflow("status", "example", "--output", "json")
    assert (code, json.loads(said)[0]["state"]) == (0, "not launched")
    assert airflow("status", "nobody")[0] == 1


def test_status_says_why_people_are_sent_less_often(airflow: Airflow) -> None:
    """Where live streams share too few requests the sentence stands beside the table, which scripts go on reading."""
    with create_session() as session:
        connection = session.query(metadata.Connection).filter_by(conn_id="criteo_default").one()
        connection.set_extra(json.dumps({"requests_per_minute": 10}))
    airflow("db", "upgrade")
    enter_people([7, 8])
    why = "Connection criteo_default: flush every 6 s: 1 stream shares 10 requests a minute.\n"
    code, said = airflow("status", "--output", "json")
    assert (code, said.endswith(f"]\n{why}")) == (0, True), said
    assert json.loads(said.removesuffix(why))[0]["pending"] == "2"


def test_status_says_that_nothing_gets_through(airflow: Airflow) -> None:
    """A retired API version stands beside the table, with since when and what to do."""
    airflow("db", "upgrade")
    enter_people([7])
    with closing(open_house()) as house:
        ledger, now_us = house.ledger, house.now_us
        (audience_id,) = {plan.audience_id for plan in house._plans["example"]}
        ledger.resolved(audience_id, "7001", created=False, now_us=now_us())
        (ad_account,) = ledger.connections()["criteo_default"]
        terms = ClaimTerms("criteo_default", frozenset({ad_account}), Role.FRESH, "me", 120)
        claimed = ledger.claim(terms, now_us=now_us())
        assert claimed is not None
        ledger.settle(claimed, outcome_of(410, {}, b"", now_s=0), now_us=now_us(), jitter=0.5)
    code, said = airflow("status")
    assert code == 0
    told = (
        r"Connection criteo_default, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: The last request did not get through .*"
    )
    assert re.search(told + "Criteo has retired this API version.", said), said


@pytest.mark.parametrize("output", ["table", "plain", "json", "yaml"])
def test_words_in_brackets_are_printed(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What stands in brackets, such as the section of a setting or the name of an audience, is in every output."""
    show([{"mend": "Set [core] fernet_key", "audience": "[/VIP] [bold]"}], output)
    said = capsys.readouterr().out
    assert all(words in said for words in ("[core] fernet_key", "[/VIP] [bold]"))


def test_a_database_that_cannot_be_used(airflow: Airflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is no database, or whose folder cannot be made, is one sentence and exit code 1 for a command."""
    (tmp_path / "ledger.db").write_text("This is no database, it is a letter." * 100)
    code, said = airflow("status")
    assert (code, len(said.strip().splitlines())) == (1, 1)
    assert said.startswith("A database cannot be used (DatabaseError). Check the connection criteo_ledger, or ")
    monkeypatch.setenv("AIRFLOW__CRITEO__LEDGER_PATH", str(tmp_path / "ledger.db" / "inside" / "ledger.db"))
    code, said = airflow("status")
    assert (code, len(said.strip().splitlines())) == (1, 1)
    assert "set [criteo] ledger_path to another place" in said


def test_a_key_that_is_no_key(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A [core] fernet_key that is no Fernet key is a sentence with the mend, which does not repeat it."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "my-secret-word")
    forget_keys()
    code, said = airflow("status")
    assert code == 1
    assert "[core] fernet_key is no Fernet key." in said
    assert "my-secret-word" not in said


SETTINGS = {
    "first_probe_s": ["soon", "0", "-1", "241", "nan"],
    "idle_check": ["soon", "0", "-900", "59", "86401", "nan"],
    "guidelines_acknowledged": ["yes", "true", "0"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SETTINGS.items() for value in values])
def test_a_setting_that_makes_no_sense(airflow: Airflow, key: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a number, zero, negative, too large, or another word: section and key are named, and what belongs there."""
    monkeypatch.setenv(f"AIRFLOW__CRITEO__{key.upper()}", value)
    code, said = airflow("preflight")
    assert (code, len(said.strip().splitlines())) == (1, 1)
    assert said.startswith(f"[criteo] {key}: has to be ")


def test_the_story_of_a_user_is_told_and_not_kept(
    airflow: Airflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`person` takes a key from standard input or as an argument, tells the entry, and repeats the key nowhere."""
    airflow("db", "upgrade")
    enter_people([7, 8])
    monkeypatch.setattr("sys.stdin", io.StringIO("PERSON7@example.com\n"))
    code, said = airflow("person", "--output", "json")
    assert code == 0, said
    (row,) = json.loads(said)
    assert (row["canvas"], row["step"], row["status"], row["identifier"]) == (
        "example",
        "add",
        "Pending",
        "email_sha256",
    )
    assert json.loads(airflow("person", "user-7", "--output", "json")[1]) == [row]
    assert airflow("person", "nobody") == (1, "This ledger knows nobody of that name.\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert airflow("person")[0] == 1
    assert "person7" not in (said + caplog.text).lower()
    assert "user-7" not in said + caplog.text


def test_old_records_become_counts(airflow: Airflow) -> None:
    """`db prune` asks for an age of 30 days or more, and leaves the laws proven."""
    airflow("db", "upgrade")
    code, said = airflow("db", "prune", "--older-than", "29d")
    assert (code, "at least 30d" in said) == (1, True)
    assert airflow("db", "prune", "--older-than", "soon")[0] == 1
    enter_people([7, 8])
    assert airflow("db", "prune", "--older-than", "30d") == (0, "Nobody finished is that old.\n")
    assert airflow("db", "check") == (0, "All laws hold: the numbers add up.\n")
