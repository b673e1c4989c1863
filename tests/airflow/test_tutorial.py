"""docs/tutorial.md without anybody's consent: its commands, and its settings for a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.cli.cli_parser import get_parser
from airflow.models import connection as metadata
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.utils.session import create_session

from criteo_provider.operators.upload import CriteoAudienceUploadOperator
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.sandbox.state import CLIENT_ID, CLIENT_SECRET
from tests.airflow.command_line import Airflow, airflow, metadata_database
from tests.airflow.test_findings import sandbox
from tests.airflow.test_upload import FakeInstance
from tests.conftest import PROJECT

__all__ = ["airflow", "metadata_database", "sandbox"]

PAGE = (PROJECT / "docs" / "tutorial.md").read_text()
CANVAS = "high_value_targeting"


def section(heading: str) -> str:
    (found,) = [one for one in re.split(r"^## ", PAGE, flags=re.MULTILINE) if one.startswith(f"{heading}\n")]
    return found


def commands(heading: str) -> list[str]:
    """What a section has a reader type."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", section(heading), re.MULTILINE | re.DOTALL)
    return [line for kind, block in blocks if not kind for line in block.splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the tutorial happens, made as its first section says."""
    place = tmp_path / "tutorial"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for line in commands("A place to try it"):
        subprocess.run(
            ["/bin/bash", "-c", line], cwd=PROJECT, env={"PATH": path, "TUTORIAL": str(place)}, check=True, timeout=60
        )
    return place


@pytest.fixture
def include(place: Path) -> Path:
    return place / "include"


# Commands hide this from their users, too.
@pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")
@pytest.mark.parametrize("way", ["connections add", "environment"])
def test_without_anybodys_consent(
    airflow: Airflow,
    sandbox: Sandbox,
    place: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A connection of client credentials, by command or by environment variable, is all it takes until the launch."""
    with create_session() as session:
        session.query(metadata.Connection).delete()
    values = {"TUTORIAL": str(place), "CRITEO": sandbox.url, "CLIENT_ID": CLIENT_ID, "CLIENT_SECRET": CLIENT_SECRET}
    lines = commands("An Airflow, and a Criteo")[:1]
    lines += commands("On a command line, without anybody's consent")

    def type_(*expected: str) -> str:
        words = [re.sub(r"\$(\w+)", lambda name: values[name[1]], word) for word in shlex.split(lines.pop(0))]
        assert tuple(words[1 : 1 + len(expected)]) == expected
        if words[1] == "criteo":
            code, said = airflow(*words[2:])
            assert code == 0, said
            return re.sub(r"[\s|]+", " ", said)
        args = get_parser().parse_args(words[1:])
        args.func(args)
        return capsys.readouterr().out

    type_("connections", "add", "example_shop")
    if way == "environment":
        lines.pop(0)
        fields = {"conn_type": "criteo", "host": sandbox.url, "login": CLIENT_ID, "password": CLIENT_SECRET}
        monkeypatch.setenv("AIRFLOW_CONN_CRITEO_DEFAULT", json.dumps(fields))
    else:
        type_("connections", "add", "criteo_default")
    assert "Example Shop (1001)" in type_("criteo", "accounts", "check")
    listed = type_("criteo", "accounts", "list")
    assert "1001" in listed
    assert "1002" in listed
    said = type_("criteo", "preflight", CANVAS)
    assert "ready: nothing to mend" in said
    assert sandbox.state()["segments"] == []
    assert [lines.pop(0) for _ in range(2)] == [
        "airflow dags unpause criteo_audience_sync", "airflow dags unpause criteo_audience_retry",
    ]  # fmt: skip
    operator = CriteoAudienceUploadOperator(task_id="upload", longest_drain_s=60)
    done = operator.execute({"outlet_events": OutletEventAccessors(), "ti": FakeInstance()})  # type: ignore[typeddict-item]
    assert done["entered"] > 0
    assert "High-value customers" in type_("criteo", "status", CANVAS)
    assert "created here" in type_("criteo", "audiences", "list")
    assert lines == []
    (row,) = [one for one in json.loads(airflow("status", CANVAS, "--output", "json")[1]) if one["step"] == "add_vip"]
    numbers = [row[name] for name in ("entered", "synced", "not_synced")]
    assert numbers == ["83", "82", "1"]
    assert "of the 83 people of the step `add_vip` 82 are Users Synced" in PAGE
    (audience,) = sandbox.state()["segments"]
    assert (audience["name"], audience["size"] > 0) == ("High-value customers", True)


def test_the_settings_for_a_shell_are_those_of_the_sandbox() -> None:
    """What the page has a reader export is what the sandbox prints, quoted so that a shell leaves it alone."""
    script = next(block for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) if "CLIENT_SECRET=" in block)
    script = script.replace("source .venv/bin/activate\n", "") + '\nprintf "%s\\n" "$CLIENT_ID" "$CLIENT_SECRET"'
    said = subprocess.run(["/bin/bash", "-ec", script], capture_output=True, text=True, check=True, timeout=20).stdout
    assert said.splitlines() == [CLIENT_ID, CLIENT_SECRET]
    assert f"client secret\n   `{CLIENT_SECRET}`" in PAGE
