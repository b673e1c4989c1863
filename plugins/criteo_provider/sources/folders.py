"""Folders of files, on a disk or in an object store: what is there now, and its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast


@dataclass(frozen=True, slots=True)
class FileRef:
    """One version of one file: ``unit`` names it for ever, ``path`` opens it."""

    unit: str
    name: str
    path: str
    modified_s: float


class Folder:
    """All files below ``root`` whose path matches ``pattern`` (from its end: ``*.csv`` at any depth).

    ``root`` is a ``pathlib.Path``, or anything with ``fs`` (fsspec) and ``path``, such as Airflow's
    ObjectStoragePath. A file may stand in place of the folder. Names that begin with a dot or an underscore
    are left out, as every writer of data lakes expects.
    """

    def __init__(self, root: Any, pattern: str = "*") -> None:
        self._root = root
        self._pattern = pattern

    def files(self) -> list[FileRef]:
        """List what is there now, oldest first; never from a cache."""
        found = self._from_disk() if isinstance(self._root, Path) else self._from_store()
        wanted = (file for file in found if _is_wanted(PurePosixPath(file.name), self._pattern))
        return sorted(wanted, key=lambda file: (file.modified_s, file.name))

    def open(self, file: FileRef) -> BinaryIO:
        """Open the bytes of a file."""
        if isinstance(self._root, Path):
            return Path(file.path).open("rb")
        return cast("BinaryIO", self._root.fs.open(file.path, mode="rb"))

    def is_unchanged(self, file: FileRef) -> bool:
        """Tell whether the file is still the version that was listed."""
        try:
            if isinstance(self._root, Path):
                return _on_disk(Path(file.path), file.name).unit == file.unit
            self._root.fs.invalidate_cache()
            return _in_store(file.path, file.name, self._root.fs.info(file.path)).unit == file.unit
        except FileNotFoundError:
            return False

    def _from_disk(self) -> Iterator[FileRef]:
        root: Path = self._root
        if not root.exists():  # else a disk that is not mounted would read as a folder that stays empty
            raise FileNotFoundError(root)
        for path in [root] if root.is_file() else root.rglob("*"):
            with suppress(FileNotFoundError):  # gone since it was listed
                if path.is_file():
                    yield _on_disk(path, path.name if path == root else path.relative_to(root).as_posix())

    def _from_store(self) -> Iterator[FileRef]:
        store, root = self._root.fs, str(self._root.path).rstrip("/")
        store.invalidate_cache()
        # One listing instead of a question for each file.
        details: Mapping[str, Mapping[str, Any]] = store.find(root, detail=True)
        base = PurePosixPath(store._strip_protocol(root))
        for path, info in details.items():
            at = PurePosixPath(path)
            yield _in_store(path, at.relative_to(base).as_posix() if at != base else at.name, info)


def _on_disk(path: Path, name: str) -> FileRef:
    status = path.stat()
    return FileRef(f"{name}#{status.st_size}-{status.st_mtime_ns}", name, str(path), status.st_mtime)


def _in_store(path: str, name: str, info: Mapping[str, Any]) -> FileRef:
    modified_s = _modified_s(info)
    version = str(info.get("ETag") or info.get("etag") or f"{info.get('size')}-{modified_s}").strip('"')
    return FileRef(f"{name}#{version}", name, path, modified_s)


def _is_wanted(name: PurePosixPath, pattern: str) -> bool:
    return name.match(pattern) and not any(part.startswith((".", "_")) for part in name.parts)


def _modified_s(info: Mapping[str, Any]) -> float:
    # S3, Azure and local disks, Google Cloud Storage
    for key in ("LastModified", "last_modified", "mtime", "updated"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
    return 0.0
