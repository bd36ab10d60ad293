"""The token of a grant: nobody changes it, anybody narrows it, and nothing ever makes it allow more."""

import json
import random
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from galley_vault_proxy import narrow
from galley_vault_proxy.errors import GrantRefused, InvalidRequest
from galley_vault_proxy.grant.token import (
    MAX_CAVEATS,
    MAX_TOKEN,
    Caveat,
    Grant,
    HostRule,
    NotAfter,
    OnlyServers,
    OnlyTools,
    ServerRule,
    WithoutTools,
    append,
    apply,
    mint,
    verify,
)

KEY = b"k" * 32
NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
GRANT = Grant(
    id="grant_01",
    session_id="sesn_01",
    thread_id="sthr_01",
    vault_ids=("vlt_1", "vlt_2"),
    servers=(
        ServerRule("github", "https://mcp.github.example/v1", frozenset({"list_issues", "create_issue", "söme"})),
        ServerRule("linear", "https://mcp.linear.example/sse"),
        ServerRule("local", "stdio:files", frozenset()),
    ),
    hosts=(HostRule("api.example.com", (443, 8443), ("GET", "HEAD"), ("/repos",)), HostRule("*.example.org")),
    presets=("mcp_servers",),
    network="unrestricted",
    tunnel="tun_01",
    expires_at=NOW + timedelta(hours=1, milliseconds=123),
)


def part(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value, separators=(",", ":"), sort_keys=True).encode()).rstrip(b"=").decode()


def content(text: str) -> Any:
    return json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def refusal(token: str, *, key: bytes = KEY, now: datetime = NOW) -> str:
    with pytest.raises(GrantRefused) as caught:
        verify(key, token, now=now)
    return caught.value.reason


def random_caveat(dice: random.Random) -> Caveat:
    match dice.randrange(5):
        case 0:
            names = ["github", "linear", "local", "nowhere"]
            return OnlyServers(frozenset(dice.sample(names, dice.randrange(len(names) + 1))))
        case 1:
            tools = ["list_issues", "create_issue", "söme", "other"]
            return OnlyTools(frozenset(dice.sample(tools, dice.randrange(len(tools) + 1))))
        case 2:
            return OnlyTools(frozenset({"list_issues"}), dice.choice(["github", "linear", "nowhere"]))
        case 3:
            tools = ["list_issues", "söme", "other"]
            gone = frozenset(dice.sample(tools, dice.randrange(len(tools) + 1)))
            return WithoutTools(gone, dice.choice([None, "github", "linear", "nowhere"]))
        case _:
            return NotAfter(NOW + timedelta(seconds=dice.randrange(1, 7200)))


def tokens(seed: int, count: int) -> Iterator[tuple[str, list[Caveat]]]:
    dice = random.Random(seed)
    for _ in range(count):
        token, caveats = mint(KEY, GRANT), [random_caveat(dice) for _ in range(dice.randrange(1, 6))]
        for caveat in caveats:
            token = append(token, caveat)
        yield token, caveats


def allows_no_more(narrower: Grant, wider: Grant) -> bool:
    """Whether every access of the one is an access of the other, written without the code under test."""
    for rule in narrower.servers:
        same = next((other for other in wider.servers if other.name == rule.name and other.url == rule.url), None)
        if same is None:
            return False
        if same.tools is not None and (rule.tools is None or not rule.tools <= same.tools):
            return False
        if not same.without <= rule.without:
            return False
    untouched = {"servers", "expires_at"}
    return narrower.expires_at <= wider.expires_at and all(
        getattr(narrower, field.name) == getattr(wider, field.name)
        for field in fields(Grant)
        if field.name not in untouched
    )


def test_what_was_minted_is_what_is_verified() -> None:
    assert verify(KEY, mint(KEY, GRANT), now=NOW) == GRANT


def test_the_smallest_grant_survives_the_trip() -> None:
    bare = Grant("grant_1", "s", NOW + timedelta(seconds=1))
    assert verify(KEY, mint(KEY, bare), now=NOW) == bare


def test_every_field_is_in_the_token() -> None:
    other = Grant(
        "grant_02",
        "sesn_02",
        NOW + timedelta(hours=2),
        "sthr_02",
        ("vlt_3",),
        (ServerRule("a", "https://a.example"),),
        (HostRule("b.example"),),
        ("package_managers",),
        "limited",
        "tun_02",
    )
    for field in fields(Grant):
        changed = replace(GRANT, **{field.name: getattr(other, field.name)})
        assert changed != GRANT
        assert mint(KEY, changed) != mint(KEY, GRANT)
        assert verify(KEY, mint(KEY, changed), now=NOW) == changed


def test_the_same_grant_has_one_token() -> None:
    turned = replace(GRANT.servers[0], tools=frozenset(sorted(GRANT.servers[0].tools or ())))
    assert mint(KEY, replace(GRANT, servers=(turned, *GRANT.servers[1:]))) == mint(KEY, GRANT)


def test_another_key_verifies_nothing() -> None:
    assert refusal(mint(KEY, GRANT), key=b"x" * 32) == "forged"


def test_a_token_ends_on_the_millisecond() -> None:
    token = mint(KEY, GRANT)
    assert verify(KEY, token, now=GRANT.expires_at - timedelta(milliseconds=1)) == GRANT
    assert refusal(token, now=GRANT.expires_at) == "expired"


def test_no_character_of_a_token_can_be_changed() -> None:
    token = narrow(mint(KEY, GRANT), servers=["github"], now=NOW)
    for index, old in enumerate(token):
        for new in "AZ_.=~ \n":
            if new != old:
                assert refusal(token[:index] + new + token[index + 1 :]) in ("forged", "malformed")


def test_no_character_can_be_added_or_left_out() -> None:
    token = mint(KEY, GRANT)
    for index in range(len(token)):
        assert refusal(token[:index] + token[index + 1 :]) in ("forged", "malformed")
        assert refusal(f"{token[:index]}A{token[index:]}") in ("forged", "malformed")
    for tail in ("\n", "=", ".", " ", "\x00", "é"):
        assert refusal(token + tail) == "malformed"


def test_a_narrowed_token_allows_no_more_than_before() -> None:
    for token, caveats in tokens(seed=1, count=300):
        expected = GRANT
        for caveat in caveats:
            narrower = apply(expected, caveat)
            assert allows_no_more(narrower, expected)
            expected = narrower
        assert verify(KEY, token, now=NOW) == expected


def test_no_caveat_can_be_taken_out() -> None:
    for token, _ in tokens(seed=2, count=100):
        version, root, *caveats, signature = token.split(".")
        for index in range(len(caveats)):
            rest = [*caveats[:index], *caveats[index + 1 :]]
            assert refusal(".".join([version, root, *rest, signature])) == "forged"


def test_caveats_cannot_be_put_in_another_order() -> None:
    for token, _ in tokens(seed=3, count=100):
        version, root, *caveats, signature = token.split(".")
        if caveats != caveats[::-1]:
            assert refusal(".".join([version, root, *caveats[::-1], signature])) == "forged"


def test_no_caveat_can_be_replaced_by_a_wider_one() -> None:
    token = append(mint(KEY, GRANT), OnlyServers(frozenset({"github"})))
    version, root, _, signature = token.split(".")
    wider = part({"servers": ["github", "linear", "local"]})
    assert refusal(f"{version}.{root}.{wider}.{signature}") == "forged"


def test_the_wider_token_cannot_be_had_from_the_narrower_one() -> None:
    """The signature of the narrower one is no signature of the wider one, nor of its root alone."""
    wide = mint(KEY, GRANT)
    narrower = append(wide, NotAfter(NOW + timedelta(seconds=5)))
    version, root, _, signature = narrower.split(".")
    assert refusal(f"{version}.{root}.{signature}") == "forged"
    assert wide not in narrower


def test_a_caveat_that_says_more_than_the_grant_adds_nothing() -> None:
    token = append(mint(KEY, GRANT), NotAfter(NOW + timedelta(days=9000)))
    token = append(token, OnlyServers(frozenset({"github", "linear", "local", "prod"})))
    token = append(token, OnlyTools(frozenset({"list_issues", "create_issue", "söme", "delete_repo"}), "github"))
    assert verify(KEY, token, now=NOW) == GRANT


@pytest.mark.parametrize(
    "forged",
    [
        {},
        [],
        7,
        "servers",
        {"servers": "github"},
        {"servers": [1]},
        {"servers": ["github"], "tools": ["a"], "of": None},
        {"tools": ["a"]},
        {"tools": ["a"], "of": 1},
        {"without": ["a"]},
        {"without": "a", "of": None},
        {"without": ["a"], "of": None, "tools": ["a"]},
        {"expires": "9999999999999"},
        {"expires": True},
        {"expires": -1},
        {"expires": 1 << 60},
        {"expires": 1.5},
        {"network": "unrestricted"},
        {"session": "sesn_02"},
        {"id": "grant_02"},
    ],
)
def test_a_caveat_of_an_unknown_kind_makes_the_token_worthless(forged: object) -> None:
    """A holder can sign any caveat with the signature at hand. What it means is ours to say."""
    assert refusal(signed_on(part(forged))) == "malformed"


@pytest.mark.parametrize(
    "text",
    ['{"servers": ["github"]}', '{"servers":["github"],"servers":["linear"]}', "nonsense", "[" * 5000, "\xff"],
)
def test_a_caveat_that_is_not_canonical_makes_the_token_worthless(text: str) -> None:
    raw = text.encode("latin-1")
    assert refusal(signed_on(urlsafe_b64encode(raw).rstrip(b"=").decode())) == "malformed"


def signed_on(caveat: str) -> str:
    """A token with a caveat of a holder's own making, signed as a holder can."""
    import hmac

    version, root, signature = mint(KEY, GRANT).split(".")
    chained = hmac.digest(signature.encode(), caveat.encode(), "sha256")
    return f"{version}.{root}.{caveat}.{urlsafe_b64encode(chained).rstrip(b'=').decode()}"


def test_a_holder_signs_as_the_library_does() -> None:
    assert verify(KEY, signed_on(part({"servers": ["github"]})), now=NOW).servers == GRANT.servers[:1]


def test_a_token_is_bounded() -> None:
    tools = frozenset(f"tool_{number:05}" for number in range(2000))
    with pytest.raises(InvalidRequest, match="fewer tools"):
        mint(KEY, replace(GRANT, servers=(ServerRule("big", "https://a.example", tools),)))
    assert refusal("galley1." + "A" * MAX_TOKEN + ".B") == "malformed"


def test_the_number_of_caveats_is_bounded() -> None:
    token = mint(KEY, GRANT)
    for _ in range(MAX_CAVEATS):
        token = append(token, OnlyServers(frozenset({"github"})))
    assert verify(KEY, token, now=NOW).servers == GRANT.servers[:1]
    with pytest.raises(GrantRefused):
        append(token, OnlyServers(frozenset({"github"})))


@pytest.mark.parametrize("token", ["", "x", "galley1.", "galley1.a", "galley1..", "galley2.a.b", "Bearer galley1.a.b"])
def test_what_is_no_token_is_refused_before_it_is_read(token: str) -> None:
    assert refusal(token) == "malformed"


def test_a_refusal_does_not_show_the_token() -> None:
    token = mint(KEY, GRANT)
    with pytest.raises(GrantRefused) as caught:
        verify(b"x" * 32, token, now=NOW)
    assert token[8:40] not in str(caught.value)


def test_narrowing_keeps_what_was_named() -> None:
    token = narrow(mint(KEY, GRANT), servers=["github"], tools=["list_issues", "nothing"], expires_in=60, now=NOW)
    assert verify(KEY, token, now=NOW) == replace(
        GRANT,
        servers=(replace(GRANT.servers[0], tools=frozenset({"list_issues"})),),
        expires_at=NOW + timedelta(seconds=60),
    )


def test_tools_can_be_narrowed_for_each_server_by_itself() -> None:
    token = narrow(mint(KEY, GRANT), tools={"github": ["list_issues"], "linear": ["find"]}, now=NOW)
    assert [rule.tools for rule in verify(KEY, token, now=NOW).servers] == [{"list_issues"}, {"find"}, frozenset()]


def test_tools_can_be_taken_away() -> None:
    token = narrow(mint(KEY, GRANT), without={"github": ["create_issue"]}, now=NOW)
    token = narrow(token, without=["find"], now=NOW)
    github, linear, _ = verify(KEY, token, now=NOW).servers
    assert (github.allows("list_issues"), github.allows("create_issue")) == (True, False)
    assert (linear.allows("anything"), linear.allows("find"), linear.everything) == (True, False, False)


def test_what_was_taken_away_stays_away_when_it_is_kept_later() -> None:
    token = narrow(mint(KEY, GRANT), without={"linear": ["find"]}, now=NOW)
    kept = verify(KEY, narrow(token, tools={"linear": ["find", "open"]}, now=NOW), now=NOW).server("linear")
    assert kept is not None
    assert (kept.allows("find"), kept.allows("open")) == (False, True)


def test_a_grant_without_some_tools_is_minted_without_them() -> None:
    linear = ServerRule("linear", "https://mcp.linear.example/sse", without=frozenset({"find"}))
    grant = replace(GRANT, servers=(linear,))
    assert verify(KEY, mint(KEY, grant), now=NOW) == grant


def test_narrowing_twice_is_narrower_than_once() -> None:
    once = narrow(mint(KEY, GRANT), tools=["list_issues"], now=NOW)
    twice = narrow(once, tools=["create_issue"], now=NOW)
    assert verify(KEY, twice, now=NOW).servers[0].tools == frozenset()


def test_a_server_that_is_not_in_the_token_is_a_mistake() -> None:
    with pytest.raises(InvalidRequest, match="'githb'; it has: github, linear, local"):
        narrow(mint(KEY, GRANT), servers=["githb"])


def test_one_string_is_not_a_list_of_names() -> None:
    with pytest.raises(InvalidRequest, match="list of names"):
        narrow(mint(KEY, GRANT), servers="github")


def test_narrowing_nothing_is_a_mistake() -> None:
    with pytest.raises(InvalidRequest, match="nothing to narrow"):
        narrow(mint(KEY, GRANT))


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_life_is_a_number_of_seconds_from_now(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="expires_in"):
        narrow(mint(KEY, GRANT), expires_in=seconds)


def test_what_is_no_token_cannot_be_narrowed() -> None:
    with pytest.raises(GrantRefused):
        narrow("sk-not-a-grant", servers=["github"])


def test_a_very_long_life_is_no_longer_than_the_grants() -> None:
    token = narrow(mint(KEY, GRANT), expires_in=86_400, now=NOW)
    assert verify(KEY, token, now=NOW).expires_at == GRANT.expires_at
