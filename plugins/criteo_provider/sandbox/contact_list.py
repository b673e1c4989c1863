"""Contact lists: who is in one, or, for tens of millions of people, only how many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

from criteo_provider.sandbox.identifiers import Reading

Operation = Literal["add", "remove"]


class Members(Protocol):
    """The people of one contact list, as keys per identifier type."""

    added: int
    removed: int

    def amend(self, operation: Operation, identifier_type: str, reading: Reading) -> None:
        """Add or remove the valid identifiers of one request; a repeat changes nothing."""

    def clear(self) -> None:
        """Remove everybody."""

    def has(self, identifier_type: str, key: bytes) -> bool:
        """Tell whether this identifier is in the list."""

    def keys(self, identifier_type: str) -> Iterable[bytes]:
        """Return the keys of one type."""

    def __len__(self) -> int:
        """Return how many identifiers the list holds."""


class RealMembers:
    """True set semantics, about 110 bytes an identifier.

    ``aliases`` leads from the other forms of a known person's address to the first one (see ``forms_of``).
    """

    def __init__(self, aliases: Mapping[bytes, bytes]) -> None:
        self.added = 0
        self.removed = 0
        self._aliases = aliases
        self._keys: dict[str, set[bytes]] = {}

    def amend(self, operation: Operation, identifier_type: str, reading: Reading) -> None:
        """Add or remove the valid identifiers of one request; a repeat changes nothing."""
        keys = self._keys.setdefault(identifier_type, set())
        given = reading.keys()
        if self._aliases and identifier_type == "email":
            given = [self._aliases.get(key, key) for key in given]
        if operation == "add":
            self.added += reading.valid
            keys.update(given)
        else:
            self.removed += reading.valid
            keys.difference_update(given)

    def clear(self) -> None:
        """Remove everybody."""
        self._keys.clear()

    def has(self, identifier_type: str, key: bytes) -> bool:
        """Tell whether this identifier is in the list."""
        if identifier_type == "email":
            key = self._aliases.get(key, key)
        return key in self._keys.get(identifier_type, ())

    def keys(self, identifier_type: str) -> Iterable[bytes]:
        """Return the keys of one type."""
        return self._keys.get(identifier_type, set())

    def __len__(self) -> int:
        """Return how many identifiers the list holds."""
        return sum(map(len, self._keys.values()))


class CountedMembers:
    """Counts only, at no memory: the list is as long as what was added less what was removed."""

    def __init__(self) -> None:
        self.added = 0
        self.removed = 0
        self._length = 0

    def amend(self, operation: Operation, identifier_type: str, reading: Reading) -> None:
        """Count the valid identifiers of one request."""
        if operation == "add":
            self.added += reading.valid
            self._length += reading.valid
        else:
            self.removed += reading.valid
            self._length = max(0, self._length - reading.valid)

    def clear(self) -> None:
        """Remove everybody."""
        self._length = 0

    def has(self, identifier_type: str, key: bytes) -> bool:
        """Refuse: nobody is remembered here."""
        raise LookupError(self._sentence())

    def keys(self, identifier_type: str) -> Iterable[bytes]:
        """Refuse: nobody is remembered here."""
        raise LookupError(self._sentence())

    def __len__(self) -> int:
        """Return how many identifiers the list holds."""
        return self._length

    @staticmethod
    def _sentence() -> str:
        return "This sandbox only counts (membership=count): start it with membership=real to look people up."
