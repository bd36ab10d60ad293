"""The pure rules of credentials: URLs, placeholders, what is scrubbed, and what a refusal says."""

import base64
import json
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
from galley_vault_proxy.credentials import material
from galley_vault_proxy.credentials.bodies import read
from galley_vault_proxy.credentials.once import NEVER, Once
from galley_vault_proxy.credentials.placeholders import Placeholder, format_of
from galley_vault_proxy.credentials.scrub import scrubbed
from galley_vault_proxy.credentials.shapes import CredentialCreate, RefreshAttemptShown, VaultCreate
from galley_vault_proxy.credentials.urls import normal_url, server_key
from galley_vault_proxy.credentials.validate import verdict
from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.secret import Secret
from galley_vault_proxy.store.port import Material

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTPS://Example.COM/Mcp", "https://example.com/Mcp"),
        ("https://example.com:443/", "https://example.com"),
        ("http://example.com:80/a/", "http://example.com/a"),
        ("http://example.com:443/a", "http://example.com:443/a"),
        ("https://example.com./a", "https://example.com/a"),
        ("https://example.com/a//", "https://example.com/a"),
        ("https://example.com/a/?x=1", "https://example.com/a?x=1"),
        ("https://[2001:DB8::1]:443/", "https://[2001:db8::1]"),
        ("https://example.com/%41", "https://example.com/%41"),
    ],
)
def test_a_url_has_one_normal_form(url: str, normal: str) -> None:
    assert normal_url(url) == normal
    assert normal_url(normal) == normal


@pytest.mark.parametrize(
    "url",
    ["", "example.com", "ftp://x", "https://", "https://u@x/", "https://x/#f", "https://x/ y", "https://x:99999/",
     "https://x/\\..", "https://0x7f.1/", "https://x/\n", "stdio:a", "https://" + "x" * 2048],
)  # fmt: skip
def test_what_is_no_url_of_a_server_has_none(url: str) -> None:
    with pytest.raises(ValueError):
        normal_url(url)


def test_a_server_that_the_proxy_runs_has_a_key_too() -> None:
    assert server_key("stdio:git-tools") == "stdio:git-tools"
    with pytest.raises(ValueError):
        server_key("stdio:../x")


FORMATS = {
    "anthropic": "sk-ant-api03-" + "x" * 95,
    "openai": "sk-" + "x" * 48,
    "openai_project": "sk-proj-" + "x" * 60,
    "github_classic": "ghp_" + "x" * 36,
    "github_fine": "github_pat_" + "x" * 82,
    "gitlab": "glpat-" + "x" * 20,
    "aws_key": "AKIA" + "X" * 16,
    "google_api": "AIza" + "x" * 35,
    "slack_bot": "xoxb-1234567890-1234567890-abcdef",
    "stripe_test": "sk_test_" + "x" * 24,
    "sendgrid": "SG." + "x" * 22 + "." + "y" * 43,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
    "hex32": "0123456789abcdef" * 2,
    "telegram": "1234567890:" + "x" * 35,
    "other": "correct horse\nbattery staple",
}


@pytest.mark.parametrize(("name", "secret"), FORMATS.items())
def test_a_placeholder_has_the_format_of_its_secret_and_nothing_else_of_it(name: str, secret: str) -> None:
    assert format_of(secret) == name
    made = Placeholder.like(secret)
    text = made.for_session("sesn_1")
    assert format_of(text) == name
    assert text.isascii()
    assert text.isprintable()
    assert not set(text) & set("\"'\\ /+&%<>")
    assert text == Placeholder.of(made.text()).for_session("sesn_1")
    others = {made.for_session(f"sesn_{n}") for n in range(2, 50)} | {Placeholder.like(secret).for_session("sesn_1")}
    assert len(others | {text}) == 50


def test_a_placeholder_token_can_be_read_as_one() -> None:
    parts = Placeholder.like(FORMATS["jwt"]).for_session("sesn_1").split(".")
    head, body, signature = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts)
    assert json.loads(head)["alg"] == "HS256"
    assert json.loads(body)["exp"] > 4_000_000_000
    assert len(signature) == 32
    assert base64.urlsafe_b64encode(signature).decode().rstrip("=") == parts[2]


def test_what_is_shown_of_an_answer_holds_no_secret_and_ends_somewhere() -> None:
    secret = Secret("tok/planted+secret&value")
    forms = [secret.reveal(), base64.b64encode(b"a:" + secret.reveal().encode()).decode(), json.dumps(secret.reveal())]
    shown = scrubbed(401, "text/plain", " ".join(forms).encode() + b"x" * 9000, [secret])
    assert shown.body_truncated
    assert len(shown.body) == 4096
    assert "planted" not in shown.body
    # Cut in the middle it would not be recognised: it is taken out first.
    cut = scrubbed(401, "text/plain", b"x" * 4090 + secret.reveal().encode(), [secret])
    assert "tok/" not in cut.body


@pytest.mark.parametrize(
    "text",
    ['{"access_token": "unknown-planted"}', "refresh_token=planted-planted&x=1", "Authorization: Bearer planted123",
     "bad token ghp_planted1234567890", "eyJhbGciOiJI.planted-planted.x", "client_secret: 'planted-planted'"],
)  # fmt: skip
def test_what_looks_like_a_secret_is_not_shown_either(text: str) -> None:
    assert "planted" not in scrubbed(400, "", text.encode(), []).body


@pytest.mark.parametrize(
    "piece", [b"token", b"eyJaaaaaaaa-", b"bearer ", b"secret: ", b"authorization=", b"a\\u0041%25"]
)
def test_no_body_takes_long_to_scrub(piece: bytes) -> None:
    began = time.perf_counter()
    scrubbed(400, "", piece * (256 * 1024 // len(piece)), [Secret("tok/planted+secret&value")])
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("failed", "status", "refresh", "response", "expected"),
    [
        (None, None, None, None, "valid"),
        (None, None, "succeeded", None, "valid"),
        ("tools/list", 401, "no_refresh_token", None, "invalid"),
        ("tools/list", 403, None, None, "invalid"),
        ("initialize", 404, None, None, "invalid"),
        ("initialize", 429, None, None, "unknown"),
        ("initialize", 500, None, None, "unknown"),
        ("initialize", None, None, None, "unknown"),
        ("tools/list", 401, "succeeded", None, "invalid"),
        ("tools/list", 401, "connect_error", None, "unknown"),
        ("tools/list", 401, "failed", 400, "invalid"),
        ("tools/list", 401, "failed", 503, "unknown"),
        ("tools/list", 401, "failed", 429, "unknown"),
    ],
)
def test_a_verdict_is_final_only_where_nothing_but_a_person_can_help(
    failed: str | None, status: int | None, refresh: str | None, response: int | None, expected: str
) -> None:
    shown = None if response is None else scrubbed(response, "", b"", [])
    fields = {"status": refresh, "http_response": shown}
    attempt = None if refresh is None else RefreshAttemptShown.model_validate(fields)
    assert verdict(failed, status, attempt) == expected


def test_a_token_is_due_a_minute_before_its_end_or_sooner_if_it_is_short() -> None:
    for lasts, early in ((3600, 60), (40, 10)):
        end = NOW + timedelta(seconds=lasts)
        kept = Material(material.present(material.expiry(end, NOW)), 1)
        assert not material.due(kept, end - timedelta(seconds=early + 1))
        assert material.due(kept, end - timedelta(seconds=early))
    by_hand = Material({material.EXPIRES: Secret("2026-01-01T00:10:00")}, 1)
    assert material.due(by_hand, NOW + timedelta(minutes=9))
    assert not material.due(by_hand, NOW + timedelta(minutes=8))
    assert not material.due(Material({material.EXPIRES: Secret("soon")}, 1), NOW)
    assert not material.due(Material({}, 1), NOW)


def test_a_body_that_was_read_prints_no_secret() -> None:
    body = {"auth": {"type": "static_bearer", "mcp_server_url": "https://x.example", "token": "planted"}}
    read_body = read(CredentialCreate, json.dumps(body).encode())
    assert "planted" not in repr(read_body)
    assert "planted" not in str(read_body)


def test_a_refusal_carries_no_input_along() -> None:
    body = {"auth": {"type": "static_bearer", "token": ["planted"]}}
    with pytest.raises(InvalidRequest) as refused:
        read(CredentialCreate, json.dumps(body).encode())
    error: BaseException | None = refused.value
    while error is not None:
        assert "planted" not in repr(error)
        error = error.__cause__ or error.__context__


def test_the_first_findings_speak_and_the_others_are_counted() -> None:
    with pytest.raises(InvalidRequest, match=r"; and 2 more$"):
        read(VaultCreate, b'{"a":1,"b":2,"c":3,"d":4}')


def test_fingerprints_need_the_key_and_tell_parts_apart() -> None:
    one = Once.of("k", b"a" * 32, b"xy", b"z")
    assert one.fingerprint != Once.of("k", b"b" * 32, b"xy", b"z").fingerprint
    assert one.fingerprint != Once.of("k", b"a" * 32, b"x", b"yz").fingerprint
    assert one.fingerprint == Once.of("k", b"a" * 32, b"xy", b"z").fingerprint
    assert Once.of(None, b"a" * 32, b"x") is NEVER
    for wrong in ("", "a b", "x" * 256, "\u00e9"):
        with pytest.raises(InvalidRequest, match=re.escape("idempotency-key: use 1 to 255")):
            Once.of(wrong, b"a" * 32, b"x")
