"""The canvas: one user journey as its YAML file declares it, and as the rest of the house sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from criteo_provider.core import eligibility
from criteo_provider.core.eligibility import Rule
from criteo_provider.core.identifiers import EmailHash, EmailInput
from criteo_provider.core.model import AudienceKey, CanvasDeclaration, Operation, StepDeclaration, WhenDeleted
from criteo_provider.settings.durations import parse_duration

MAX_AUDIENCE_CHARS = 255
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a canvas is read with: where its segments are, and the name of its file."""

    include_folder: Path
    canvas_id: str


class Block(BaseModel):
    """A block of known keys; unknown ones are refused, and no value is ever shown in an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def wrong(what: str, mend: str) -> PydanticCustomError:
    """Make a refusal in our own words."""
    return PydanticCustomError("canvas", "{what} {mend}", {"what": what, "mend": mend})


def _seconds(written: object) -> int:
    seconds = parse_duration(written) if isinstance(written, str) else None
    if not seconds:
        raise wrong("is not a length of time.", "Write numbers with d, h, m or s: 30d, 13h, 1h30m, 5s.")
    return seconds


def _some(items: tuple[T, ...]) -> tuple[T, ...]:
    if not items:  # asked last: pydantic's own check counts no item that is wrong by itself
        raise PydanticCustomError("too_short", "is empty")
    return items


def _listed(written: object) -> object:
    return [written] if isinstance(written, str) else written


def _digits(written: object) -> object:
    return str(written) if type(written) is int else written


def _as_column(written: object) -> object:
    return {"column": written} if isinstance(written, str) else written


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
ConnectionId = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[\w.\-]+$")]
Seconds = Annotated[int, BeforeValidator(_seconds)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), AfterValidator(_some)]
OrColumn = Annotated[T, BeforeValidator(_as_column)]  # a bare name stands for a block with that column
Parameter = Annotated[str, BeforeValidator(_digits)]
IdentifierField = Literal["email", "madid", "gum", "identity_link"]


# --- sources ---------------------------------------------------------------------------------------------


class Query(Block):
    """A segment's SQL: its path inside the include folder, and its text."""

    path: str
    text: str = Field(repr=False)


def _read_query(written: object, info: ValidationInfo) -> object:
    """Read the file a path names."""
    if not isinstance(written, str):
        raise wrong("has to be the path of an .sql file.", "Write it like `query: segments/high_value.sql`.")
    include = cast("Reading", info.context).include_folder.resolve()
    file = (include / written).resolve()
    if not file.is_relative_to(include) or file.suffix != ".sql":
        raise wrong("has to lead to an .sql file inside the include folder.", "Move it to segments/.")
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise wrong("leads to a file that is not there or not UTF-8 text.", "Create it, or correct the path.") from None
    text = text.strip().removesuffix(";").rstrip()
    if not text:
        raise wrong("leads to an empty file.", "Write the segment's SELECT there.")
    return {"path": written, "text": text}


class SqlSource(Block):
    """Rows of a SELECT over an Airflow SQL connection, in the order of the cursor columns."""

    connection: ConnectionId = Field(examples=["example_shop"])
    query: Annotated[Query, BeforeValidator(_read_query)] = Field(examples=["segments/high_value.sql"])
    cursor: Texts = Field(examples=["[updated_at, customer_id]"])
    late_commit_s: Seconds = Field(default=60, alias="late_commit", examples=["60s"])


class FilesSource(Block):
    """Rows of Parquet, CSV or NDJSON files below a path, each file once."""

    path: Text = Field(examples=['"s3://bucket/people/"'])
    connection: ConnectionId | None = Field(default=None, examples=["aws_default"])
    pattern: Text = Field(default="*", examples=['"*.parquet"'])
    format: Literal["parquet", "csv", "ndjson"] | None = Field(default=None, examples=["parquet"])


class HttpPage(Block):
    """How an endpoint turns its pages."""

    kind: Literal["cursor", "page", "offset", "link"] = Field(default="link", examples=["cursor"])
    param: str = Field(default="", examples=["cursor"])
    next: str = Field(default="", examples=["meta.next"])
    first: int | None = Field(default=None, ge=0, examples=["1"])
    size: int | None = Field(default=None, ge=1, examples=["500"])
    size_param: Text | None = Field(default=None, examples=["limit"])


class HttpSource(Block):
    """Records of a JSON endpoint over an Airflow HTTP connection."""

    connection: ConnectionId = Field(examples=["crm_api"])
    endpoint: Text = Field(examples=["/people"])
    records: str = Field(default="", examples=["data.items"])
    page: HttpPage = Field(default=HttpPage(), examples=["{kind: page, param: page}"])
    params: dict[Text, Parameter] = Field(default={}, examples=["{status: active}"])


class PythonSource(Block):
    """DataFrames of a callable, in the order of the cursor column."""

    callable: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")] = Field(
        examples=["my_segments.people"]
    )
    cursor: Text = Field(examples=["updated_at"])


class Source(Block):
    """Where people come from: exactly one of the four is set."""

    sql: SqlSource | None = Field(default=None, examples=["{connection: ..., query: ..., cursor: [...]}"])
    files: FilesSource | None = Field(default=None, examples=["{path: ...}"])
    http: HttpSource | None = Field(default=None, examples=["{connection: ..., endpoint: ...}"])
    python: PythonSource | None = Field(default=None, examples=["{callable: ..., cursor: ...}"])

    @property
    def chosen(self) -> SqlSource | FilesSource | HttpSource | PythonSource:
        """The one that is set."""
        return next(kind for kind in (self.sql, self.files, self.http, self.python) if kind is not None)


# --- identifiers -----------------------------------------------------------------------------------------


class PlainColumn(Block):
    """A column that holds an identifier as it is."""

    column: Text = Field(examples=["maid"])


class EmailColumn(Block):
    """A column of e-mail addresses, plain or hashed, and the hashes to send for plain ones."""

    column: Text = Field(examples=["email"])
    hashes: Annotated[tuple[EmailHash, ...], BeforeValidator(_listed), AfterValidator(_some)] = Field(
        default=(EmailHash.SHA256,), alias="hash", examples=["sha256"]
    )
    input: EmailInput = Field(default=EmailInput.AUTO, examples=["auto"])


class GumColumn(Block):
    """A column of GUM ids, and Criteo's number for who issued them."""

    column: Text = Field(examples=["gum_id"])
    caller_id: int = Field(ge=1, strict=True, examples=["123"])


@dataclass(frozen=True, slots=True)
class IdentifierColumn:
    """Which source column holds an identifier field, and how to read it."""

    field: str
    column: str
    caller_id: int | None = None
    email_hashes: tuple[EmailHash, ...] = (EmailHash.SHA256,)
    email_input: EmailInput = EmailInput.AUTO


class Identifiers(Block):
    """The identifier fields a source has; at least one is set."""

    email: OrColumn[EmailColumn] | None = Field(default=None, examples=["email"])
    madid: OrColumn[PlainColumn] | None = Field(default=None, examples=["maid"])
    gum: GumColumn | None = Field(default=None, examples=["{column: gum_id, caller_id: 123}"])
    identity_link: OrColumn[PlainColumn] | None = Field(None, examples=["ramp"])

    @property
    def columns(self) -> tuple[IdentifierColumn, ...]:
        """The declared fields, in the order Criteo's types are listed."""
        return tuple(self._columns())

    def _columns(self) -> Iterator[IdentifierColumn]:
        if self.email:
            yield IdentifierColumn(
                "email", self.email.column, email_hashes=self.email.hashes, email_input=self.email.input
            )
        if self.madid:
            yield IdentifierColumn("madid", self.madid.column)
        if self.gum:
            yield IdentifierColumn("gum", self.gum.column, self.gum.caller_id)
        if self.identity_link:
            yield IdentifierColumn("identity_link", self.identity_link.column)


# --- entry and steps -------------------------------------------------------------------------------------


class Consent(Block):
    """What has to be true of a person before anything about them is sent, now and at every attempt."""

    require: dict[Text, Any] = Field(min_length=1, examples=["{ads_tracking_enabled: true}"])

    @cached_property
    def rule(self) -> Rule:
        """The requirements, compiled; a missing value satisfies none."""
        return eligibility.compile(self.require)


class Entry(Block):
    """Who enters: a source, what its columns mean, and who of its people may."""

    user_key: Text = Field(examples=["customer_id"])
    source: Source = Field(examples=["{sql: ...}"])
    identifiers: Identifiers = Field(examples=["{email: email}"])
    eligibility: dict[Text, Any] = Field(default={}, examples=["{lifetime_value: {min: 500}}"])
    consent: Consent = Field(examples=["{require: {ads_tracking_enabled: true, do_not_sell_or_share: false}}"])

    @cached_property
    def rule(self) -> Rule:
        """Eligibility and consent together: who may enter."""
        return eligibility.compile(self.eligibility) & self.consent.rule

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the source has to give, each once."""
        found = [self.user_key, *(each.column for each in self.identifiers.columns), *self.rule.columns]
        return tuple(dict.fromkeys(found))


class AudienceSync(Block):
    """Add people to an audience of an ad account, or remove them."""

    operation: Operation = Field(examples=["add"])
    ad_account: Annotated[str, BeforeValidator(_digits), StringConstraints(pattern=r"^\d+$")] = Field(
        examples=['"1001"']
    )
    audience: Annotated[Text, StringConstraints(max_length=MAX_AUDIENCE_CHARS)] = Field(
        examples=["High-value customers"]
    )
    fields: Annotated[tuple[IdentifierField, ...], AfterValidator(_some)] = Field(examples=["[email, madid]"])
    when_deleted: WhenDeleted | None = Field(default=None, examples=["wait"])


class Step(Block):
    """One step under its permanent id: exactly one of the two is set."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")] = Field(examples=["add_vip"])
    audience_sync: AudienceSync | None = Field(
        None, examples=["{operation: add, ad_account: ..., audience: ..., fields: [email]}"]
    )
    delay_s: Seconds | None = Field(default=None, alias="delay", examples=["30d"])
    paused: bool = Field(default=False, strict=True, examples=["true"])


@dataclass(frozen=True, slots=True)
class AudienceStep:
    """An audience step in its place: ``position`` counts from 0, ``delay_s`` runs from the entry."""

    id: str
    sync: AudienceSync
    position: int
    delay_s: int
    is_last: bool
    paused: bool = False


class Canvas(Block):
    """One user journey, validated in the context of a ``Reading``."""

    _id: str = PrivateAttr()
    name: Text = Field(examples=["High-value targeting"])
    connection: ConnectionId = Field("criteo_default", examples=["criteo_default"])
    owner: Text = Field(examples=["growth-team"])
    retry_for_s: Seconds = Field(default=13 * 3_600, alias="retry_for", examples=["13h"])
    flush_s: Seconds = Field(default=5, alias="flush", examples=["5s"])
    entry: Entry = Field(examples=["{user_key: ..., source: ..., identifiers: ..., eligibility: ..., consent: ...}"])
    steps: tuple[Step, ...] = Field(examples=["[{id: add_vip, audience_sync: {...}}]"])

    def model_post_init(self, context: Reading) -> None:
        """Take the id from the name of the file; a canvas does not name itself."""
        self._id = context.canvas_id

    @property
    def id(self) -> str:
        """The name of the file, by which the ledger knows the canvas for ever."""
        return self._id

    @cached_property
    def audience_steps(self) -> tuple[AudienceStep, ...]:
        """The audience steps in order, each with the sum of all delays before it."""
        last = sum(step.audience_sync is not None for step in self.steps) - 1
        found: list[AudienceStep] = []
        delay_s = 0
        for step in self.steps:
            delay_s += step.delay_s or 0
            if step.audience_sync:
                at = len(found)
                found.append(AudienceStep(step.id, step.audience_sync, at, delay_s, at == last, step.paused))
        return tuple(found)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the id and everything declared, with the segment's SQL; without the layout of the YAML."""
        meaning = {"id": self.id, "declared": self.model_dump(mode="json")}
        declared = json.dumps(meaning, sort_keys=True, ensure_ascii=False)
        return sha256(declared.encode()).hexdigest()

    @property
    def declaration(self) -> CanvasDeclaration:
        """What the ledger has to know of this canvas."""
        steps = tuple(
            StepDeclaration(
                name=step.id,
                position=step.position,
                audience=AudienceKey(self.connection, step.sync.ad_account, step.sync.audience),
                operation=step.sync.operation,
                fields=step.sync.fields,
                delay_s=step.delay_s,
                is_last=step.is_last,
                paused=step.paused,
                when_deleted=step.sync.when_deleted,
            )
            for step in self.audience_steps
        )
        return CanvasDeclaration(
            self.id, self.name, self.owner, self.connection, self.retry_for_s, self.fingerprint, steps
        )
