"""What an engine may answer instead of doing it. Inside this driver only: none of these leaves it.

SandboxError
├── Missing    the engine knows no such thing
└── Conflict   the thing is not in a state for that
"""

from galley_sandbox.errors import SandboxError

NO_ENGINE = "install Docker and start it, and make sure that this user may use its socket"


class Missing(SandboxError):
    """The engine knows no such thing."""


class Conflict(SandboxError):
    """The engine cannot do that to the thing as it is now."""
