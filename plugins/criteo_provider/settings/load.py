"""Load: all canvases of an include folder, and everything that is wrong with the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from criteo_provider.settings import rules
from criteo_provider.settings.agreement import disagreements
from criteo_provider.settings.canvas import Canvas
from criteo_provider.settings.documents import read_document, shown_path, yaml_files
from criteo_provider.settings.problems import Finding, Problem, in_file
from criteo_provider.settings.strict_yaml import read_yaml

FIRST_KEYS = "name, owner, entry, steps"


@dataclass(frozen=True, slots=True)
class Canvases:
    """What an include folder holds: canvases that may run, by id, and what keeps the others from running."""

    canvases: tuple[Canvas, ...] = ()
    problems: tuple[Problem, ...] = ()


def load_canvases(include_folder: Path) -> Canvases:
    """Read every YAML file in ``canvases/`` of the include folder; one bad file never stops the others."""
    folder = include_folder / "canvases"
    if not folder.is_dir():
        what, mend = "is not there, so no canvas can run.", "Create it, or correct the setting."
        return Canvases(problems=(Problem(shown_path(folder, include_folder), "the folder", what, mend),))
    canvases: dict[str, Canvas] = {}
    files: dict[Path, Canvas] = {}
    problems: list[Problem] = []
    for file in yaml_files(folder):
        canvas, found = read_document(file, include_folder, Canvas, rules.check, noun="canvas", first_keys=FIRST_KEYS)
        if canvas and canvas.id in canvases:
            finding = Finding((), "has the name of another canvas.", "Rename one of the two.")
            found = in_file(shown_path(file, include_folder), None, [finding])
        elif canvas:
            canvases[canvas.id] = files[shown_path(file, include_folder)] = canvas
        problems += found
    for canvas, problem in disagreements(files):
        canvases.pop(canvas.id, None)
        problems.append(problem)
    return Canvases(tuple(canvases.values()), tuple(problems))


def connection_of(file: Path) -> str:
    """Tell which Criteo connection a file names that cannot be loaded as a canvas; the usual one if it names none."""
    usual = str(Canvas.model_fields["connection"].default)
    try:
        data, _ = read_yaml(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return usual
    named = data.get("connection") if isinstance(data, dict) else None
    return named if isinstance(named, str) and named else usual
