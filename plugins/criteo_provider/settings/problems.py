"""Problems: what is wrong in a canvas file, where, and how to mend it; never a value from the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Place = tuple[str | int, ...]  # the keys and list indexes that lead to a spot in a file


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend in one file; ``str`` of it is the sentence for people.

    ``file`` counts from beside the include folder; ``key`` is dotted with list indexes, and empty for the
    file as a whole; ``what`` and ``mend`` are sentences, the first one continuing the key.
    """

    file: Path
    key: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key or 'the file'} {self.what} {self.mend}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem before it is known in which file: the place in the data, what is wrong, how to mend it."""

    place: Place
    what: str
    mend: str


def in_file(file: Path, data: object, findings: Iterable[Finding]) -> tuple[Problem, ...]:
    """Name findings by their keys in ``file``, in the order of the file, each once."""
    ordered = sorted(findings, key=lambda finding: _order(finding.place, data))
    return tuple(dict.fromkeys(Problem(file, _dotted(found.place, data), found.what, found.mend) for found in ordered))


def _dotted(place: Place, data: object) -> str:
    """Write a place as ``steps[1].audience_sync.audience (step add_vip)``."""
    path = ""
    for part in place:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    match place:
        case ("steps", int(), *_):
            step = _inside(_inside(data, "steps"), place[1])
            name = step.get("id") if isinstance(step, Mapping) else None
            return f"{path} (step {name})" if isinstance(name, str) and name else path
    return path


def _order(place: Place, data: object) -> list[int]:
    order = []
    for part in place:
        keys = list(data) if isinstance(data, Mapping) else []
        order.append(part if isinstance(part, int) else keys.index(part) if part in keys else len(keys))
        data = _inside(data, part)
    return order


def _inside(data: object, part: str | int) -> object:
    if isinstance(data, Mapping):
        return data.get(part)
    return data[part] if isinstance(data, list) and isinstance(part, int) and part < len(data) else None
