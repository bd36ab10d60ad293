"""What OAuth's documents mean, and what in them is not believed."""

import json
from typing import Any

import httpx2
import pytest
from galley_vault_proxy.errors import InvalidRequest
from galley_vault_proxy.oauth.discovery import client_document
from galley_vault_proxy.oauth.documents import (
    ResourceMetadata,
    ServerMetadata,
    challenge,
    covers,
    parsed,
    require_usable,
    resource_urls,
    same_issuer,
    scope_for,
    server_urls,
)
from galley_vault_proxy.oauth.outside import Answer, endpoint
from galley_vault_proxy.oauth.tokens import error_word


def server(**more: Any) -> ServerMetadata:
    fields: dict[str, Any] = {
        "issuer": "https://a.example",
        "authorization_endpoint": "https://a.example/authorize",
        "token_endpoint": "https://a.example/token",
        "code_challenge_methods_supported": ["S256"],
        **more,
    }
    return ServerMetadata.model_validate(fields)


def test_a_resource_is_looked_for_where_the_server_says_then_where_the_standard_says() -> None:
    base = "https://x.example/.well-known/oauth-protected-resource"
    assert resource_urls("https://X.example/a/mcp/", "https://y.example/m") == [
        "https://y.example/m",
        f"{base}/a/mcp",
        base,
    ]
    assert resource_urls("https://x.example", None) == [base]


def test_a_server_is_looked_for_in_three_places() -> None:
    base = "https://a.example"
    assert server_urls("https://a.example/t/1") == [
        f"{base}/.well-known/oauth-authorization-server/t/1",
        f"{base}/.well-known/openid-configuration/t/1",
        f"{base}/t/1/.well-known/openid-configuration",
    ]
    assert server_urls("https://a.example/") == [
        f"{base}/.well-known/oauth-authorization-server",
        f"{base}/.well-known/openid-configuration",
    ]


@pytest.mark.parametrize(
    ("resource", "url", "right"),
    [
        ("https://x.example/mcp", "https://x.example/mcp", True),
        ("https://x.example/mcp/", "https://X.example:443/mcp", True),
        ("https://x.example", "https://x.example/mcp", True),
        ("https://x.example/m", "https://x.example/mcp", False),
        ("https://x.example/mcp/a", "https://x.example/mcp", False),
        ("https://y.example/mcp", "https://x.example/mcp", False),
        ("http://x.example/mcp", "https://x.example/mcp", False),
        ("https://x.example:8443", "https://x.example", False),
        ("urn:x", "https://x.example", False),
    ],
)
def test_metadata_counts_only_for_its_own_resource(resource: str, url: str, right: bool) -> None:
    assert covers(resource, url) is right


@pytest.mark.parametrize(
    ("claimed", "expected", "right"),
    [
        ("https://a.example", "https://a.example/", True),
        ("https://a.example/t", "https://a.example/t", True),
        ("https://a.example/t/", "https://a.example/t", False),
        ("https://A.example", "https://a.example", False),
        ("https://a.example.evil.example", "https://a.example", False),
    ],
)
def test_issuers_are_compared_letter_by_letter(claimed: str, expected: str, right: bool) -> None:
    assert same_issuer(claimed, expected) is right


@pytest.mark.parametrize(
    ("header", "metadata", "scope"),
    [
        ('Bearer resource_metadata="https://x/m", scope="a b"', "https://x/m", "a b"),
        ("Bearer scope=a,resource_metadata=https://x/m", "https://x/m", "a"),
        (
            'Bearer error="x", error_description="no scope=here", Resource_Metadata = "https://x/m"',
            "https://x/m",
            "here",
        ),
        (r'Bearer realm="a \"quoted\" one", scope="a\b"', None, "ab"),
        ("Bearer", None, None),
        ('Bearer scope=""', None, None),
    ],
)
def test_a_challenge_is_read_however_it_is_written(header: str, metadata: str | None, scope: str | None) -> None:
    found = challenge([header])
    assert (found.resource_metadata, found.scope) == (metadata, scope)


def test_scopes_are_asked_for_by_who_knows_best() -> None:
    about = ResourceMetadata(resource="https://x", scopes_supported=["r", "w"])
    offline = server(scopes_supported=["offline_access", "z"])
    assert scope_for("mine", "theirs", about, server()) == "mine"
    assert scope_for(None, "theirs", about, server()) == "theirs"
    assert scope_for(None, None, about, offline) == "r w offline_access"
    assert scope_for(None, None, None, offline) is None
    with pytest.raises(InvalidRequest, match="scope"):
        scope_for(None, 'a"b', None, server())


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"code_challenge_methods_supported": None}, "S256"),
        ({"code_challenge_methods_supported": ["plain"]}, "S256"),
        ({"response_types_supported": ["token"]}, "response_types_supported"),
        ({"grant_types_supported": ["client_credentials"]}, "grant_types_supported"),
    ],
)
def test_a_server_without_the_one_safe_flow_is_refused(more: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        require_usable(server(**more))


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b'{"issuer": 1}', b"[" * 100_000, b"\xff"])
def test_what_is_no_document_is_none(raw: bytes) -> None:
    assert parsed(ServerMetadata, raw) is None


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("https://a.example/token", True),
        ("http://127.0.0.1:1/token", True),
        ("http://localhost/token", True),
        ("http://a.example/token", False),
        ("http://localhost.evil.example/token", False),
        ("ftp://a.example", False),
        ("javascript:alert(1)", False),
        ("https://u:p@a.example/", False),
    ],
)
def test_secrets_go_over_https_or_stay_on_the_machine(url: str, right: bool) -> None:
    if right:
        assert endpoint(url, "x") == url
    else:
        with pytest.raises(InvalidRequest) as refused:
            endpoint(url, "x")
        assert "u:p" not in refused.value.message


@pytest.mark.parametrize("word", ["invalid_grant", "ACCESS_denied"])
def test_an_error_code_is_repeated(word: str) -> None:
    assert error_word(word) == word.lower()


@pytest.mark.parametrize("word", [None, 5, "", "a b", "<script>", "x" * 65, "\u00e9"])
def test_anything_else_is_not(word: object) -> None:
    assert error_word(word) == "unspecified"


def test_our_own_document_names_itself() -> None:
    document = client_document("https://galley.example/p", "https://galley.example/p/oauth/callback")
    assert document["client_id"] == "https://galley.example/p/oauth/client.json"
    assert (document["application_type"], document["token_endpoint_auth_method"]) == ("web", "none")
    assert json.loads(json.dumps(document)) == document


def test_an_answer_does_not_print() -> None:
    assert "planted" not in repr(Answer(200, httpx2.Headers({"x": "planted"}), b"planted", True))
