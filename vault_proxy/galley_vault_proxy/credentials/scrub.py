"""Answers of foreign servers as they may be shown to people: without what is secret in them, and cut short. Pure."""

import re
from collections.abc import Collection
from typing import Final

from galley_vault_proxy.credentials.shapes import HttpResponseShown
from galley_vault_proxy.redact import MARK, Patterns
from galley_vault_proxy.secret import Secret

MAX_SHOWN: Final = 4096
# What may hold a secret that we do not know: a token that came in an answer that was otherwise wrong.
_NAMED: Final = re.compile(
    r"""((?:token|secret|password|passwd|authorization|api_?key|assertion|code|cookie)\w*["']?\s*[:=]\s*["']?)"""
    r"""(?:(?:bearer|basic)\s+)?[^\s"'&,;<>}]{6,}""",
    re.IGNORECASE,
)
_TYPED: Final = re.compile(
    r"\b(?:bearer|basic)\s+[\w.~+/=-]{8,}|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?|\b(?:gh[pousr]|github_pat|xox[abp]|sk|hv[sb])"
    r"[-_.][\w-]{10,}",
    re.IGNORECASE,
)


def scrubbed(status: int, content_type: str, body: bytes, secrets: Collection[Secret]) -> HttpResponseShown:
    """Redacted as a whole before it is cut: half a secret would not be found any more."""
    patterns = Patterns(secrets)
    text = patterns.redact(body).decode("utf-8", "replace")
    mark = MARK.decode()
    text = _TYPED.sub(mark, _NAMED.sub(lambda found: found[1] + mark, text))
    kind = patterns.redact(content_type.encode("utf-8", "replace")).decode("utf-8", "replace")
    return HttpResponseShown(
        status_code=status,
        content_type=kind[:256],
        body=text[:MAX_SHOWN],
        body_truncated=len(text) > MAX_SHOWN,
    )
