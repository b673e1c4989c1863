"""The opt-out feed: where people say that they withdraw consent, as its YAML file declares it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr

from criteo_provider.core import eligibility
from criteo_provider.core.consent import FEED_PREFIX, FeedDeclaration
from criteo_provider.core.eligibility import Rule
from criteo_provider.core.identifiers import EmailHash
from criteo_provider.settings import rules
from criteo_provider.settings.canvas import (
    Block,
    EmailColumn,
    GumColumn,
    IdentifierColumn,
    Identifiers,
    OrColumn,
    PlainColumn,
    Reading,
    Seconds,
    Source,
    Text,
    Texts,
)
from criteo_provider.settings.documents import read_document, yaml_files
from criteo_provider.settings.problems import Finding, Problem, in_file

ALL = "all"
FIRST_KEYS = "name, owner, source, user_key, canvases"


def _conditions(written: object) -> object:
    """A bare column name stands for that column being true."""
    return {written.strip(): True} if isinstance(written, str) else written


class FeedIdentifiers(Identifiers):
    """The identifier columns of a feed; a plain address stands for all its hashes."""

    email: OrColumn[EmailColumn] | None = Field(default=None, examples=["email"])
    madid: OrColumn[PlainColumn] | None = Field(default=None, examples=["maid"])
    gum: GumColumn | None = Field(default=None, examples=["{column: gum_id, caller_id: 123}"])
    identity_link: OrColumn[PlainColumn] | None = Field(None, examples=["ramp"])

    @property
    def columns(self) -> tuple[IdentifierColumn, ...]:
        """The declared fields; whoever opts out by an address does so in every form it may have been sent in."""
        return tuple(
            IdentifierColumn(one.field, one.column, one.caller_id, tuple(EmailHash), one.email_input)
            for one in self._columns()
        )


class OptOutFeed(Block):
    """One opt-out feed, validated in the context of a ``Reading``; every row is somebody who withdraws consent."""

    _id: str = PrivateAttr()
    name: Text = Field(examples=["Do not sell or share"])
    owner: Text = Field(examples=["privacy-team"])
    source: Source = Field(examples=["{sql: ...}"])
    user_key: Text | None = Field(default=None, examples=["customer_id"])
    identifiers: FeedIdentifiers | None = Field(default=None, examples=["{email: email}"])
    canvases: Texts = Field(examples=["all"])
    taken_back: Annotated[dict[Text, Any], BeforeValidator(_conditions)] = Field(
        default={}, examples=["{status: opted_in}"]
    )
    retry_for_s: Seconds = Field(default=13 * 3_600, alias="retry_for", examples=["13h"])

    def model_post_init(self, context: Reading) -> None:
        """Take the id from the name of the file."""
        self._id = FEED_PREFIX + context.canvas_id

    @property
    def id(self) -> str:
        """The name of the file behind the folder's, by which the ledger knows the feed for ever."""
        return self._id

    @property
    def entry(self) -> OptOutFeed:
        """What a source is built from: it lies one level higher than in a canvas."""
        return self

    @cached_property
    def taken_back_rule(self) -> Rule:
        """Which rows take an opt-out back; without conditions none does."""
        return eligibility.compile(self.taken_back)

    @property
    def identifier_columns(self) -> tuple[IdentifierColumn, ...]:
        """The identifier columns, where there are any."""
        return self.identifiers.columns if self.identifiers else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the source has to give, each once."""
        keys = [self.user_key] if self.user_key else []
        found = [*keys, *(each.column for each in self.identifier_columns), *self.taken_back_rule.columns]
        return tuple(dict.fromkeys(found))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the id and everything declared, with the SQL; without the layout of the YAML."""
        meaning = {"id": self.id, "declared": self.model_dump(mode="json")}
        return sha256(json.dumps(meaning, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def declaration(self) -> FeedDeclaration:
        """What the ledger has to know of this feed."""
        canvases = None if ALL in self.canvases else self.canvases
        return FeedDeclaration(self.id, self.name, self.owner, self.retry_for_s, self.fingerprint, canvases)


@dataclass(frozen=True, slots=True)
class Feeds:
    """The opt-out feeds of an include folder, and what keeps the others from being read."""

    feeds: tuple[OptOutFeed, ...] = ()
    problems: tuple[Problem, ...] = ()


def load_feeds(include_folder: Path) -> Feeds:
    """Read every YAML file in ``opt_outs/`` of the include folder; no folder, no feed."""
    feeds: dict[str, OptOutFeed] = {}
    problems: list[Problem] = []
    for file in yaml_files(include_folder / "opt_outs"):
        feed, found = read_document(file, include_folder, OptOutFeed, _check, noun="feed", first_keys=FIRST_KEYS)
        if feed and feed.id in feeds:
            finding = Finding((), "has the name of another feed.", "Rename one of the two.")
            found = in_file(Path(include_folder.name) / "opt_outs" / file.name, None, [finding])
        elif feed:
            feeds[feed.id] = feed
        problems += found
    return Feeds(tuple(feeds.values()), tuple(problems))


def _check(data: Mapping[str, object]) -> Iterator[Finding]:
    """Find what no single key of a feed can know."""
    yield from rules.source_rules(("source",), rules.block(data.get("source")), declared="source" in data)
    identifiers = rules.block(data.get("identifiers"))
    yield from rules.identifier_rules(("identifiers",), identifiers, declared=data.get("identifiers") is not None)
    if data.get("user_key") is None and data.get("identifiers") is None:
        yield Finding((), "names nobody: neither user_key nor identifiers are declared.", "Add `user_key:`.")
    if isinstance(conditions := data.get("taken_back"), Mapping):
        yield from rules.condition_rules(("taken_back",), conditions)
