"""The house keeps its shape: floors, names, sizes, and what Airflow's scanner may see."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from airflow._shared.module_loading import find_path_from_directory

PROJECT = Path(__file__).parent.parent.parent
PLUGINS = PROJECT / "plugins"
PACKAGE = PLUGINS / "criteo_provider"

MOST_LINES = 400
LONGER_FOR_A_REASON: dict[str, str] = {}  # "criteo_provider/room.py": "why it is one room all the same"

# Alembic runs the first two by itself, inside a migration, and Python the last; nobody imports them.
RUN_NOT_IMPORTED = {"env.py", "versions", "__main__.py"}

IMPORT_EVERYTHING_WITHOUT_AIRFLOW = """
import importlib, sys

class NoAirflow:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "airflow":
            raise ModuleNotFoundError(f"{name} was imported below the hooks")

sys.meta_path.insert(0, NoAirflow())
for module in sys.argv[1:]:
    importlib.import_module(module)
print(len(sys.argv) - 1)
"""


SHOW_THE_PLUGIN = """
import json
from airflow.plugins_manager import _get_plugins
plugins, errors = _get_plugins()
print(json.dumps([[p.name for p in plugins if "criteo" in p.name], errors]))
"""


def rooms(*floors: str) -> list[Path]:
    """List the package's Python files, of the named floors or of all."""
    files = [PACKAGE / f"{floor}.py" for floor in floors if (PACKAGE / f"{floor}.py").exists()]
    for floor in floors or (".",):
        files += sorted((PACKAGE / floor).rglob("*.py"))
    return files


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    surroundings = os.environ | {"PYTHONPATH": str(folder / "plugins"), "COLUMNS": "200"}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)


@pytest.fixture
def copied_project(tmp_path: Path) -> Path:
    """A copy of the contracts and of the package, to plant something wrong in."""
    shutil.copytree(PLUGINS, tmp_path / "plugins", ignore=shutil.ignore_patterns("__pycache__", "static"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_import_contracts_are_kept(copied_project: Path) -> None:
    """Every import points down, and the contracts are about this package."""
    done = lint_imports(copied_project)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("floor", "planted", "contract"),
    [
        ("core", "import criteo_provider.store", "floors"),
        ("flow", "import criteo_provider.criteo_api", "floors"),
        ("sandbox", "import criteo_provider.core", "floors"),
        ("flow", "from airflow.sdk import BaseHook", "below the hooks nobody knows Airflow"),
        ("store", "import airflow", "below the hooks nobody knows Airflow"),
        ("core", "import httpx", "core and flow are pure"),
        ("flow", "import sqlalchemy", "core and flow are pure"),
        ("hooks", "import criteo_provider.sandbox", "only the command line starts the sandbox"),
    ],
)
def test_a_planted_import_breaks_its_contract(copied_project: Path, floor: str, planted: str, contract: str) -> None:
    """An import that points the wrong way is refused by the contract that names it."""
    (copied_project / "plugins/criteo_provider" / floor / "planted.py").write_text(planted + "\n")
    done = lint_imports(copied_project)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())


def test_a_room_without_a_floor_is_refused(copied_project: Path) -> None:
    """A new top-level room has to be given a floor in the contracts."""
    (copied_project / "plugins/criteo_provider/attic.py").write_text("")
    done = lint_imports(copied_project)
    assert done.returncode == 1
    assert "attic" in done.stdout


def test_the_core_imports_the_standard_library_only() -> None:
    """Core knows nothing but itself and the standard library."""
    foreign = set()
    for room in rooms("core"):
        for node in ast.walk(ast.parse(room.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            foreign |= {
                f"{room.name}: {name}"
                for name in names
                if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith("criteo_provider.core")
            }
    assert rooms("core")
    assert not foreign


def test_everything_from_wiring_down_imports_without_airflow() -> None:
    """An environment that has no Airflow can import every room from wiring down."""
    floors = ("wiring", "sources", "flow", "criteo_api", "store", "settings", "core", "sandbox")
    modules = [
        ".".join(room.relative_to(PLUGINS).with_suffix("").parts).removesuffix(".__init__")
        for room in rooms(*floors)
        if not RUN_NOT_IMPORTED & set(room.parts)
    ]
    assert "criteo_provider.wiring" in modules
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING_WITHOUT_AIRFLOW, *modules],
        env=os.environ | {"PYTHONPATH": str(PLUGINS)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)


def test_no_room_is_named_like_a_standard_module() -> None:
    """No file of ours can take the place of a standard module, wherever it is imported from."""
    taken = {str(room.relative_to(PLUGINS)) for room in rooms() if room.stem in sys.stdlib_module_names}
    assert not taken


def test_rooms_are_small() -> None:
    """A room has at most 400 lines, unless it is listed with its reason."""
    long = {
        str(room.relative_to(PROJECT)): lines
        for room in (*rooms(), *(PROJECT / "dags").glob("*.py"), *(PROJECT / "scripts").glob("*.py"))
        if (lines := len(room.read_text().splitlines())) > MOST_LINES
        and str(room.relative_to(PROJECT)).removeprefix("plugins/") not in LONGER_FOR_A_REASON
    }
    assert not long


@pytest.mark.parametrize("syntax", ["glob", "regexp"])
def test_airflows_plugin_scanner_sees_one_file(syntax: str) -> None:
    """Airflow opens criteo_plugin.py in the plugins folder, and none of our rooms."""
    seen = [Path(file) for file in find_path_from_directory(str(PLUGINS), ".airflowignore", syntax)]
    assert [file.name for file in seen if file.suffix == ".py"] == ["criteo_plugin.py"]


@pytest.mark.parametrize("lazily", ["True", "False"])
def test_the_plugin_is_loaded_exactly_once(lazily: str) -> None:
    """Whether Airflow discovers providers lazily or at once, it loads our plugin one time."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW_THE_PLUGIN],
        env=os.environ | {"AIRFLOW__CORE__LAZY_DISCOVER_PROVIDERS": lazily}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [["criteo_audience_sync"], {}]


def test_nothing_fetched_by_address_is_pinned() -> None:
    """The requirement files name packages, versions and hashes, and no place to get them from."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (PROJECT / name).read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text
        assert "--index" not in text
