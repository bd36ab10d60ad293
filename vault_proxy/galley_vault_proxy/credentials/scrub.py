"""Answers of foreign servers as they may be shown to people: without what is secret in them, and cut short. Pure."""

import re
from collections.abc import Collection
from typing import Final

from galley_vault_proxy.credentials.shapes import HttpResponseShown
from galley_vault_proxy.redact import MARK, Patterns
from galley_vault_proxy.secret import Secret

MAX_SHOWN: Final = 4096
_MAX_READ: Final = 64 * 1024
# What may hold a secret that we do not know: a token that came in an answer that was otherwise wrong.
_NAMED: Final = re.compile(
    r"""((?:token|secret|password|passwd|authorization|api_?key|assertion|cookie)\w{0,32}["']?\s{0,8}[:=]\s{0,8}["']?)"""
    r"""(?:(?:bearer|basic)\s{1,8})?[^\s"'&,;<>}]{6,}""",
    re.IGNORECASE,
)
_TYPED: Final = re.compile(
    r"\b(?:bearer|basic)\s{1,8}[\w.~+/=-]{8,}|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?|\b(?:gh[pousr]|github_pat|xox[abp]|sk|hv[sb])"
    r"[-_.][\w-]{10,}",
    re.IGNORECASE,
)


def scrubbed(status: int, content_type: str, body: bytes, secrets: Collection[Secret]) -> HttpResponseShown:
    """Redacted before it is cut: half a secret would not be found any more."""
    patterns = Patterns(secrets)
    whole = patterns.redact(body[:_MAX_READ]).decode("utf-8", "replace")
    mark = MARK.decode()
    # A body may be made to take long to search: only the part is searched that could be shown.
    text = _TYPED.sub(mark, _NAMED.sub(lambda found: found[1] + mark, whole[: 2 * MAX_SHOWN]))
    kind = patterns.redact(content_type.encode("utf-8", "replace")).decode("utf-8", "replace")
    return HttpResponseShown(
        status_code=status,
        content_type=kind[:256],
        body=text[:MAX_SHOWN],
        body_truncated=len(text) > MAX_SHOWN or len(whole) > 2 * MAX_SHOWN or len(body) > _MAX_READ,
    )
