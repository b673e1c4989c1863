"""Withdrawn consent in the ledger: nobody who opted out is sent, who was sent is removed, and the numbers add up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from criteo_provider.core.batching import pack
from criteo_provider.core.consent import Withdrawal, key_marks
from criteo_provider.core.identifiers import Form, encode
from criteo_provider.core.model import Operation, SealedPeople
from criteo_provider.core.outcome import Unavailable
from criteo_provider.store import opt_outs, people_index, withdraw
from criteo_provider.store.engine import reading, writing
from tests.store.opt_out_world import FEED, OptOutWorld, by_email, by_key
from tests.world import canvas, crowd, digest, step


@pytest.fixture
def world(ledger_url: str) -> Iterator[OptOutWorld]:
    world = OptOutWorld(ledger_url)
    yield world
    world.close()


def test_a_pending_person_who_opts_out_is_not_sent_any_more(world: OptOutWorld) -> None:
    """At the sixth hour of retries whoever has opted out meanwhile is left out, and counts as Not Synced."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1, 2, 3]))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed, Unavailable("503", "Criteo is away."))
    world.pass_time(6 * 3600)
    world.tell(*by_key(2), follow=False)
    again = world.claim()
    assert again is not None
    assert set(world.sent(again)) == {digest(1), digest(3)}
    world.accept(again)
    assert world.numbers("add") == (3, 2, 1, 0, 0)
    (numbers,) = (one for one in world.ledger.numbers(now_us=world.now_us) if one.step == "add")
    assert numbers.not_synced_reasons == {"consent withdrawn": 1}


def test_pending_people_are_closed_without_an_attempt(world: OptOutWorld) -> None:
    """While nothing can be sent for hours, an opt-out still makes its person Not Synced within one look."""
    world.declare(canvas("vip", step("add")), resolve=False)
    world.enter("vip", crowd([1, 2]))
    world.tell(*by_email(1))
    assert world.numbers("add") == (2, 0, 1, 1, 0)


def test_a_synced_person_who_opts_out_is_removed_everywhere(world: OptOutWorld) -> None:
    """Each audience this ledger added somebody to gets a removal, with the identifiers that were sent."""
    world.declare(
        canvas("vip", step("add"), step("add_too", audience="Others", position=1)), canvas("quiet", step("add_quiet"))
    )
    world.enter("vip", crowd([1, 2, 3]))
    world.enter("quiet", crowd([3, 4]))
    world.drain()
    assert world.members() == {digest(n) for n in (1, 2, 3, 4)}
    world.tell(*by_key(3))
    world.drain()
    assert world.members() == {digest(n) for n in (1, 2, 4)}
    removed = [one for one in world.ledger.numbers(now_us=world.now_us) if one.canvas == FEED]
    assert sorted((one.audience, one.operation) for one in removed) == [("Others", "remove"), ("Shoppers", "remove")]
    assert all(one.entered == one.synced + one.not_synced and one.pending == 0 for one in removed)
    assert world.ledger.opt_outs.counts() == {FEED: (1, 0)}


def test_an_identifier_names_its_person(world: OptOutWorld) -> None:
    """An address that opts out takes everybody who was sent with it out of the list."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1, 2]))
    world.drain()
    world.tell(*by_email(1))
    world.drain()
    assert world.members() == {digest(2)}


def test_who_enters_after_opting_out_is_counted_and_not_sent(world: OptOutWorld) -> None:
    """A person known to have opted out enters, is Not Synced, and leaves the ledger for nowhere."""
    world.declare(canvas("vip", step("add")))
    world.tell(*by_key(1))
    world.enter("vip", crowd([1]))
    assert world.claim() is None
    assert world.numbers("add") == (1, 0, 1, 0, 0)


def test_a_taken_back_opt_out_lets_later_entries_in_only(world: OptOutWorld) -> None:
    """Who entered before the opt-out was taken back stays out; an entry after it is sent, and stays in the list."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1, 2]))
    world.drain()
    world.tell(*by_key(1))
    world.enter("vip", crowd([1]))
    world.tell(*by_key(1, taken_back=True))
    world.drain()
    assert world.members() == {digest(2)}
    world.pass_time(1)
    world.enter("vip", crowd([1]))
    world.drain()
    assert world.members() == {digest(1), digest(2)}
    assert world.ledger.opt_outs.counts() == {FEED: (0, 1)}


def test_a_removal_that_comes_late_does_not_undo_a_later_entry(world: OptOutWorld) -> None:
    """Followed only after opt-out, taking back and entering anew, the removal is of the first entry alone."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.drain()
    world.tell(*by_key(1), follow=False)
    world.tell(*by_key(1, taken_back=True), follow=False)
    world.pass_time(1)
    world.enter("vip", crowd([1]))
    world.drain()
    world.tell()
    world.drain()
    assert world.members() == {digest(1)}


def test_in_flight_when_the_opt_out_came(world: OptOutWorld) -> None:
    """Whoever is on the way to Criteo while opting out is removed behind the request in flight."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1, 2]))
    flying = world.claim()
    assert flying is not None
    world.tell(*by_key(2))
    assert world.claim() is None  # a change of sign waits for what is in flight
    world.accept(flying)
    assert world.members() == {digest(1), digest(2)}
    world.drain()
    assert world.members() == {digest(1)}


def test_a_delayed_step_of_somebody_who_opted_out_sends_nobody(world: OptOutWorld) -> None:
    """A step reached after the opt-out counts its person as Not Synced the moment it is reached."""
    world.declare(canvas("vip", step("add", delay_s=3600)))
    world.enter("vip", crowd([1, 2]))
    world.tell(*by_key(1))
    world.pass_time(3600)
    world.ledger.enter_due_steps(now_us=world.now_us)
    assert world.numbers("add") == (2, 0, 1, 1, 0)
    world.drain()
    assert world.members() == {digest(2)}


def test_removals_are_never_held_back(world: OptOutWorld) -> None:
    """A pending removal of somebody who opts out is still sent."""
    world.declare(canvas("stop", step("remove", Operation.REMOVE)))
    world.enter("stop", crowd([1]))
    world.tell(*by_key(1))
    claimed = world.claim()
    assert claimed is not None
    assert world.sent(claimed) == [digest(1)]
    world.accept(claimed)


def test_a_removal_does_not_give_way_to_an_add_whose_person_opts_out(world: OptOutWorld) -> None:
    """An address two users share leaves the list with the first, though the second had come before the removal's retry.

    The second opts out before anybody has sent the add: then nothing but the removal is left of what was meant.
    """
    world.declare(canvas("vip", step("add")), canvas("stop", step("remove", Operation.REMOVE)))
    world.enter("vip", crowd([1]))
    world.drain()
    world.pass_time(1)
    world.enter("stop", crowd([1]))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, Unavailable("503", "Criteo is away."))
    world.pass_time(1)
    world.enter("vip", replace(crowd([1]), user_keys=("another-user",)))
    world.pass_time(60)
    removal = world.claim_retry()
    assert removal is not None
    assert removal.operation is Operation.REMOVE
    world.tell(Withdrawal("user_key", key_marks(["another-user"])[0]))
    world.accept(removal)
    world.drain()
    assert world.members() == set()
    assert world.numbers("remove") == (1, 1, 0, 0, 0)


def test_a_removal_tried_again_gives_way_to_an_add_that_was_sent(world: OptOutWorld) -> None:
    """Who came back while a removal failed stays in the list: the removal is superseded once the add was sent."""
    world.declare(canvas("vip", step("add")), canvas("stop", step("remove", Operation.REMOVE)))
    world.enter("stop", crowd([1, 2]))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, Unavailable("503", "Criteo is away.", maybe_applied=False))
    world.pass_time(0.1)
    world.enter("vip", crowd([1]))
    sent = world.claim()
    assert sent is not None
    assert sent.operation is Operation.ADD
    world.accept(sent)
    world.pass_time(60)
    world.drain()
    assert world.members() == {digest(1)}
    assert world.numbers("remove") == (2, 1, 1, 0, 0)


def test_an_opt_out_of_one_canvas_leaves_the_others_alone(world: OptOutWorld) -> None:
    """A feed for one canvas holds back and removes what that canvas sent, and nothing else."""
    world.declare_feed(("quiet",))
    world.declare(canvas("vip", step("add")), canvas("quiet", step("add_quiet", audience="Quiet")))
    world.enter("vip", crowd([1]))
    world.enter("quiet", crowd([1]))
    world.drain()
    world.tell(*by_key(1))
    world.drain()
    assert sorted(map(len, world.lists.values())) == [0, 1]


def test_a_feed_that_is_gone_does_not_give_consent_back(world: OptOutWorld) -> None:
    """Removing a feed's file stops nothing: its opt-outs hold, and its removals go on."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.drain()
    world.tell(*by_key(1))
    world.ledger.opt_outs.declare([], now_us=world.now_us)
    world.declare(canvas("vip", step("add")))
    world.drain()
    assert world.members() == set()
    world.enter("vip", crowd([1]))
    assert world.claim() is None


def test_telling_the_same_twice_changes_nothing(world: OptOutWorld) -> None:
    """A feed that is read anew adds no opt-out and no removal."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.drain()
    for _ in range(2):
        world.tell(*by_key(1), *by_key(1))
        world.drain()
    assert world.ledger.opt_outs.counts() == {FEED: (1, 0)}
    (removal,) = (one for one in world.ledger.numbers(now_us=world.now_us) if one.canvas == FEED)
    assert (removal.entered, removal.synced) == (1, 1)


def test_two_followers_seal_each_removal_once(world: OptOutWorld) -> None:
    """A process that finds its stretch followed by another writes nothing."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd([1]))
    world.drain()
    world.tell(*by_key(1), follow=False)
    with reading(world.engine) as connection:
        stretch = withdraw.next_stretch(connection)
    assert stretch is not None
    found = []
    for _ in range(2):
        with writing(world.engine) as connection:
            found.append(withdraw.follow(connection, stretch, now_us=world.now_us))
    assert found == [1, None]
    assert not world.ledger.opt_outs.is_unfinished()
    world.drain()


def test_many_names_pass_the_sieve(world: OptOutWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many people are asked about at once the sieve finds exactly whom a look-up finds, old and new opt-outs."""
    monkeypatch.setattr(opt_outs, "FEW", 0)
    world.declare(canvas("vip", step("add")))
    world.tell(*by_email(*range(0, 300, 3)))
    for first in (0, 150):
        world.tell(*by_key(first + 1))
        world.enter("vip", crowd(range(first, first + 150)))
        world.drain()
    assert world.members() == {digest(n) for n in range(300) if n % 3 and n not in (1, 151)}


@pytest.mark.parametrize("few", [0, 200], ids=["all chunks are read", "the index is asked"])
def test_the_index_of_people_leaves_few_chunks_to_be_read(
    world: OptOutWorld, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """A few opt-outs are looked for where the index says, and in what is not indexed yet; the result is the same."""
    monkeypatch.setattr(people_index, "SEGMENT_PEOPLE", 6)
    monkeypatch.setattr(people_index, "_SETTLED_US", -(10**16))
    monkeypatch.setattr(withdraw, "FEW", few)
    world.declare(canvas("vip", step("add")))
    for first in range(0, 60, 3):
        world.enter("vip", crowd(range(first, first + 3)))
    world.drain()
    while world.ledger.keeping.index_more():
        pass
    world.enter("vip", crowd([60, 61]))  # behind the index
    world.enter("vip", crowd([4, 62]))  # somebody indexed enters again
    world.drain()
    world.tell(*by_key(4, 60), *by_email(25), follow=False)
    with reading(world.engine) as connection:
        chunk_ids, _ = withdraw.chunks_after(connection, 0, 100, withdraw._skipping(connection, 0, 3))
        assert chunk_ids == ([2, 9, 21, 22] if few else list(range(1, 23)))
    while world.ledger.opt_outs.follow(now_us=world.now_us):
        pass
    world.drain()
    assert world.members() == {digest(n) for n in range(63)} - {digest(n) for n in (4, 25, 60)}


@pytest.mark.parametrize("followed", [True, False])
def test_an_add_of_who_has_opted_out_overtakes_no_removal(world: OptOutWorld, followed: bool) -> None:
    """Two users share an address: one leaves, the other enters and opts out before a retry; it does not stay."""
    world.declare(canvas("in", step("add")), canvas("out", step("remove", Operation.REMOVE)))
    world.enter("in", crowd([1]))
    world.drain()
    assert world.members() == {digest(1)}
    world.pass_time(1)
    world.enter("out", crowd([1]))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False))
    world.pass_time(1)
    world.enter("in", shared([(2, 1)]))
    world.tell(*by_key(2), follow=followed)
    world.pass_time(3600)
    world.drain()
    assert world.members() == set()
    assert world.numbers("remove") == (1, 1, 0, 0, 0)


def shared(told: Sequence[tuple[int, int]]) -> SealedPeople:
    """People of these numbers, each with the address of another number."""
    return pack(
        [f"user-{number}" for number, _ in told],
        {("email_sha256", None): [digest(address) for _, address in told]},
        {"email": [None] * len(told)},
        lambda values, form: encode(values, Form(form)),
    )
