"""The prompt cache charges by the real prefix at each breakpoint."""

from galley_server.demo.prompt_cache import PromptCache, count_tokens
from galley_server.demo.reply import Usage
from galley_server.demo.transcript import JSON

SHORT: JSON = {"type": "ephemeral"}
LONG: JSON = {"type": "ephemeral", "ttl": "1h"}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def block(words: str, control: JSON = None) -> dict[str, JSON]:
    text: dict[str, JSON] = {"type": "text", "text": words * 40}
    return text if control is None else {**text, "cache_control": control}


def body(*blocks: JSON, **more: JSON) -> dict[str, JSON]:
    return {"model": "claude-x", "messages": [{"role": "user", "content": list(blocks)}], **more}


def charge(cache: PromptCache, document: dict[str, JSON]) -> Usage:
    usage = cache.charge(document, output_tokens=1)
    total = usage.input_tokens + usage.cache_read + usage.cache_creation_5m + usage.cache_creation_1h
    assert total == count_tokens(document)
    return usage


def test_without_a_breakpoint_everything_is_input() -> None:
    cache = PromptCache()
    charge(cache, body(block("a"), block("b")))
    assert charge(cache, body(block("a"), block("b"))).cache_read == 0


def test_a_breakpoint_writes_once_and_reads_after() -> None:
    cache = PromptCache()
    first = charge(cache, body(block("a", SHORT), block("b")))
    second = charge(cache, body(block("a", SHORT), block("b")))
    assert first.cache_creation_5m == second.cache_read > 0
    assert first.input_tokens == second.input_tokens > 0
    assert second.cache_creation_5m == 0


def test_moving_the_breakpoint_forward_reads_the_old_prefix_and_writes_only_what_is_new() -> None:
    cache = PromptCache()
    first = charge(cache, body(block("a"), block("b", SHORT)))
    second = charge(cache, body(block("a"), block("b"), block("c"), block("d", SHORT)))
    assert second.cache_read == first.cache_creation_5m
    assert second.cache_creation_5m > 0
    assert second.input_tokens == 0


def test_a_change_before_the_breakpoint_misses() -> None:
    cache = PromptCache()
    charge(cache, body(block("a"), block("b", SHORT)))
    assert charge(cache, body(block("A"), block("b", SHORT))).cache_read == 0
    assert charge(cache, body(block("a"), block("b", SHORT), model="claude-y")).cache_read == 0


def test_tools_and_system_come_before_the_messages() -> None:
    cache = PromptCache()
    charge(cache, body(block("a"), tools=[{"name": "t"}], system=[block("s", SHORT)]))
    assert charge(cache, body(block("b"), tools=[{"name": "t"}], system=[block("s", SHORT)])).cache_read > 0
    assert charge(cache, body(block("b"), tools=[{"name": "u"}], system=[block("s", SHORT)])).cache_read == 0


def test_a_string_is_the_same_prefix_as_one_text_block() -> None:
    cache = PromptCache()
    charge(cache, body(block("a"), cache_control=SHORT))
    whole = {"model": "claude-x", "cache_control": SHORT, "messages": [{"role": "user", "content": "a" * 40}]}
    assert charge(cache, whole).cache_read > 0  # type: ignore[arg-type]


def test_an_automatic_breakpoint_stands_on_the_last_block() -> None:
    assert charge(PromptCache(), body(block("a"), block("b"), cache_control=SHORT)).input_tokens == 0


def test_a_prefix_more_than_twenty_blocks_back_is_not_found() -> None:
    cache = PromptCache()
    blocks = [block(str(number)) for number in range(30)]
    charge(cache, body(block("a", SHORT)))
    assert charge(cache, body(block("a"), *blocks[:18], block("z", SHORT))).cache_read > 0
    assert charge(PromptCache(), body(block("a"), *blocks[:25], block("z", SHORT))).cache_read == 0


def test_entries_die_with_their_time_and_live_on_when_read() -> None:
    clock = Clock()
    cache = PromptCache(clock=clock)
    document = body(block("a", LONG), block("b", SHORT))
    first = charge(cache, document)
    assert first.cache_creation_1h > 0
    assert first.cache_creation_5m > 0
    clock.now = 299
    assert charge(cache, document).cache_creation_5m == 0
    clock.now = 299 + 299
    assert charge(cache, document).cache_creation_5m == 0
    clock.now = 1000
    later = charge(cache, document)
    assert later.cache_read == first.cache_creation_1h
    assert later.cache_creation_5m == first.cache_creation_5m


def test_a_prefix_below_the_minimum_is_not_cached() -> None:
    cache = PromptCache(minimum_tokens=1024)
    charge(cache, body(block("a", SHORT)))
    assert charge(cache, body(block("a", SHORT))) == Usage(count_tokens(body(block("a", SHORT))), 1)
