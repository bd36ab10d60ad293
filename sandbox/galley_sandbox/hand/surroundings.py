"""The variables that commands are given beside the image's own; they may change while shells run."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from galley_sandbox.hand.ledger import Refused

if TYPE_CHECKING:
    from typing import Any

MAX_VARIABLES = 256
MAX_VALUE = 128 * 1024 - 256  # the kernel's bound on one string of an environment, and room for the name
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


class Surroundings:
    def __init__(self) -> None:
        self.variables: dict[str, str] = {}

    def change(self, wanted: Any) -> None:
        """Set these variables, take away those that are null. Raises Refused, and then nothing has changed."""
        if not isinstance(wanted, dict) or len(wanted) > MAX_VARIABLES:
            raise Refused(f"the variables are an object of at most {MAX_VARIABLES} strings")
        variables = dict(self.variables)
        for name, value in wanted.items():
            if not _NAME.match(name):
                raise Refused(f"{name!r} is not the name of a variable")
            if value is None:
                variables.pop(name, None)
            elif not isinstance(value, str) or "\0" in value or len(value.encode("utf-8", "replace")) > MAX_VALUE:
                raise Refused(f"the value of {name} is no text that an environment can hold")
            else:
                variables[name] = value
        if len(variables) > MAX_VARIABLES:
            raise Refused(f"there are more than {MAX_VARIABLES} variables")
        self.variables = variables


def update(known: dict[str, str], wanted: dict[str, str]) -> str:
    """What a running bash has to be told; what it was told before and is the same, it keeps as it made it."""
    lines = [f"builtin unset -v {name}\n" for name in known if name not in wanted]
    lines += [
        f"builtin export {name}={shlex.quote(value)}\n" for name, value in wanted.items() if known.get(name) != value
    ]
    return "".join(lines)
