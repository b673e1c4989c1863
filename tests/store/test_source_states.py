"""What wants to be looked at a second time starts a run of its own only when nothing else does in time."""

from __future__ import annotations

import pytest

from criteo_provider.store.source_states import SourceStates

DUE_US = 100_000_000


@pytest.mark.parametrize(
    ("last", "late_s", "presses"), [(True, 14.9, False), (True, 15, True), (False, 59.9, False), (False, 60, True)]
)
def test_a_second_look_presses_when_its_grace_is_over(last: bool, late_s: float, presses: bool) -> None:
    """The last look of a stretch has a shorter one; of a source without looks nothing presses."""
    states = SourceStates(DUE_US + round(late_s * 1e6), {}, {}, frozenset(), {"vip": [(last, DUE_US)]})
    assert states.look_presses("vip", grace_s=60, last_grace_s=15) is presses
    assert not states.look_presses("other", grace_s=60, last_grace_s=15)


def test_a_look_without_grace_presses_at_once() -> None:
    """As those of opt-out feeds do."""
    states = SourceStates(DUE_US, {}, {}, frozenset(), {"feed": [(True, DUE_US)]})
    assert states.look_presses("feed", grace_s=0, last_grace_s=0)
