"""Which calls of one message must wait for which: pure, from the tools' names alone.

Calls start in block order. A call that may write (`bash`, `write`, `edit`) waits for every earlier call in the
sandbox; one that only reads (`read`, `glob`, `grep`) waits for the earlier ones that may write, so that it sees what
they wrote, and runs beside other reads. A call outside the sandbox (a custom tool) waits for none and delays none.
"""

from collections.abc import Sequence
from typing import Final

WRITERS: Final = frozenset({"bash", "write", "edit"})
READERS: Final = frozenset({"read", "glob", "grep"})


def waits(names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """For each call, the indices of the calls that must have ended before it starts.

    An answer depends only on the calls before it, so it holds already while later calls are still streaming in.
    """
    answer: list[tuple[int, ...]] = []
    for index, name in enumerate(names):
        earlier = range(index)
        if name in WRITERS:
            answer.append(tuple(i for i in earlier if names[i] in WRITERS or names[i] in READERS))
        elif name in READERS:
            answer.append(tuple(i for i in earlier if names[i] in WRITERS))
        else:
            answer.append(())
    return tuple(answer)
