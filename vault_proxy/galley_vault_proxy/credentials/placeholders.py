"""What stands in a sandbox's environment in place of a secret. No I/O here.

Libraries look at a key before they use it (`ghp_` and 36 characters, three parts with dots, `AKIA`), so a placeholder
has the format of the real thing. It holds nothing of it: prefix and lengths come from the table, the rest is derived
from a seed of the credential's own and the session, so that one session's placeholder means nothing in another.
"""

import base64
import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

_UPPER: Final = string.ascii_uppercase
_LETTERS: Final = string.ascii_letters
_ALNUM: Final = _LETTERS + string.digits
_ALPHABETS: Final = {
    "alnum": _ALNUM,
    "url": _ALNUM + "-_",
    "hex": "0123456789abcdef",
    "HEX": "0123456789ABCDEF",
    "base32": _UPPER + "234567",
    "lower": string.ascii_lowercase + string.digits,
    "digit": string.digits,
    # The last character of 32 bytes in base64 carries 4 bits; a strict decoder refuses others.
    "tail": "AEIMQUYcgkosw048",
}
_SLOT: Final = re.compile(r"\{(\w+):(\d+)\}")

# Name, what a secret of the format looks like, and the template of its placeholder. The first that fits is taken.
_FORMATS: Final = (
    ("anthropic", r"sk-ant-(api|admin|oat)\d\d-.{20,}", "sk-ant-api03-{url:93}AA"),
    ("openai_project", r"sk-proj-.{20,}", "sk-proj-{alnum:48}"),
    ("openai_service", r"sk-svcacct-.{20,}", "sk-svcacct-{alnum:48}"),
    ("openrouter", r"sk-or-v1-[0-9a-f]{64}", "sk-or-v1-{hex:64}"),
    ("stripe_live", r"sk_live_\w{16,}", "sk_live_{alnum:24}"),
    ("stripe_test", r"sk_test_\w{16,}", "sk_test_{alnum:24}"),
    ("stripe_restricted", r"rk_(live|test)_\w{16,}", "rk_live_{alnum:24}"),
    ("openai", r"sk-[\w-]{20,}", "sk-{alnum:48}"),
    ("github_fine", r"github_pat_\w{20,}", "github_pat_{alnum:22}_{alnum:59}"),
    ("github_classic", r"ghp_\w{20,}", "ghp_{alnum:36}"),
    ("github_oauth", r"gho_\w{20,}", "gho_{alnum:36}"),
    ("github_user", r"ghu_\w{20,}", "ghu_{alnum:36}"),
    ("github_server", r"ghs_\w{20,}", "ghs_{alnum:36}"),
    ("gitlab", r"glpat-[\w-]{20,}", "glpat-{url:20}"),
    ("aws_key", r"AKIA[A-Z0-9]{16}", "AKIA{base32:16}"),
    ("aws_session_key", r"ASIA[A-Z0-9]{16}", "ASIA{base32:16}"),
    ("google_api", r"AIza[\w-]{35}", "AIza{url:35}"),
    ("google_oauth", r"ya29\.[\w-]{20,}", "ya29.{url:160}"),
    ("slack_bot", r"xoxb-[\w-]{20,}", "xoxb-{digit:12}-{digit:13}-{alnum:24}"),
    ("slack_user", r"xoxp-[\w-]{20,}", "xoxp-{digit:12}-{digit:12}-{digit:13}-{hex:32}"),
    ("slack_app", r"xapp-[\w-]{20,}", "xapp-1-A{base32:10}-{digit:13}-{hex:64}"),
    ("sendgrid", r"SG\.[\w-]{22}\.[\w-]{43}", "SG.{url:22}.{url:43}"),
    ("twilio_key", r"SK[0-9a-f]{32}", "SK{hex:32}"),
    ("twilio_account", r"AC[0-9a-f]{32}", "AC{hex:32}"),
    ("npm", r"npm_\w{36}", "npm_{alnum:36}"),
    ("pypi", r"pypi-[\w-]{40,}", "pypi-AgEIcHlwaS5vcmc{url:150}"),
    ("hugging_face", r"hf_\w{30,}", "hf_{alnum:34}"),
    ("groq", r"gsk_\w{40,}", "gsk_{alnum:52}"),
    ("replicate", r"r8_\w{30,}", "r8_{alnum:37}"),
    ("xai", r"xai-\w{40,}", "xai-{alnum:80}"),
    ("perplexity", r"pplx-\w{40,}", "pplx-{alnum:48}"),
    ("digital_ocean", r"dop_v1_[0-9a-f]{64}", "dop_v1_{hex:64}"),
    ("linear", r"lin_api_\w{30,}", "lin_api_{alnum:40}"),
    ("notion", r"ntn_\w{30,}", "ntn_{alnum:46}"),
    ("notion_old", r"secret_[A-Za-z0-9]{43}", "secret_{alnum:43}"),
    ("figma", r"figd_[\w-]{30,}", "figd_{url:40}"),
    ("telegram", r"\d{8,10}:[\w-]{35}", "{digit:10}:{url:35}"),
    # {"alg":"HS256","typ":"JWT"} . {"sub":"galley-placeholder","iat":1700000000,"exp":4102444800}
    (
        "jwt",
        r"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
        "eyJzdWIiOiJnYWxsZXktcGxhY2Vob2xkZXIiLCJpYXQiOjE3MDAwMDAwMDAsImV4cCI6NDEwMjQ0NDgwMH0.{url:42}{tail:1}",
    ),
    ("uuid", r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", "{hex:8}-{hex:4}-4{hex:3}-a{hex:3}-{hex:12}"),
    ("hex32", r"[0-9a-f]{32}", "{hex:32}"),
    ("hex40", r"[0-9a-f]{40}", "{hex:40}"),
    ("hex64", r"[0-9a-f]{64}", "{hex:64}"),
    ("other", r"[\s\S]*", "galley_placeholder_{alnum:32}"),
)
_TEMPLATES: Final = {name: template for name, _, template in _FORMATS}
_FORMAT_NAMES: Final = frozenset(_TEMPLATES)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Which format a credential's placeholders have, and the seed that they are made from."""

    format: str
    seed: bytes

    @classmethod
    def like(cls, secret: str) -> Self:
        """A new one. The format stays when the secret is rotated: sandboxes hold the placeholder already."""
        return cls(format_of(secret), secrets.token_bytes(32))

    @classmethod
    def of(cls, text: str) -> Self:
        name, _, seed = text.partition(":")
        return cls(name if name in _FORMAT_NAMES else "other", base64.b64decode(seed))

    def text(self) -> str:
        return f"{self.format}:{base64.b64encode(self.seed).decode()}"

    def for_session(self, session_id: str) -> str:
        letters = _letters(hmac.digest(self.seed, session_id.encode(), hashlib.sha256))

        def fill(slot: re.Match[str]) -> str:
            alphabet = _ALPHABETS[slot[1]]
            return "".join(_drawn(letters, alphabet) for _ in range(int(slot[2])))

        return _SLOT.sub(fill, _TEMPLATES[self.format])


def format_of(secret: str) -> str:
    return next(name for name, pattern, _ in _FORMATS if re.fullmatch(pattern, secret))


def _letters(key: bytes) -> Iterator[int]:
    counter = 0
    while True:
        yield from hmac.digest(key, counter.to_bytes(4), hashlib.sha256)
        counter += 1


def _drawn(source: Iterator[int], alphabet: str) -> str:
    # Bytes beyond the last whole multiple are left out, so that no character is likelier than another.
    limit = 256 - 256 % len(alphabet)
    return alphabet[next(byte for byte in source if byte < limit) % len(alphabet)]
