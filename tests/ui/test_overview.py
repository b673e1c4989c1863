"""What the page says about each step, canvas and trouble, from what the ledger and the files say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from criteo_provider.core.model import Metric
from criteo_provider.settings.load import Canvases, load_canvases
from criteo_provider.settings.problems import Problem
from criteo_provider.store.launches import LastPreflight
from criteo_provider.store.metrics import StepNumbers
from criteo_provider.ui.directory import Directory, Place
from criteo_provider.ui.meanings import MEANINGS
from criteo_provider.ui.overview import Overview, Trouble, overview, state_of
from criteo_provider.wiring.findings import found, to_json
from criteo_provider.wiring.pace import Flush
from tests.ui import scene

NOW_US = 1_800_000_000_000_000
NO_FILES = Canvases()
PLACE = Place("Offer", "team", True, "criteo_default", 7, "7001")
NUMBERS = dict.fromkeys(("entered", "proceeded", "synced", "not_synced", "pending", "errored", "exited", "waiting"), 0)
STEP = StepNumbers(
    "offer", "add_them", "Shoppers", "1001", "add", True, **NUMBERS, not_synced_reasons={}, as_of_us=NOW_US
)


def trouble(scope: str, key: str) -> Trouble:
    return Trouble(scope, key, f"Something is wrong with the {scope}.", NOW_US - 60_000_000, NOW_US + 60_000_000)


def shown(*troubles: Trouble, files: Canvases = NO_FILES, place: Place = PLACE, here: bool = True) -> Overview:
    directory = Directory({("offer", "add_them"): place}, {7: ("Shoppers", "1001")})
    return overview(files, [STEP], directory, troubles, files_are_here=here, now_us=NOW_US)


@pytest.mark.parametrize(
    ("numbers", "kind", "text"),
    [
        ({"entered": 5, "synced": 5}, "ok", "ok"),
        ({}, "waiting", "waiting for its first people"),
        ({"waiting": 5}, "waiting", "waiting for a delay to end"),
        ({"entered": 5, "pending": 1}, "waiting", "waiting for Criteo to accept people"),
        ({"paused": True}, "paused", "paused in its file"),
        (
            {"paused": True, "entered": 5, "pending": 5},
            "paused",
            "paused in its file: 5 people are held, and no clock runs. Remove `paused` to let them go on.",
        ),
        ({"declared": False, "paused": True}, "paused", "paused (no longer declared)"),
        ({"declared": False}, "paused", "paused (no longer declared)"),
        (
            {"declared": False, "pending": 1_000, "waiting": 2},
            "paused",
            "paused (no longer declared): 1,002 people are held. Declare the step again, "
            "or give them up with `airflow criteo drop offer add_them`.",
        ),
    ],
)
def test_states(numbers: dict[str, int], kind: str, text: str) -> None:
    """A step says in words what its people wait for."""
    state = state_of(replace(STEP, **numbers), PLACE, ())
    assert (state.kind, state.text) == (kind, text)


def test_an_audience_that_is_not_known_yet() -> None:
    """People pending for an audience without a Criteo id wait for that audience."""
    state = state_of(replace(STEP, entered=1, pending=1), replace(PLACE, criteo_id=None), ())
    assert state.text == "waiting for its audience to be found or created at Criteo"


@pytest.mark.parametrize(
    ("scope", "key", "concerned"),
    [
        ("connection", "criteo_default", True),
        ("connection", "criteo_eu", False),
        ("ad_account", "criteo_default/1001", True),
        ("ad_account", "criteo_default/1002", False),
        ("audience", "7", True),
        ("audience", "8", False),
        ("source", "offer", False),
    ],
)
def test_troubles_reach_as_far_as_their_scope(scope: str, key: str, concerned: bool) -> None:
    """A step shows the troubles of its connection, ad account and audience, and nobody else's."""
    found = trouble(scope, key)
    state = state_of(STEP, PLACE, [found])
    assert (state.kind == "trouble") is concerned
    assert (found.sentence in state.text) is concerned


@pytest.mark.parametrize(
    ("scope", "key", "where"),
    [
        ("connection", "criteo_default", "Connection criteo_default"),
        ("ad_account", "criteo_default/1001", "Ad account 1001 (connection criteo_default)"),
        ("audience", "7", "Audience “Shoppers” in ad account 1001"),
        ("source", "offer", "Source of canvas Offer"),
        ("source", "unknown", "Source of canvas unknown"),
        ("launch", "offer", "Launch of canvas Offer"),
        ("quota", "criteo_default/1001", "Ad account 1001"),
    ],
)
def test_troubles_are_named(scope: str, key: str, where: str) -> None:
    """Every open trouble is a notice with its place in people's words, its beginning and its next try."""
    (notice,) = shown(trouble(scope, key)).problems
    assert (notice.where, notice.what) == (where, f"Something is wrong with the {scope}.")
    assert notice.since is not None
    assert notice.next_try is not None
    assert (notice.next_try - notice.since).total_seconds() == 120


def test_a_source_that_cannot_be_read_concerns_the_canvas() -> None:
    """The canvas of a failing source says that nobody new enters; its steps go on."""
    (canvas,) = shown(trouble("source", "offer")).canvases
    assert canvas.notes == ("Nobody new enters: its source cannot be read. People who entered before go on.",)
    assert canvas.steps[0].state.kind == "waiting"


def test_a_file_that_cannot_be_loaded() -> None:
    """A broken canvas file is a notice with file, key and mend, and a note on the canvas that still has people."""
    file = Path("include/canvases/offer.yaml")
    problem = Problem(file, "owner", "is missing.", "Add `owner: growth-team`.")
    seen = shown(files=Canvases(problems=(problem, replace(problem, key=""))))
    assert [(each.where, each.what, each.mend) for each in seen.problems] == [
        (str(file), "owner is missing.", problem.mend),
        (str(file), "The file is missing.", problem.mend),
    ]
    assert "its file cannot be loaded" in seen.canvases[0].notes[0]


def test_a_file_that_is_gone() -> None:
    """A canvas whose file is gone says so."""
    seen = shown(place=replace(PLACE, canvas_declared=False))
    assert seen.canvases[0].notes == ("No longer declared: its file is gone. Put it back to let its people go on.",)


def test_an_api_server_without_the_files() -> None:
    """A host that has a ledger and no include folder does not call canvases missing that run elsewhere."""
    folder = Problem(Path("include/canvases"), "the folder", "is not there, so no canvas can run.", "Create it.")
    files = Canvases(problems=(folder,))
    assert shown(files=files, here=False).problems == ()
    assert "not on this host" in shown(files=files, here=False).notes[0]
    nothing = overview(files, [], Directory({}, {}), (), files_are_here=False, now_us=NOW_US)
    assert [each.what for each in nothing.problems] == ["the folder is not there, so no canvas can run."]


def test_what_is_not_launched_has_no_numbers(tmp_path: Path) -> None:
    """Canvases and steps the ledger does not know yet are shown without numbers, not with zeros."""
    files = load_canvases(scene.make_include_folder(tmp_path / "include"))
    seen = overview(files, [], Directory({}, {}), (), files_are_here=True, now_us=NOW_US)
    assert [canvas.name for canvas in seen.canvases] == sorted(canvas.name for canvas in files.canvases)
    steps = [step for canvas in seen.canvases for step in canvas.steps]
    assert len(steps) == sum(len(canvas.audience_steps) for canvas in files.canvases)
    assert {step.numbers for step in steps} == {None}
    assert {step.state.text for step in steps} == {"waiting for the DAG criteo_audience_sync"}


def test_a_new_step_of_a_known_canvas(tmp_path: Path) -> None:
    """A step that was added to a file is there at once, behind the steps that have numbers."""
    files = load_canvases(scene.make_include_folder(tmp_path / "include"))
    files = Canvases(tuple(canvas for canvas in files.canvases if canvas.id == "high_value_targeting"))
    known = replace(STEP, canvas="high_value_targeting", step="add_vip", entered=3)
    directory = Directory({(known.canvas, known.step): PLACE}, {})
    (canvas,) = overview(files, [known], directory, (), files_are_here=True, now_us=NOW_US).canvases
    assert [(step.id, step.numbers is None) for step in canvas.steps] == [("add_vip", False), ("remove_vip", True)]


def test_all_seven_numbers_are_explained() -> None:
    """Every metric has a meaning, and the row of a step has every metric."""
    assert set(MEANINGS) == set(Metric)
    (canvas,) = shown().canvases
    assert canvas.steps[0].numbers == {metric.name.lower(): 0 for metric in Metric}


def test_a_canvas_that_is_not_launched() -> None:
    """It says so, and shows what its last preflight found: each with what, mend and why."""
    finding = found("no-permission", "ad account 1001", conn_id="criteo_default", ad_account="1001")
    last = LastPreflight(NOW_US, "stamp", to_json([finding]))
    place = replace(PLACE, launched=False)
    directory = Directory({("offer", "add_them"): place}, {7: ("Shoppers", "1001")}, {"offer": last})
    (canvas,) = overview(NO_FILES, [STEP], directory, (), files_are_here=True, now_us=NOW_US).canvases
    assert canvas.notes == ("Not launched: nothing is read before its preflight finds nothing to mend.",)
    assert canvas.steps[0].state.text == "waiting for the canvas to be launched"
    assert canvas.findings == (f"failure: {finding.what} {finding.mend} {finding.why}",)
    assert canvas.checked is not None


def test_what_keeps_a_canvas_from_its_launch_is_told_once() -> None:
    """What is to be mended stands above with its reasons; the canvas points there, and keeps what only warns."""
    failure = found("no-permission", "ad account 1001", conn_id="criteo_default", ad_account="1001")
    warning = found("quota-near", "ad account 1001", ad_account="1001", audiences=960)
    last = LastPreflight(NOW_US, "stamp", to_json([failure, warning]))
    directory = Directory(
        {("offer", "add_them"): replace(PLACE, launched=False)}, {7: ("Shoppers", "1001")}, {"offer": last}
    )
    seen = overview(NO_FILES, [STEP], directory, [trouble("launch", "offer")], files_are_here=True, now_us=NOW_US)
    (notice,), (canvas,) = seen.problems, seen.canvases
    assert notice.points == (f"{failure.what} {failure.mend} {failure.why}",)
    assert notice.what == "Not launched before this is mended; nothing is read, and nobody is lost."
    assert canvas.findings == (f"warning: {warning.what} {warning.mend} {warning.why}",)
    assert canvas.told_above == 1


def test_how_often_people_are_sent() -> None:
    """Each connection says how often it is flushed, and why when that is less often than declared."""
    why = "flush every 24 s: 4 streams share 10 requests a minute"
    flushes = [Flush("criteo_default", 5.0, 1, 250, ""), Flush("criteo_eu", 24.0, 4, 10, why)]
    directory = Directory({("offer", "add_them"): PLACE}, {7: ("Shoppers", "1001")})
    seen = overview(NO_FILES, [STEP], directory, (), flushes=flushes, files_are_here=True, now_us=NOW_US)
    assert seen.pace == ("Connection criteo_default: flush every 5 s.", f"Connection criteo_eu: {why}.")


def test_findings_of_another_release_are_left_out() -> None:
    """A page is not broken by what it does not understand."""
    directory = Directory({("offer", "add_them"): PLACE}, {}, {"offer": LastPreflight(NOW_US, "", '[{"old": 1}]')})
    (canvas,) = overview(NO_FILES, [STEP], directory, (), files_are_here=True, now_us=NOW_US).canvases
    assert canvas.findings == ()
