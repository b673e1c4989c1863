"""Documents: one YAML file of the include folder, read into its model or told with everything that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from criteo_provider.settings import shapes
from criteo_provider.settings.canvas import Reading
from criteo_provider.settings.problems import Finding, Problem, in_file
from criteo_provider.settings.strict_yaml import read_yaml

ID = re.compile(r"[a-z0-9_]{1,64}")
M = TypeVar("M", bound=BaseModel)


def read_document(
    file: Path,
    include_folder: Path,
    model: type[M],
    check: Callable[[Mapping[str, object]], Iterator[Finding]],
    *,
    noun: str,
    first_keys: str,
) -> tuple[M | None, tuple[Problem, ...]]:
    """Read one file whose name is its id: the model, or all of its problems; ``check`` finds what no key can know."""
    shown = shown_path(file, include_folder)
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        finding = Finding((), "cannot be read as UTF-8 text.", "Save it as UTF-8, readable by Airflow.")
        return None, in_file(shown, None, [finding])
    data, found = read_yaml(text)
    if not ID.fullmatch(file.stem):
        what = f"has a name that cannot be a {noun} id: 1 to 64 of a-z, 0-9 and underscore."
        found.append(Finding((), what, "Rename the file; the name stays for ever."))
    if not isinstance(data, dict):
        if not found or data is not None:
            found.append(Finding((), f"holds no {noun}.", f"Begin with keys: {first_keys}."))
        return None, in_file(shown, None, found)
    read = None
    found += check(data)
    try:
        read = model.model_validate(data, context=Reading(include_folder, file.stem))
    except ValidationError as error:
        found += shapes.findings(error, model)
    return (None if found else read), in_file(shown, data, found)


def yaml_files(folder: Path) -> list[Path]:
    """Return the YAML files of a folder in the order of their names."""
    return sorted(file for file in folder.glob("*.y*ml") if file.suffix in (".yaml", ".yml"))


def shown_path(path: Path, include_folder: Path) -> Path:
    """Return the path as messages show it: from the include folder on."""
    return Path(include_folder.name) / path.relative_to(include_folder)
