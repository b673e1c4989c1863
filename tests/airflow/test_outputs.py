"""What scripts rely on: docs/commands.md has every command, and those that list something print it in each way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from threading import Event

import pytest
import yaml
from airflow.cli.cli_config import ActionCommand, CLICommand, GroupCommand

from criteo_provider.cli.definition import get_cli_commands
from criteo_provider.hooks.surroundings import open_house
from tests.airflow.command_line import FEED, Airflow, airflow, enter_people, include, metadata_database
from tests.airflow.test_findings import Deployment, deployment, sandbox
from tests.conftest import PROJECT

__all__ = ["airflow", "deployment", "include", "metadata_database", "sandbox"]

READ: dict[str, Callable[[str], list[dict[str, str]]]] = {"json": json.loads, "yaml": yaml.safe_load}


def actions(commands: tuple[CLICommand, ...] | list[CLICommand], *before: str) -> Iterator[tuple[str, ActionCommand]]:
    """Every command of the group, by its words."""
    for one in commands:
        if isinstance(one, GroupCommand):
            yield from actions(tuple(one.subcommands), *before, one.name)
        else:
            yield " ".join([*before, one.name]), one


COMMANDS = {words.removeprefix("criteo "): one for words, one in actions(get_cli_commands())}
LISTING = [words for words, one in COMMANDS.items() if any("--output" in arg.flags for arg in one.args)]


def usage(words: str, action: ActionCommand) -> str:
    """How a command is written, as the page has it."""
    told = [words]
    for arg in action.args:
        flag, more = arg.flags[-1], arg.kwargs
        name = flag.lstrip("-").upper().replace("-", "_")
        if flag in ("--output", "--verbose"):
            continue
        if flag.startswith("--"):
            written = flag if more.get("action") == "store_true" else f"{flag} {name}"
            told.append(written if more.get("required") else f"[{written}]")
        else:
            told.append({"?": f"[{name}]", "+": f"{name[:-1]} ..."}.get(str(more.get("nargs")), name))
    return " ".join(told)


def test_the_page_has_every_command_and_no_other() -> None:
    """How it is written, whether it has --output, what it does as its help says, and what exit code 1 means."""
    page = (PROJECT / "docs" / "commands.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (yes)? ?\| (.*) \| (.+) \|$", page, re.MULTILINE)
    assert [row[:3] for row in rows] == [
        (usage(words, one), "yes" if words in LISTING else "", str(one.help).partition("; exit code 1")[0])
        for words, one in COMMANDS.items()
    ]
    assert all(row[3] for row in rows)


@pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")
def test_a_list_is_a_table_or_read_by_a_script(deployment: Deployment, airflow: Airflow) -> None:
    """Every command that lists has the same rows as JSON, YAML, table and plain text, and nothing else beside them."""
    (deployment.include / "opt_outs").mkdir()
    (deployment.include / "opt_outs" / "register.yaml").write_text(FEED.replace("CANVASES", "all"))
    airflow("db", "upgrade")
    enter_people([7, 8])
    with closing(open_house()) as house:
        house.drain("fresh", stop=Event(), max_s=60)
    more = {"person": ["user-7"]}
    for words in LISTING:
        command = [*words.split(), *more.get(words, [])]
        read = {}
        for output in READ:
            code, said = airflow(*command, "--output", output)
            assert code == 0, said
            read[output] = READ[output](said)
        assert read["json"] == read["yaml"]
        assert read["json"], words
        for output in ("table", "plain"):
            code, said = airflow(*command, "--output", output)
            assert (code, all(name[:4] in said for name in read["json"][0])) == (0, True), said


def test_all_rows_have_their_cells_in_one_order(deployment: Deployment, airflow: Airflow) -> None:
    """A table goes by places: what is wrong and what is fine stand in the same columns."""
    (deployment.include / "segments" / "all.sql").write_text("SELECT * FROM nowhere")
    _, said = airflow("preflight", "--output", "json")
    rows = json.loads(said)
    assert {row["severity"] for row in rows} == {"failure", "ok"}
    assert len({tuple(row) for row in rows}) == 1


def test_an_empty_list_is_a_list(deployment: Deployment, airflow: Airflow) -> None:
    """A script that reads what is not there yet gets [], and a person is told that there is nothing."""
    (deployment.include / "canvases" / "example.yaml").unlink()
    assert airflow("audiences", "list", "--output", "json") == (0, "[]\n")
    assert airflow("audiences", "list") == (0, "No data found\n")


def test_a_mistyped_command_is_exit_code_two(airflow: Airflow) -> None:
    """What argparse refuses is told apart from what is not well."""
    with pytest.raises(SystemExit) as ending:
        airflow("accounts", "chose", "1001")
    assert ending.value.code == 2
