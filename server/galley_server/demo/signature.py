"""Signs what the scripted model thought, so that a client which changed it is found out.

The key is fixed and public: this proves that blocks come back unchanged, also after a restart of the scripted model. It
guards nothing.
"""

import base64
import hmac
import secrets
from typing import Final

from galley_server.demo.transcript import RedactedThinking, Thinking
from galley_server.ids import new_id

_KEY: Final = b"galley scripted model"
_NONCE: Final = 12
_THOUGHT, _NO_THOUGHT = "toolu_T", "toolu_N"


def sign(thinking: str) -> str:
    return base64.b64encode(_digest(thinking.encode())).decode()


def signed(block: Thinking) -> bool:
    return hmac.compare_digest(block.signature.encode(), sign(block.thinking).encode())


def redacted() -> str:
    nonce = secrets.token_bytes(_NONCE)
    return base64.b64encode(nonce + _digest(nonce)).decode()


def issued(block: RedactedThinking) -> bool:
    try:
        data = base64.b64decode(block.data, validate=True)
    except ValueError:
        return False
    return hmac.compare_digest(data[_NONCE:], _digest(data[:_NONCE]))


def tool_use_id(*, thought: bool) -> str:
    """A new id that says whether thinking came before the call: the server keeps no memory of its replies."""
    return (_THOUGHT if thought else _NO_THOUGHT) + new_id("toolu").removeprefix("toolu_")


def thought(identity: str) -> bool:
    return identity.startswith(_THOUGHT)


def _digest(data: bytes) -> bytes:
    return hmac.digest(_KEY, data, "sha256")
