"""Which calls of one message wait for which."""

import itertools

import pytest
from galley_server.hands.order import waits

TOOLS = ("bash", "read", "write", "edit", "glob", "grep", "lookup_order")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ()),
        (["bash"], ((),)),
        (["bash", "bash", "bash"], ((), (0,), (0, 1))),
        (["read", "glob", "grep"], ((), (), ())),
        (["write", "read"], ((), (0,))),
        (["read", "write"], ((), (0,))),
        (["read", "edit", "grep"], ((), (0,), (1,))),
        (["write", "read", "read", "bash", "glob"], ((), (0,), (0,), (0, 1, 2), (0, 3))),
        (["lookup_order", "bash", "lookup_order", "read"], ((), (), (), (1,))),
        (["bash", "web_search", "write"], ((), (), (0,))),
    ],
)
def test_a_call_waits_for_what_it_may_depend_on(names: list[str], expected: tuple[tuple[int, ...], ...]) -> None:
    assert waits(names) == expected


def test_two_calls_of_which_one_may_write_never_run_side_by_side() -> None:
    for first, second in itertools.product(("bash", "write", "edit"), TOOLS[:-1]):
        assert waits([first, second])[1] == (0,)
        assert waits([second, first])[1] == (0,)


def test_an_answer_holds_while_later_calls_still_stream_in() -> None:
    for names in itertools.product(TOOLS, repeat=3):
        assert waits(names)[:2] == waits(names[:2])
