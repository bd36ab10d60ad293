"""No spelling of a secret passes the redactor, however the bytes are cut; everything else passes unchanged."""

import base64
import functools
import html
import json
import random
import textwrap
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from galley_vault_proxy.redact import MARK, Patterns, Redactor
from galley_vault_proxy.secret import Secret

SECRETS = [
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "sk-proj/a+b==c?d&e=f%41g",
    "quo\"te\\back\\slash\\n/and'more<x>&",
    "pässwörd-日本-🔑-key",
    "Basic dXNlcjpwYXNzd29yZA==",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0" * 4 + ".SflKxwRJSMeKKF2QT4",
    "has two blanks in it",
    "abcd",
]


def _every_character_escaped(text: str) -> str:
    units = text.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02X}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _dumped_twice(text: str) -> str:
    return json.dumps(json.dumps({"v": text}))


SPELLINGS: dict[str, Callable[[str], str]] = {
    "verbatim": str,
    "json": lambda text: json.dumps(text)[1:-1],
    "json unescaped": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "json with slashes escaped": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "json in json": _dumped_twice,
    "json in json in json": lambda text: json.dumps(_dumped_twice(text)),
    "every character escaped": _every_character_escaped,
    "go's json": lambda text: json.dumps(text)[1:-1].replace("&", "\\u0026").replace("<", "\\u003c"),
    "percent": lambda text: quote(text, safe=""),
    "percent, lower case": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "form": quote_plus,
    "percent in json": lambda text: json.dumps({"url": "https://x/?k=" + quote(text)}),
    "html": html.escape,
    "html, numbered": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "repr": lambda text: repr(text.encode()),
}
for _before in range(3):
    for _after in range(3):
        SPELLINGS[f"base64 at {_before} before {_after}"] = lambda text, b=_before, a=_after: base64.b64encode(  # type: ignore[misc]
            b"x" * b + text.encode() + b"y" * a
        ).decode()
        SPELLINGS[f"base64url at {_before} before {_after}"] = lambda text, b=_before, a=_after: (  # type: ignore[misc]
            base64.urlsafe_b64encode(b"x" * b + text.encode() + b"y" * a).decode().rstrip("=")
        )
SPELLINGS["base64 in lines"] = lambda text: base64.encodebytes(b"name:" + text.encode()).decode()
SPELLINGS["base64 in lines in json"] = lambda text: json.dumps(base64.encodebytes(b"ab" + text.encode()).decode())
SPELLINGS["base64 in a url"] = lambda text: quote(base64.b64encode(text.encode()).decode(), safe="")


@functools.cache
def _patterns(*secrets: str) -> Patterns:
    return Patterns(Secret(text) for text in secrets)


def _streamed(patterns: Patterns, data: bytes, size: int) -> bytes:
    redactor = Redactor(patterns)
    return b"".join([*(redactor.feed(data[i : i + size]) for i in range(0, len(data), size)), redactor.flush()])


def _left_of(secret: str, data: bytes) -> bool:
    """Whether a third of the secret, in its plainest spellings, is still there."""
    part = max(4, len(secret) // 3)
    raw = data.decode("utf-8", "replace")
    return any(secret[i : i + part] in raw for i in range(0, len(secret) - part + 1))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("secret", SECRETS)
def test_no_spelling_of_a_secret_passes(secret: str, spelling: str) -> None:
    data = f"before {SPELLINGS[spelling](secret)} after".encode()

    redacted = _patterns(secret).redact(data)

    assert MARK in redacted
    assert redacted.startswith(b"before ")
    assert redacted.endswith(b" after")
    assert not _left_of(secret, redacted)


@pytest.mark.parametrize("size", [1, 3, 64])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_secret_that_is_split_over_chunks_is_found_all_the_same(spelling: str, size: int) -> None:
    for secret in SECRETS:
        patterns = _patterns(secret)
        data = f"before {SPELLINGS[spelling](secret)} after".encode()

        assert _streamed(patterns, data, size) == patterns.redact(data), (secret, spelling)


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_a_secret_in_another_charset_is_found(charset: str, size: int) -> None:
    for secret in ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "pässwörd-key"):
        data = f"before {secret} after".encode(charset)
        redacted = _streamed(_patterns(secret), data, size)
        assert MARK in redacted
        assert secret[2:-2].encode("utf-16-le" if charset == "utf-16" else charset) not in redacted


def test_random_texts_pass_unchanged_whole_and_in_chunks() -> None:
    dice = random.Random(7)
    patterns = _patterns(*SECRETS)
    alphabet = 'abcghp_16C7%2F\\u00e4\\n"/&#;x \n=+-é日'
    for _ in range(300):
        data = "".join(dice.choice(alphabet) for _ in range(dice.randrange(200))).encode()
        if patterns.find(data):
            continue
        assert patterns.redact(data) is data
        assert _streamed(patterns, data, dice.randrange(1, 40)) == data


def test_random_texts_with_secrets_in_them_come_out_alike_whole_and_in_chunks() -> None:
    dice = random.Random(11)
    patterns = _patterns(*SECRETS)
    spellings = list(SPELLINGS.values())
    for _ in range(200):
        pieces = [
            dice.choice(spellings)(dice.choice(SECRETS))
            if dice.random() < 0.5
            else dice.choice(["gh", "\\", "%", "\n"])
            for _ in range(dice.randrange(6))
        ]
        data = " ".join(pieces).encode()
        assert _streamed(patterns, data, dice.randrange(1, 50)) == patterns.redact(data)


def test_a_secret_that_is_the_beginning_of_another_leaves_nothing_of_the_other() -> None:
    patterns = _patterns("token-1234", "token-1234-and-the-rest")

    for size in (1, 5, 10, 11, 100):
        assert _streamed(patterns, b"<token-1234-and-the-rest>", size) == b"<" + MARK + b">"
        assert _streamed(patterns, b"<token-1234-and>", size) == b"<" + MARK + b"-and>"


def test_a_stream_is_kept_back_no_further_than_a_secret_reaches() -> None:
    redactor = Redactor(_patterns("ghp_16C7e42F292c6912E7710c838347Ae178B4a"))

    assert redactor.feed(b"data: all of this can be read at once\n\n") == b"data: all of this can be read at once\n\n"
    assert redactor.feed(b"and this: ghp_16C7") == b"and this: "
    assert redactor.feed(b" not.") == b"ghp_16C7 not."
    assert redactor.hits == 0


def test_what_is_held_is_bounded_whatever_comes() -> None:
    patterns = _patterns("aaaaaaaa")
    redactor = Redactor(patterns)
    fed = passed = 0
    for _ in range(200):
        passed += len(redactor.feed(b"a" * 7))
        fed += 7
    for _ in range(200):
        redactor.feed(b"\\" * 50)
    assert len(redactor.flush()) <= patterns.reach + 2 * len(MARK)


def test_json_stays_json() -> None:
    patterns = _patterns(*SECRETS)
    for secret in SECRETS:
        body = json.dumps({"headers": {"authorization": f"Bearer {secret}"}, "text": json.dumps({"a": secret})})
        redacted = json.loads(patterns.redact(body.encode()))
        assert redacted["headers"]["authorization"] == "Bearer [redacted]"
        assert json.loads(redacted["text"]) == {"a": "[redacted]"}


def test_a_secret_of_a_few_characters_is_not_looked_for() -> None:
    assert _patterns("abc", "").redact(b"abc and more") == b"abc and more"


def test_without_secrets_nothing_is_kept_back() -> None:
    redactor = Redactor(_patterns())

    assert redactor.feed(b"\\u00") == b"\\u00"
    assert redactor.flush() == b""


def test_a_wrapped_private_key_is_found() -> None:
    secret = "\n".join(
        ["-----BEGIN KEY-----", *textwrap.wrap("MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" * 6, 64), "-----END-----"]
    )

    assert MARK in _patterns(secret).redact(json.dumps({"pem": secret}).encode())
    assert MARK in _patterns(secret).redact(secret.replace("\n", "\r\n").encode())


def test_a_secret_is_found_wherever_it_stands_in_a_large_text() -> None:
    secret = SECRETS[2]
    patterns = _patterns(secret)
    written = _every_character_escaped(secret).encode()
    for before in (131_072 - 400, 131_072 - len(written) // 2, 131_072 - 1, 131_072, 262_144 - 7):
        data = b"x" * before + written + b"y" * 200_000
        assert patterns.redact(data) == b"x" * before + MARK + b"y" * 200_000
