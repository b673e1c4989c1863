"""Canvases change while people are in flight."""

from __future__ import annotations

from sqlalchemy import func, select

from criteo_provider.core.batching import pack
from criteo_provider.core.identifiers import Form, encode
from criteo_provider.core.model import Metric, Operation, SealedPeople
from criteo_provider.core.outcome import Busy, Unavailable
from criteo_provider.store.schema import audience, metric, step_version
from criteo_provider.store.schema import step as step_table
from tests.world import World, canvas, crowd, digest, step

DOWN = Unavailable("http-503", "Criteo's servers have trouble.", maybe_applied=False)
BOTH = ("email", "madid")


def two_fields(numbers: range) -> SealedPeople:
    """People with an e-mail digest and a device id each."""
    return pack(
        [f"user-{number}" for number in numbers],
        {
            (Form.EMAIL_SHA256.value, None): [digest(number) for number in numbers],
            (Form.MADID.value, None): [digest(number)[:16] for number in numbers],
        },
        {"email": [None for _ in numbers], "madid": [None for _ in numbers]},
        lambda values, form: encode(values, Form(form)),
    )


def audience_named(world: World, name: str) -> int:
    """The ledger's id of an audience."""
    with world.engine.connect() as connection:
        return connection.execute(select(audience.c.id).where(audience.c.name == name)).scalar_one()


def forms_sent_until_dry(world: World) -> set[str]:
    """Send all there is; return the identifier forms that went out."""
    forms: set[str] = set()
    while (claimed := world.claim()) is not None:
        forms.update(one.form for one in claimed.parts)
        world.settle(claimed)
    return forms


def test_declaring_the_same_files_again_changes_nothing(world: World) -> None:
    """The same declaration twice gives the same plans and no second version."""
    files = canvas("vip", step("add"), step("later", position=1, delay_s=60, is_last=True))
    world.declare(files)
    first = world.plans
    world.declare(files)
    assert world.plans == first
    with world.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(step_version)).scalar_one() == 2


def test_a_changed_audience_applies_to_new_entries(world: World) -> None:
    """Who entered before goes to the audience of then; who enters after goes to the new one."""
    world.declare(canvas("vip", step("add", audience="Old")))
    world.enter("vip", crowd(range(3)))
    world.declare(canvas("vip", step("add", audience="New")))
    world.enter("vip", crowd(range(10, 14)))
    sent = {}
    while (claimed := world.claim()) is not None:
        sent[claimed.audience_id] = claimed.identifiers
        world.settle(claimed)
    assert sent == {audience_named(world, "Old"): 3, audience_named(world, "New"): 4}
    assert world.numbers("add") == (7, 7, 0, 0, 0)


def test_a_changed_operation_applies_to_new_entries(world: World) -> None:
    """Who entered as an add is added; only who enters after the change is removed."""
    world.declare(canvas("vip", step("sync")))
    world.enter("vip", crowd(range(3)))
    world.pass_time(1)
    world.declare(canvas("vip", step("sync", Operation.REMOVE)))
    world.enter("vip", crowd(range(10, 12)))
    sent = []
    while (claimed := world.claim()) is not None:
        sent.append((claimed.operation, claimed.identifiers))
        world.settle(claimed)
    assert sent == [(Operation.ADD, 3), (Operation.REMOVE, 2)]


def test_a_removed_field_closes_what_waits(world: World) -> None:
    """After a field is given up nothing of it is sent; people live on by their other identifiers."""
    world.declare(canvas("vip", step("add", fields=BOTH)))
    world.enter("vip", two_fields(range(3)))
    world.declare(canvas("vip", step("add", fields=("email",))))
    assert forms_sent_until_dry(world) == {Form.EMAIL_SHA256}
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_people_with_no_field_left_are_not_synced(world: World) -> None:
    """Whose only open identifier is of a field given up is Not Synced, and told so."""
    world.declare(canvas("vip", step("add", fields=("madid",))))
    world.enter("vip", two_fields(range(3)))
    world.declare(canvas("vip", step("add", fields=("email",))))
    assert world.claim() is None
    assert world.numbers("add") == (3, 0, 3, 0, 0)
    told = world.ledger.numbers(now_us=world.now_us)[0].not_synced_reasons
    assert told == {"field no longer chosen": 3}


def test_a_removed_field_is_closed_for_people_behind_a_delay(world: World) -> None:
    """A field given up while a delay runs is not sent when the delay is over."""
    world.declare(canvas("vip", step("add", fields=BOTH, delay_s=60)))
    world.enter("vip", two_fields(range(3)))
    world.declare(canvas("vip", step("add", fields=("email",), delay_s=60)))
    world.pass_time(61)
    assert world.ledger.enter_due_steps(now_us=world.now_us) == 1
    assert forms_sent_until_dry(world) == {Form.EMAIL_SHA256}


def test_a_field_removed_while_its_request_flies_is_not_sent_again(world: World) -> None:
    """A request in flight at the edit is not retried with the removed field, however it ends."""
    for outcome in (DOWN, Busy(5), None):
        world.declare(canvas("vip", step("add", fields=("madid",))))
        world.enter("vip", two_fields(range(3)))
        flying = world.claim()
        assert flying is not None
        world.declare(canvas("vip", step("add", fields=("email",))))
        if outcome is None:
            world.pass_time(121)  # its owner died
        else:
            world.settle(flying, outcome)
        world.pass_time(60)
        assert world.claim() is None
        world.ledger.sweep(now_us=world.now_us)
        assert world.claim() is None
    assert world.numbers("add")[2:4] == (9, 0)


def test_an_entry_under_yesterdays_files_sends_no_removed_field(world: World) -> None:
    """A process that has not seen the edit yet seals people; the removed field is not sent all the same."""
    world.declare(canvas("vip", step("add", fields=BOTH)))
    yesterday = world.plans
    world.declare(canvas("vip", step("add", fields=("email",))))
    world.plans = yesterday
    world.enter("vip", two_fields(range(3)))
    assert forms_sent_until_dry(world) == {Form.EMAIL_SHA256}


def test_a_removed_step_holds_its_people_until_it_is_restored(world: World) -> None:
    """While a step is not declared nobody of it is sent or given up; restored, they go out."""
    files = canvas("vip", step("add"), step("also", position=1, audience="Others"))
    world.declare(files)
    world.enter("vip", crowd(range(3)))
    world.declare(canvas("vip", step("add")))
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert world.claim() is None
    assert not next(one for one in world.ledger.numbers(now_us=world.now_us) if one.step == "also").declared
    world.pass_time(20 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("also") == (3, 0, 0, 3, 0)
    world.declare(files)
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert world.numbers("also") == (3, 3, 0, 0, 0)


def test_time_in_a_paused_step_does_not_use_up_patience(world: World) -> None:
    """People tried once, then paused for a day, still have their window when the step is restored."""
    files = canvas("vip", step("add"))
    world.declare(files)
    world.enter("vip", crowd(range(3)))
    failing = world.claim()
    assert failing is not None
    world.settle(failing, DOWN)
    world.pass_time(60)
    world.declare()
    world.pass_time(24 * 3600)
    world.declare(files)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (3, 0, 0, 3, 0)
    again = world.claim()
    assert again is not None
    world.settle(again)
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_a_claim_given_back_unsent_starts_no_clock(world: World) -> None:
    """Waiting for the pacer is no attempt: the window of people who were never sent has not begun."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    unsent = world.claim()
    assert unsent is not None
    world.ledger.release(unsent, now_us=world.now_us)
    world.pass_time(14 * 3600)
    world.ledger.sweep(now_us=world.now_us)
    assert world.numbers("add") == (3, 0, 0, 3, 0)
    claimed = world.claim()
    assert claimed is not None
    world.settle(claimed)
    assert world.numbers("add") == (3, 3, 0, 0, 0)


def test_dropping_a_paused_step_gives_its_people_up(world: World) -> None:
    """A person may drop what a removed step holds: Not Synced, dropped by a person; a declared step is not dropped."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    assert world.ledger.drop("vip", "add", now_us=world.now_us) == 0
    world.declare()
    assert world.ledger.drop("vip", "add", now_us=world.now_us) == 1
    assert world.numbers("add") == (3, 0, 3, 0, 0)
    assert world.ledger.numbers(now_us=world.now_us)[0].not_synced_reasons == {"dropped by a person": 3}


def test_a_dropped_step_is_dropped_for_who_was_in_flight_too(world: World) -> None:
    """Whoever was in a request when their step was dropped is not held for ever when that request fails."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    flying = world.claim()
    assert flying is not None
    world.declare()
    world.ledger.drop("vip", "add", now_us=world.now_us)
    world.settle(flying, DOWN)
    assert world.numbers("add") == (3, 0, 3, 0, 0)


def test_a_removed_step_holds_people_whose_delay_runs(world: World) -> None:
    """Nobody reaches a step that is not declared; restored, those whose delay is over reach it."""
    files = canvas("vip", step("add", is_last=False), step("later", position=1, delay_s=60))
    world.declare(files)
    world.enter("vip", crowd(range(3)))
    world.declare(canvas("vip", step("add")))
    world.pass_time(61)
    assert world.ledger.enter_due_steps(now_us=world.now_us) == 0
    world.declare(files)
    assert world.ledger.enter_due_steps(now_us=world.now_us) == 1
    assert world.numbers("later")[0] == 3


def test_the_people_of_a_broken_file_go_on(world: World) -> None:
    """A file that cannot be read now pauses nobody."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    world.ledger.declare([], broken={"vip"}, now_us=world.now_us)
    assert world.claim() is not None


def test_a_step_added_behind_the_last_leaves_the_past_as_it_was(world: World) -> None:
    """Who left the canvas at its last step has exited, also after a step is added behind it: as the metric rows say."""
    world.declare(canvas("vip", step("add")))
    world.enter("vip", crowd(range(3)))
    world.declare(canvas("vip", step("add", is_last=False), step("later", position=1, delay_s=60)))
    world.enter("vip", crowd(range(10, 14)))
    read = next(one for one in world.ledger.numbers(now_us=world.now_us) if one.step == "add")
    query = select(metric.c.metric, func.sum(metric.c.value)).join(step_table, step_table.c.id == metric.c.step_id)
    with world.engine.connect() as connection:
        told = dict(connection.execute(query.where(step_table.c.name == "add").group_by(metric.c.metric)).all())
    assert (read.proceeded, read.exited) == (told[Metric.PROCEEDED], told[Metric.EXITED]) == (4, 3)
