"""Everything that can go wrong between the server and a sandbox.

SandboxError
├── SandboxUnavailable   no sandbox can be started here; `fix` says what to do about it
├── SandboxLost          the hand or the stream to it is gone: what was under way may or may not have run
│   └── HandMisbehaved   the hand broke the protocol, so nothing it says is believed any more
├── CallRefused          the hand turned a call down before anything ran
└── FileRefused          a file could not be put into or taken out of the sandbox
"""


class SandboxError(Exception):
    """The root of this package's errors."""


class SandboxUnavailable(SandboxError):
    """No sandbox can be started on this machine as it is; nothing ran."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message, fix)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} To fix it: {self.fix}"


class SandboxLost(SandboxError):
    """The hand, or the stream to it, is gone. A call under way may have run: connect again and ask the hand."""


class HandMisbehaved(SandboxLost):
    """The hand sent something the protocol does not allow."""


class CallRefused(SandboxError):
    """The hand refused a call before it ran anything."""


class FileRefused(SandboxError):
    """A file could not be written to or read from the sandbox."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
