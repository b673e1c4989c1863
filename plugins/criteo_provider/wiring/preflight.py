"""Preflight: everything a canvas needs for its people to be synced, looked at together before it is launched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from criteo_provider.core.errors import Busy, CriteoSyncError
from criteo_provider.core.model import Operation, WhenDeleted
from criteo_provider.core.outcome import AccessLost, Outcome
from criteo_provider.core.quota import MOST_AUDIENCES, WARN_FROM, unable_to_create
from criteo_provider.criteo_api.listing import Listing
from criteo_provider.settings.canvas import AudienceStep, Canvas
from criteo_provider.settings.load import connection_of
from criteo_provider.settings.opt_outs import ALL
from criteo_provider.settings.problems import Problem
from criteo_provider.wiring.desk import Desk, try_writing
from criteo_provider.wiring.findings import Finding, found, of_error
from criteo_provider.wiring.surroundings import Sourced

if TYPE_CHECKING:
    from criteo_provider.wiring.house import House

# A source of records shows its columns only in records; one call brings a page of them.
_RECORDS = 1_000
_FATES = {
    WhenDeleted.WAIT: "its people are pending until it is back, for as long as `retry_for`",
    WhenDeleted.RECREATE: "its people are pending until a step that adds people makes it anew",
    WhenDeleted.FAIL: "its people are given up, as its step says",
}
_CODES = {"audience": "no-audience-name", "fields": "no-fields", "ad_account": "no-ad-account"}


@dataclass(frozen=True, slots=True)
class Target:
    """The audience of a step: ``state`` says what a launch makes of it."""

    step: str
    audience: str
    ad_account: str
    state: str
    criteo_id: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What the preflight of one canvas has found."""

    canvas_id: str
    findings: tuple[Finding, ...]
    targets: tuple[Target, ...] = ()

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What keeps the canvas from being launched."""
        return tuple(finding for finding in self.findings if finding.is_failure)


class Survey:
    """What Criteo says of connections and their ad accounts, each asked once, however many canvases are checked."""

    def __init__(self, desk: Callable[[str], Desk]) -> None:
        self.desk = desk
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, ...], Future[Any]] = {}

    def consented(self, conn_id: str) -> frozenset[str]:
        """Return the ad accounts that consented to the application of a connection."""
        ask = lambda: frozenset(one.ad_account for one in self.desk(conn_id).client.ad_accounts())  # noqa: E731
        answer: frozenset[str] = self._once((conn_id,), ask)
        return answer

    def listing(self, conn_id: str, ad_account: str) -> Listing:
        """Return the audiences of an ad account."""
        answer: Listing = self._once((conn_id, ad_account), lambda: self.desk(conn_id).listing(ad_account))
        return answer

    def may_change(self, conn_id: str, ad_account: str, criteo_id: str) -> bool:
        """Tell whether audiences of an ad account may be changed: False only if Criteo says so of this one."""
        ask = lambda: try_writing(self.desk(conn_id).client, criteo_id, tries=1)  # noqa: E731
        outcome: Outcome = self._once((conn_id, ad_account, "change"), ask)
        return not (isinstance(outcome, AccessLost) and outcome.scope == "ad_account")

    def _once(self, key: tuple[str, ...], ask: Callable[[], Any]) -> Any:
        with self._lock:
            mine = key not in self._asked
            answer = self._asked.setdefault(key, Future())
        if mine:
            try:
                answer.set_result(ask())
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()


class Preflight:
    """The preflight of one house."""

    def __init__(self, house: House) -> None:
        self._house = house

    def reports(self, canvas_id: str | None = None) -> list[Report]:
        """Check one canvas or all, for somebody who waits; what is found is remembered for the page."""
        problems = [each for each in self._house.canvases.problems if canvas_id in (None, each.file.stem)]
        chosen = [each for each in self._house.canvases.canvases if canvas_id in (None, each.id)]
        if not problems and not chosen:
            name, to_write = (canvas_id, f"{canvas_id}.yaml") if canvas_id else ("yet", "a YAML file")
            folder = self._house.around.include_folder / "canvases"
            return [Report(name, (found("no-canvas", f"canvas {name}", name=name, file=to_write, folder=folder),))]
        unusable = self._ledger_trouble()
        if unusable:
            files = [Report(stem, _of_file(stem, problems)) for stem in _stems(problems)]
            return files + [Report(one.id, (*unusable, *self._without_ledger(one))) for one in chosen]
        reports = []
        with ExitStack() as clients:

            def desk(conn_id: str) -> Desk:
                client = clients.enter_context(self._house.criteo.client(conn_id))
                return Desk(client, self._house.ledger.launches, conn_id, self._house.now_us)

            survey = Survey(desk)
            for stem in _stems(problems):
                file = next(one.file for one in problems if one.file.stem == stem)
                conn_id = connection_of(self._house.around.include_folder.parent / file)
                reports.append(Report(stem, (*_of_file(stem, problems), *self._connection(conn_id, survey))))
            for canvas in chosen:
                report = self.check(canvas, survey)
                self._house.launch.remember(canvas, report)
                reports.append(report)
            reports += self._feeds(canvas_id)
        return reports

    def check(self, canvas: Canvas, survey: Survey) -> Report:
        """Find everything that stands in the way of a canvas; raises Busy while Criteo lets nobody ask."""
        targets: list[Target] = []
        findings = [
            *self._deployment(),
            *self._criteo(canvas, survey, targets),
            *self._source(canvas, f"source of canvas {canvas.id}"),
        ]
        return Report(canvas.id, tuple(dict.fromkeys(findings)), tuple(targets))

    # --- what is looked at

    def _ledger_trouble(self) -> tuple[Finding, ...]:
        try:
            self._house.declare()
        except CriteoSyncError as error:
            return (found("ledger-unusable", "the ledger", sentence=error),)
        except SQLAlchemyError as error:  # drivers name hosts and logins: the kind must do
            return (found("ledger-unusable", "the ledger", sentence=f"{type(error).__name__}."),)
        return ()

    def _without_ledger(self, canvas: Canvas) -> Iterator[Finding]:
        """Look at what can be seen without a ledger: asking Criteo takes a slot, and a slot takes a ledger."""
        yield from self._deployment()
        try:
            self._house.around.criteo(canvas.connection)
        except CriteoSyncError as error:
            yield of_error(error, f"connection {canvas.connection}", canvas.connection)

    def _deployment(self) -> Iterator[Finding]:
        cipher, probe = self._house.around.cipher, b"preflight"
        if cipher is None or cipher.encrypt(probe) == probe or cipher.decrypt(cipher.encrypt(probe)) != probe:
            yield found("no-encryption", "Airflow")

    def _connection(self, conn_id: str, survey: Survey) -> Iterator[Finding]:
        where, around = f"connection {conn_id}", self._house.around
        try:
            connection = around.criteo(conn_id)
            if around.guidelines_required and not connection.guidelines_acknowledged:
                yield found("guidelines", where, conn_id=conn_id)
            if around.cipher is not None:  # told already; nobody is let in without
                survey.consented(conn_id)
        except Busy:
            raise
        except CriteoSyncError as error:
            yield of_error(error, where, conn_id)

    def _criteo(self, canvas: Canvas, survey: Survey, targets: list[Target]) -> Iterator[Finding]:
        conn_id = canvas.connection
        lost = list(self._connection(conn_id, survey))
        yield from lost
        if self._house.around.cipher is None or any(one.code != "guidelines" for one in lost):
            return
        refused = self._house.accounts.refusals(conn_id, {step.sync.ad_account for step in canvas.audience_steps})
        consented = survey.consented(conn_id)
        steps: dict[str, list[AudienceStep]] = {}
        for step in canvas.audience_steps:
            steps.setdefault(step.sync.ad_account, []).append(step)
        for ad_account, of_account in steps.items():
            if ad_account in refused:
                sentence = refused[ad_account]
                yield found("ad-account-not-chosen", f"ad account {ad_account}", sentence=sentence, conn_id=conn_id)
            else:
                yield from self._ad_account(canvas, ad_account, of_account, consented, survey, targets)

    def _ad_account(
        self,
        canvas: Canvas,
        ad_account: str,
        steps: Sequence[AudienceStep],
        consented: frozenset[str],
        survey: Survey,
        targets: list[Target],
    ) -> Iterator[Finding]:
        conn_id, where = canvas.connection, f"ad account {ad_account}"
        if ad_account not in consented:
            named = ", ".join(sorted(consented)) or "none"
            yield found("ad-account-not-consented", where, ad_account=ad_account, conn_id=conn_id, consented=named)
        else:
            try:
                listing = survey.listing(conn_id, ad_account)
                # The ledger is asked once, and before Criteo: what another launch makes known meanwhile is not gone.
                known = self._known(canvas, ad_account)
                names = self._names(canvas, listing, known, survey)
            except Busy:
                raise
            except CriteoSyncError as error:
                yield of_error(error, where, conn_id, ad_account)
                return
            mine: list[Target] = []
            yield from self._audiences(canvas, steps, listing, known, names, mine)
            there = next((one.criteo_id for one in mine if one.criteo_id), None)  # with none, nothing can be tried
            if there and not survey.may_change(conn_id, ad_account, there):
                yield found("read-only-permission", where, conn_id=conn_id, ad_account=ad_account)
            yield from self._quota(listing, mine, survey.desk(conn_id) if listing else None, where)
            targets += mine

    def _known(self, canvas: Canvas, ad_account: str) -> dict[str, str]:
        """Return the ids the ledger has of the audiences of a canvas in one ad account, by their names."""
        audiences = self._house.ledger.launches.audiences(canvas.id)
        return {one.name: one.criteo_id for one in audiences if one.criteo_id and one.ad_account == ad_account}

    def _names(self, canvas: Canvas, listing: Listing, known: Mapping[str, str], survey: Survey) -> dict[str, str]:
        """Return the names at Criteo by id: what the listing lacks may have been made after it, by another launch."""
        names = {one.criteo_id: one.name for one in listing.audiences}
        if unlisted := sorted({*known.values()} - {*names}):
            seen = survey.desk(canvas.connection).client.look_up(unlisted)
            names |= {criteo_id: info.name for criteo_id, info in seen.items()}
        return names

    def _audiences(
        self,
        canvas: Canvas,
        steps: Sequence[AudienceStep],
        listing: Listing,
        known: Mapping[str, str],
        names: Mapping[str, str],
        targets: list[Target],
    ) -> Iterator[Finding]:
        for step in steps:
            name, ad_account = step.sync.audience, step.sync.ad_account
            where, before = f"step {step.id}", known.get(name)
            try:
                there = listing.named(name)
            except CriteoSyncError as error:
                yield of_error(error, where, canvas.connection, ad_account)
                continue
            criteo_id = before if before in names else there.criteo_id if there else None
            if criteo_id is not None:
                renamed = "" if there or names[criteo_id] == name else ", under another name"
                state = f"at Criteo, id {criteo_id}{renamed}"
            elif before is not None and not _is_made_anew(canvas, step):
                fate = _FATES[step.sync.when_deleted or WhenDeleted.WAIT]
                words = {"name": name, "ad_account": ad_account, "criteo_id": before, "fate": fate}
                yield found("audience-gone", where, **words)
                continue
            elif before is not None:
                state = f"deleted at Criteo (it was id {before}); it is made anew, as its step says"
            elif any(_adds(other, step) for other in canvas.audience_steps):
                state = "will be created"
            elif any(
                _adds(other, step)
                for others in self._house.canvases.canvases
                for other in others.audience_steps
                if others.connection == canvas.connection
            ):
                state = "draft: another canvas will create it"
            else:
                yield found("audience-nobody-creates", where, name=name, ad_account=ad_account, step=step.id)
                continue
            targets.append(Target(step.id, name, ad_account, state, criteo_id))

    def _quota(self, listing: Listing, targets: Sequence[Target], desk: Desk | None, where: str) -> Iterator[Finding]:
        needed = len({one.audience for one in targets if one.state == "will be created"})
        if needed and desk and len(listing) + needed > MOST_AUDIENCES:
            sentence = unable_to_create(listing.ad_account, len(listing), desk.unused(listing))
            yield found("quota-reached", where, sentence=sentence)
        elif len(listing) >= WARN_FROM:
            yield found("quota-near", where, ad_account=listing.ad_account, audiences=len(listing))

    def _feeds(self, canvas_id: str | None) -> Iterator[Report]:
        """Look at the opt-out feeds, those that concern one canvas or all of them; only what is wrong is told."""
        feeds = self._house.consent.feeds
        for problem in feeds.problems:
            wrong = found("opt-out-file", str(problem.file), what=f"{problem.key or 'The file'} {problem.what}",
                          mend=problem.mend)  # fmt: skip
            yield Report(f"opt_outs/{problem.file.stem}", (wrong,))
        for feed in feeds.feeds:
            if canvas_id is None or {canvas_id, ALL} & set(feed.canvases):
                unread = tuple(self._source(feed, f"source of feed {feed.id}", unreadable="opt-outs-unreadable"))
                if unread:
                    yield Report(feed.id, unread)

    def _source(self, of: Sourced, where: str, *, unreadable: str = "source-unreadable") -> Iterator[Finding]:
        ledger = self._house.ledger
        position, seen = ledger.position(of.id), partial(ledger.completed_units, of.id)
        try:
            source = self._house.around.source(of)
            if of.entry.source.sql or of.entry.source.python:
                source.is_ahead(position, seen)  # looks for the columns too
                return
            with closing(source.pages(position, max_rows=lambda: _RECORDS, seen=seen)) as pages:
                page = next(pages, None)
                if of.entry.source.files:
                    next(pages, None)  # files that cannot be read are told behind those that can
        except CriteoSyncError as error:
            yield found(unreadable, where, sentence=error)
            return
        if page is not None and page.rows:
            empty = [name for name, values in page.columns.items() if all(value is None for value in values)]
            if empty:
                yield found("column-empty", where, columns=", ".join(empty))


def _adds(step: AudienceStep, wanted: AudienceStep) -> bool:
    """Whether a step will create the audience another one names."""
    return _same(step, wanted) and step.sync.operation is Operation.ADD


def _same(one: AudienceStep, other: AudienceStep) -> bool:
    return (one.sync.ad_account, one.sync.audience) == (other.sync.ad_account, other.sync.audience)


def _is_made_anew(canvas: Canvas, step: AudienceStep) -> bool:
    """Whether a deleted audience is created once more for a step."""
    of_it = [one for one in canvas.audience_steps if _same(one, step)]
    return any(one.sync.when_deleted is WhenDeleted.RECREATE for one in of_it) and any(
        _adds(one, step) for one in of_it
    )


def _stems(problems: Sequence[Problem]) -> list[str]:
    return list(dict.fromkeys(problem.file.stem for problem in problems))


def _of_file(stem: str, problems: Sequence[Problem]) -> tuple[Finding, ...]:
    """Tell the problems of a canvas file, the well-known ones under codes of their own."""
    findings = []
    for problem in (one for one in problems if one.file.stem == stem):
        # "steps[1].audience_sync.audience (step add_vip)"
        last = problem.key.partition(" ")[0].rpartition(".")[2].partition("[")[0]
        missing = ".audience_sync." in problem.key and problem.what in ("is missing.", "is empty.")
        code = _CODES.get(last, "canvas-file") if missing else "canvas-file"
        what = f"{problem.key or 'the file'} {problem.what}"
        findings.append(found(code, str(problem.file), what=what, mend=problem.mend))
    return tuple(findings)
