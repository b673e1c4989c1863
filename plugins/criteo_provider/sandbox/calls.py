"""A call as its handler sees it: already counted, identified, allowed and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from criteo_provider.sandbox.answers import Answer, Refusal, forbidden, invalid, partly
from criteo_provider.sandbox.contract import decode
from criteo_provider.sandbox.journal import Entry
from criteo_provider.sandbox.state import Grant, World

T = TypeVar("T")
R = TypeVar("R")

Needs = Literal["nothing", "token", "read", "manage"]


@dataclass(slots=True)
class Call:
    """One call; ``instance`` is its path, as Criteo's errors name it."""

    world: World
    grant: Grant
    instance: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes = field(repr=False)
    entry: Entry
    rival: bool = False
    """Whether somebody else is about to create the same (a fault)."""

    def read(self, shape: type[T]) -> T:
        """Return the body in this shape, or refuse the call."""
        return decode(self.body, shape)

    def may_touch(self, advertiser_id: str) -> bool:
        """Tell whether this advertiser consented."""
        return advertiser_id in self.grant.advertiser_ids and advertiser_id in self.world.advertisers

    def number(self, name: str, *, default: int, least: int, most: int) -> int:
        """Return an integer query parameter, or refuse the call."""
        text = self.query.get(name)
        if text is None:
            return default
        if not text.removeprefix("-").isdecimal():
            raise invalid(f"The query parameter {name} must be an integer", field_path=name)
        if not least <= int(text) <= most:
            raise invalid(
                f"The query parameter {name} must be between {least} and {most}",
                code="invalid-range",
                field_path=name,
            )
        return int(text)

    def each(self, items: Iterable[T], handle: Callable[[T], R]) -> Answer:
        """Answer a bulk call: 200 whatever happened to the items, unless the caller may touch none."""
        done: list[R] = []
        failures: list[Refusal] = []
        for index, item in enumerate(items):
            try:
                done.append(handle(item))
            except Refusal as failure:
                failure.source = {
                    key: f"data/{index}/{at}".rstrip("/") for key, at in (failure.source or {"item": ""}).items()
                }
                failures.append(failure)
        if failures and not done and all(failure.status == 403 for failure in failures):
            raise forbidden()
        return partly(done, failures, mode=self.world.rules.bulk_failure, instance=self.instance)


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of the API; ``needs`` is what the token must allow."""

    name: str
    method: str
    path: str
    needs: Needs
    handle: Callable[[Call], Answer] = field(repr=False)

    @property
    def takes(self) -> Literal["json", "form", "nothing"]:
        """What body it reads (the official SDK sends a content type even where there is no body)."""
        if self.method not in ("POST", "PATCH", "PUT"):
            return "nothing"
        return "form" if self.needs == "nothing" else "json"
