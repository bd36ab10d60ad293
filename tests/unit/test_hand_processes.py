"""The process tree: who descends from whom, and who slipped away."""

import os
import subprocess
import sys

from galley_sandbox.hand.processes import descendants, parents, strays

TREE = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20, 30: 1, 31: 30, 40: 0}


def test_descendants_are_found_at_any_depth() -> None:
    assert descendants(TREE, [10]) == {11, 12}
    assert descendants(TREE, [10, 20]) == {11, 12, 21}
    assert descendants(TREE, [99]) == set()


def test_strays_are_what_the_hand_never_started_with_all_below() -> None:
    assert strays(TREE, {10, 20}) == {30, 31}
    assert strays(TREE, {10, 20, 30}) == set()


def test_what_entered_from_outside_is_no_stray() -> None:
    assert 40 not in strays(TREE, set())


def test_the_real_table_names_parents() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert parents()[child.pid] == os.getpid()
