"""One spelling for each host, and patterns that match what they say."""

import pytest
from galley_vault_proxy.hosts import host_matches, normal_host, normal_pattern


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("localhost", "localhost"),
        ("\uff41.example", "a.example"),
    ],
)
def test_a_host_has_one_spelling(given: str, normal: str) -> None:
    assert normal_host(given) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "-a.example",
        "a-.example",
        "a b",
        "a/b",
        "a:80",
        "user@host",
        "http://a",
        "a\n.example",
        "a\x00",
        "0x7f.1",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.0x1",
        "1.2.3.4.5",
        "x" * 64 + ".example",
        "a." * 127 + "example",
        "[::1",
        "*.example.com",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        normal_host(text)


@pytest.mark.parametrize("text", ["*", "*.", "*.*.example", "a.*.example", "*example.com", "*.10.0.0.1", "*.[::1]"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        normal_pattern(text)


@pytest.mark.parametrize(
    ("pattern", "host", "matches"),
    [
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.example.com", ".example.com", False),
    ],
)
def test_a_pattern_matches_names_below(pattern: str, host: str, matches: bool) -> None:
    assert host_matches(pattern, host) is matches
