"""docs/sandbox.md says what the code does: its catalogue is the catalogue, and its example runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from criteo_provider.sandbox.catalogue import CATALOGUE

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "docs" / "sandbox.md").read_text()


def test_the_table_is_the_catalogue() -> None:
    """Every fault is in the table with its source, kind and sentence, in the order of the catalogue, and no other."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (F\d+) \| (\w+) \| (.*) \|$", TEXT, re.MULTILINE)
    assert rows == [(each.name, each.source, each.kind, each.says) for each in CATALOGUE.values()]


def test_the_fifteen_checks_are_tests() -> None:
    """Each check of the page has a test that bears its number."""
    listed = re.findall(r"^(\d+)\. ", TEXT, re.MULTILINE)
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert listed == [str(number) for number in range(1, 16)]
    assert sorted(set(re.findall(r"def test_check_(\d\d)_", tests))) == [f"{number:02d}" for number in range(1, 16)]


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    """The example for somebody's own tests, copied as it is, passes in an Airflow home that was just made."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "test_example.py").write_text(example)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "PYTEST_"))}
    env = {**inherited, "AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    env["AIRFLOW__CORE__FERNET_KEY"] = Fernet.generate_key().decode()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
