"""The hand's clock stands still while the sandbox is frozen."""

from galley_sandbox.hand.loop import LONGEST_TURN, LONGEST_WAIT, Clock


def test_time_passes() -> None:
    clock = Clock(100.0)
    clock.advance(101.5)
    clock.advance(103.0)
    assert clock.now == 3.0


def test_a_freeze_counts_against_nothing() -> None:
    clock = Clock(100.0)
    clock.advance(101.0)
    clock.advance(101.0 + 3600)
    clock.advance(101.0 + 3601)
    assert clock.now == 2.0


def test_the_longest_wait_is_never_taken_for_a_freeze() -> None:
    assert LONGEST_WAIT < LONGEST_TURN
