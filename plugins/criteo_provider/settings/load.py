"""Load: all canvases of an include folder, and everything that is wrong with the others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from criteo_provider.settings import rules, shapes
from criteo_provider.settings.canvas import Canvas, Reading
from criteo_provider.settings.problems import Finding, Problem, in_file
from criteo_provider.settings.strict_yaml import read_yaml

_ID = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True)
class Canvases:
    """What an include folder holds: canvases that may run, by id, and what keeps the others from running."""

    canvases: tuple[Canvas, ...] = ()
    problems: tuple[Problem, ...] = ()


def load_canvases(include_folder: Path) -> Canvases:
    """Read every YAML file in ``canvases/`` of the include folder; one bad file never stops the others."""
    folder = include_folder / "canvases"
    files = sorted(file for file in folder.glob("*.y*ml") if file.suffix in (".yaml", ".yml"))
    if not folder.is_dir():
        what, mend = "is not there, so no canvas can run.", "Create it, or correct the setting."
        return Canvases(problems=(Problem(_shown(folder, include_folder), "the folder", what, mend),))
    canvases: dict[str, Canvas] = {}
    problems: list[Problem] = []
    for file in files:
        canvas, found = _read(file, include_folder)
        if canvas and canvas.id in canvases:
            finding = Finding((), "has the name of another canvas.", "Rename one of the two.")
            found = in_file(_shown(file, include_folder), None, [finding])
        elif canvas:
            canvases[canvas.id] = canvas
        problems += found
    return Canvases(tuple(canvases.values()), tuple(problems))


def _read(file: Path, include_folder: Path) -> tuple[Canvas | None, tuple[Problem, ...]]:
    """Read one file: a canvas, or all of its problems."""
    shown = _shown(file, include_folder)
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        finding = Finding((), "cannot be read as UTF-8 text.", "Save it as UTF-8, readable by Airflow.")
        return None, in_file(shown, None, [finding])
    data, found = read_yaml(text)
    if not _ID.fullmatch(file.stem):
        what = "has a name that cannot be a canvas id: 1 to 64 of a-z, 0-9 and underscore."
        found.append(Finding((), what, "Rename the file; the name stays for ever."))
    if not isinstance(data, dict):
        if not found or data is not None:
            found.append(Finding((), "holds no canvas.", "Begin with keys: name, owner, entry, steps."))
        return None, in_file(shown, None, found)
    canvas = None
    found += rules.check(data)
    try:
        canvas = Canvas.model_validate(data, context=Reading(include_folder, file.stem))
    except ValidationError as error:
        found += shapes.findings(error)
    return (None if found else canvas), in_file(shown, data, found)


def _shown(path: Path, include_folder: Path) -> Path:
    """Return the path as messages show it: from the include folder on."""
    return Path(include_folder.name) / path.relative_to(include_folder)
