"""Launch: nothing is read before a green preflight, audiences are made once, and others go on."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from criteo_provider.core.model import Role
from criteo_provider.sandbox.running import Sandbox
from criteo_provider.store.engine import writing
from criteo_provider.store.schema import audience, trouble
from criteo_provider.wiring import CriteoConnection, House
from criteo_provider.wiring.findings import from_json
from tests.flow.shop import AD_ACCOUNT, Person, Shop, delay, open_house, sync, write_canvas
from tests.flow.test_house import drain, numbers, size


def calls(sandbox: Sandbox, since: int = 0) -> Counter[str]:
    """Count the calls at the sandbox by operation."""
    return Counter(entry["operation"] for entry in sandbox.requests(since))


def last_call(sandbox: Sandbox) -> int:
    """The number of the latest call."""
    return max((entry["number"] for entry in sandbox.requests()), default=0)


def with_connection(house: House, **changes: object) -> House:
    """The same house with a changed Criteo connection; the one given is closed."""
    around = house.around
    changed: CriteoConnection = replace(around.criteo("criteo_default"), **changes)  # type: ignore[arg-type]
    house.close()
    return House(replace(around, criteo=lambda _name: changed))


def codes(house: House, canvas_id: str = "vip") -> list[str]:
    """What the last preflight of a canvas found."""
    return [finding.code for finding in from_json(house.ledger.launches.last()[canvas_id].findings)]


@pytest.fixture
def open_vip(ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path) -> Callable[[], House]:
    """Open a house with ten people in the shop."""
    shop.add(Person(number) for number in range(1, 11))
    return lambda: open_house(include, ledger_url, sandbox.url, shop.source)


def test_a_green_canvas_is_launched_and_says_what_became_of_its_audiences(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One audience is created and one found, once, each with a line of name, id and which of the two."""
    caplog.set_level(logging.INFO)
    there = sandbox.add_segment(AD_ACCOUNT, "Found")
    write_canvas(include, "vip", sync("add", "Made"), sync("also", "Found"), delay("wait", "30d"),
                 sync("out", "Made", "remove"))  # fmt: skip
    with closing(open_vip()) as house:
        assert house.waiting().fresh
        drain(house)
        assert numbers(house)["add"][1] > 0
        assert codes(house) == []
        assert house.take_news() == []
    made = next(str(one["id"]) for one in sandbox.state()["segments"] if one["name"] == "Made")
    assert f"audience “Made” in ad account 1001: created, Criteo id {made}." in caplog.text
    assert f"audience “Found” in ad account 1001: found, Criteo id {there}." in caplog.text
    assert calls(sandbox)["create"] == 1


def test_a_failing_launch_reads_nothing_tells_once_and_lets_others_go_on(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path
) -> None:
    """All failures are told together, once; the cursor stays, no run is started for it, and the other canvas works."""
    write_canvas(include, "good", sync("fine", "Shoppers"))
    sandbox.add_segment(AD_ACCOUNT, "Twice")
    sandbox.add_segment(AD_ACCOUNT, "Twice")
    write_canvas(include, "vip", sync("add", "Twice"), sync("elsewhere", "Any", ad_account="4711"),
                 sync("out", "Nobody makes it", "remove"))  # fmt: skip
    with closing(open_vip()) as house:
        drain(house)
        assert numbers(house)["fine"][1] > 0
        assert numbers(house)["add"] == (0, 0, 0, 0)
        assert house.ledger.position("vip") is None
        assert sorted(codes(house)) == ["ad-account-not-consented", "audience-ambiguous", "audience-nobody-creates"]
        (news,) = house.take_news()
        assert news.startswith("Canvas vip is not launched: (1) ")
        assert "(3)" in news
        assert not any(house.launch.is_due(canvas) for canvas in house.canvases.canvases if canvas.id == "vip")
        drain(house)
        assert house.take_news() == []
        assert [(row.scope, row.key) for row in house.ledger.troubles()] == [("launch", "vip")]
    assert size(sandbox, "Any") is None


def test_an_edit_or_another_connection_is_tried_at_once(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path
) -> None:
    """A canvas that waits for its launch is tried again when its file changes, and when its connection does."""
    write_canvas(include, "vip", sync("add", "Shoppers", ad_account="1002"))
    with closing(with_connection(open_vip(), allowed_ad_accounts=("1001",))) as house:
        drain(house)
        assert codes(house) == ["ad-account-not-chosen"]
        assert not house.waiting().fresh
    with closing(with_connection(open_vip(), allowed_ad_accounts=("1001",), client_secret="wrong")) as house:
        assert house.waiting().fresh
        house.take_news()
    with closing(open_vip()) as house:
        assert house.waiting().fresh
        drain(house)
        assert numbers(house)["add"][1] > 0
        assert [one.partition(":")[0] for one in house.take_news()] == [
            "Canvas vip does not wait for its launch any more. What stood in its way"
        ]


def test_a_launch_is_probed_again_like_other_troubles(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path
) -> None:
    """With nothing edited the launch is tried again when its probe is due, and heals by itself."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    sandbox.application(advertisers=["1002"])
    with closing(open_vip()) as house:
        drain(house)
        assert codes(house) == ["ad-account-not-consented"]
        sandbox.application(advertisers=["1001", "1002"])
        assert not house.waiting().fresh
        with writing(house.ledger.engine) as connection:
            connection.execute(update(trouble).values(next_probe_us=house.now_us()))
        assert house.waiting().fresh
        drain(house)
        assert numbers(house)["add"][1] > 0


def test_once_launched_people_enter_whatever_happens(
    open_vip: Callable[[], House], sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """After the launch a lost consent keeps people entering, and Pending."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        drain(house)
        before = numbers(house)["add"]
        sandbox.application(revoked=True)
        shop.add(Person(number) for number in range(11, 21))
        drain(house)
        after = numbers(house)["add"]
    assert after[0] > before[0]
    assert (after[1], after[3] > 0) == (before[1], True)


def test_a_lost_answer_to_the_creation_makes_no_second_audience(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path
) -> None:
    """The connection breaks after Criteo created the audience: it is searched for, and found."""
    sandbox.fault(operation="create", drop="after")
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        drain(house)
        assert numbers(house)["add"][1] > 0
    assert [one["name"] for one in sandbox.state()["segments"]] == ["Shoppers"]
    assert calls(sandbox)["create"] == 1


def test_houses_and_canvases_that_launch_at_once_make_one_audience(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path
) -> None:
    """Two processes with two canvases of the same new audience end with one."""
    write_canvas(include, "one", sync("add_one", "Shoppers"))
    write_canvas(
        include, "two", sync("add_two", "Shoppers"), sync("out_two", "Later", "remove"), sync("in_two", "Later")
    )
    houses = [open_vip() for _ in range(2)]
    for house in houses:
        house.declare()
    threads = [
        threading.Thread(target=house.drain, args=("fresh",), kwargs={"stop": threading.Event(), "max_s": 60})
        for house in houses
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert houses[0].prove() == []
    assert all(numbers(houses[0])[step][3] == 0 for step in ("add_one", "add_two", "in_two"))
    for house in houses:
        house.close()
    assert sorted(one["name"] for one in sandbox.state()["segments"]) == ["Later", "Shoppers"]


def test_who_comes_second_at_a_launch_leaves_all_audiences_to_the_first(
    ledger_url: str, sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """Two processes that start at once on several new audiences do not take one each and both give up."""
    shop.add(Person(number) for number in range(1, 11))
    write_canvas(include, "vip", sync("add_first", "First"), sync("add_second", "Second"), sync("add_third", "Third"))
    houses = [open_house(include, ledger_url, sandbox.url, shop.source, requests_per_minute=600) for _ in range(2)]
    for house in houses:
        house.declare()
    entered: list[int] = []

    def work(house: House) -> None:
        entered.append(house.drain("fresh", stop=threading.Event(), max_s=60).entered)

    threads = [threading.Thread(target=work, args=(house,)) for house in houses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for house in houses:
        house.close()
    assert sum(entered) == 9  # one of ten said no
    assert sorted(one["name"] for one in sandbox.state()["segments"]) == ["First", "Second", "Third"]


def test_who_waited_for_a_launch_reads_once_another_process_has_done_it(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path
) -> None:
    """A process that finds its canvas being launched by another may read as soon as it is, and asks Criteo nothing."""
    write_canvas(include, "vip", sync("add", "Made"))
    with closing(open_vip()) as one, closing(open_vip()) as other, one.launch.begin(threading.Event()) as launching:
        one.declare()
        (canvas,), launches = one.canvases.canvases, one.ledger.launches
        (made,) = launches.audiences("vip")
        assert launches.lease(made.audience_id, now_us=one.now_us(), lease_s=60)
        assert not launching.is_launched(canvas)
        one.ledger.give_back_audiences([made.audience_id])
        drain(other)
        before = last_call(sandbox)
        assert launching.is_launched(canvas)
        assert calls(sandbox, before) == {}


def test_a_draft_is_launched_without_an_audience_and_made_by_who_adds(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A removal may name what another canvas will create: it is launched, and creates nothing itself."""
    caplog.set_level(logging.INFO)
    write_canvas(include, "out", sync("take", "Shoppers", "remove"))
    broken = write_canvas(include, "vip", sync("add", "Shoppers"))
    good_text = broken.read_text()
    broken.write_text(good_text.replace("segments/people.sql", "segments/none.sql"))
    (include / "segments" / "none.sql").write_text("SELECT serial, person, email, maid, ads FROM nowhere")
    with closing(open_vip()) as house:
        drain(house)
        assert numbers(house)["take"][3] > 0
        assert size(sandbox, "Shoppers") is None
        assert "a draft" in caplog.text
    broken.write_text(good_text)
    with closing(open_vip()) as house:
        drain(house)
        assert size(sandbox, "Shoppers") is not None


@pytest.mark.parametrize("there", [949, 950, 999, 1_000])
def test_quota(open_vip: Callable[[], House], sandbox: Sandbox, include: Path, there: int) -> None:
    """Warned once from 950; at 1,000 a new audience is refused, with what could make room; an existing one goes on."""
    for number in range(there - 1):
        sandbox.world.new_segment(AD_ACCOUNT, f"List {number:04d}")
    sandbox.world.new_segment(AD_ACCOUNT, "Existing")
    write_canvas(include, "old", sync("keep", "Existing"))
    write_canvas(include, "vip", sync("add", "New"))
    with closing(open_vip()) as house:
        drain(house)
        assert numbers(house)["keep"][1] > 0
        assert (numbers(house)["add"][1] > 0) is (there < 1_000)
        news = " ".join(house.take_news())
        assert ("of at most 1,000 audiences" in news) is (there >= 950)
        expected = {949: [], 950: ["quota-near"], 999: ["quota-near"], 1_000: ["quota-reached"]}
        assert codes(house) == expected[there]
        if there == 1_000:
            assert "unable to create new audiences" in news
            assert "“List 0000”, “List 0001”" in news
            assert "“List 0020”" not in news
            assert " and 980 more" in news
        drain(house)
        assert house.take_news() == []


@pytest.mark.parametrize("there", [12, 1_000])
def test_a_refused_creation_names_what_nobody_syncs(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path, there: int
) -> None:
    """What people were sent to lately is no advice for making room; a cap Criteo has set lower is not called 1,000."""
    write_canvas(include, "old", sync("keep", "Existing"))
    with closing(open_vip()) as house:
        drain(house)
        assert numbers(house)["keep"][1] > 0
    for number in range(there - 1):
        sandbox.world.new_segment(AD_ACCOUNT, f"List {number:04d}")
    sandbox.rules(segment_cap=there)
    write_canvas(include, "vip", sync("add", "New"))
    with closing(open_vip()) as house:
        drain(house)
        (finding,) = from_json(house.ledger.launches.last()["vip"].findings)
    assert finding.code == "quota-reached"
    assert "unable to create new audiences" in finding.what
    assert f"it has {there:,}" in finding.what
    assert ("1,000 is the most" in finding.what) is (there == 1_000)
    assert "has not synced for 90 days: “List 0000”, " in finding.what
    assert "Existing" not in finding.what


def test_steady_state_makes_no_call_but_amendments(
    open_vip: Callable[[], House], sandbox: Sandbox, shop: Shop, include: Path
) -> None:
    """After the launch nobody searches again: later drains make PATCH and token calls only."""
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        drain(house)
    since = last_call(sandbox)
    for turn in range(1, 4):
        shop.add(Person(10 * turn + number) for number in range(1, 11))
        sandbox.advance(600)
        with closing(open_vip()) as house:
            drain(house)
            house.drain("retry", stop=threading.Event(), max_s=60)
    made = calls(sandbox, since)
    assert set(made) <= {"amend", "token"}, made
    assert made["amend"] >= 3


def with_policy(step: dict[str, Any], policy: str) -> dict[str, Any]:
    """The same step with what becomes of its people when the audience is deleted."""
    return {**step, "audience_sync": {**step["audience_sync"], "when_deleted": policy}}


@pytest.mark.parametrize("policy", ["wait", "recreate", "fail"])
def test_an_audience_deleted_at_criteo(
    open_vip: Callable[[], House], sandbox: Sandbox, shop: Shop, include: Path, policy: str
) -> None:
    """Told at once; people wait until it is restored, or go to a new one in the same drain, or are given up at once."""
    write_canvas(include, "vip", with_policy(sync("add", "Shoppers"), policy))
    with closing(open_vip()) as house:
        drain(house)
        first = numbers(house)["add"]
        (old,) = [str(one["id"]) for one in sandbox.state()["segments"]]
        sandbox.delete_segment(old)
        shop.add(Person(number) for number in range(11, 21))
        drain(house)
        entered, synced, _, pending = numbers(house)["add"]
        errored = next(one.errored for one in house.numbers() if one.step == "add")
        news = house.take_news()
        assert news[0].startswith("Trouble with audience 'Shoppers': The audience is not at Criteo any more")
        assert entered > first[0]
        if policy == "recreate":
            assert len(news) == 2
            assert pending == 0
            (new,) = [str(one["id"]) for one in sandbox.state()["segments"]]
            assert new != old
            # Earlier members are not added again: only those who were pending.
            assert size(sandbox, "Shoppers") == synced - first[1]
        else:
            assert (pending > 0, errored > 0) == (policy == "wait", policy == "fail")
            assert sandbox.state()["segments"] == []
            assert not house.ledger.open_work(now_us=house.now_us()).anything_due(Role.FRESH)
            sandbox.add_segment(AD_ACCOUNT, "Shoppers")
            with writing(house.ledger.engine) as connection:
                connection.execute(update(audience).values(resolver_until_us=0))
            drain(house)  # it is found again
            shop.add(Person(number) for number in range(21, 31))
            drain(house)
            assert numbers(house)["add"][3] == 0
            assert (size(sandbox, "Shoppers") or 0) > 0


def test_a_paused_step_is_launched_enters_and_holds(
    open_vip: Callable[[], House], sandbox: Sandbox, include: Path
) -> None:
    """People of a paused step are Pending and nothing is sent; without the pause they go out."""
    write_canvas(include, "vip", {**sync("add", "Shoppers"), "paused": True})
    with closing(open_vip()) as house:
        drain(house)
        assert numbers(house)["add"][3] > 0
        assert size(sandbox, "Shoppers") == 0
        assert not house.ledger.open_work(now_us=house.now_us()).anything_due(Role.FRESH)
    write_canvas(include, "vip", sync("add", "Shoppers"))
    with closing(open_vip()) as house:
        drain(house)
        assert numbers(house)["add"][3] == 0
        assert (size(sandbox, "Shoppers") or 0) > 0
