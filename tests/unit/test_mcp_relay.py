"""What a shim tells its client, and the next server, when a server is lost."""

import json
from typing import Any

import pytest
from galley_server.mcp.relay import MAX_IN_FLIGHT, Answer, Forward, Relay

INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}


def line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def request(id_: int | str, method: str = "tools/call", **params: Any) -> bytes:
    return line({"jsonrpc": "2.0", "id": id_, "method": method, "params": params})


def answer(id_: int | str) -> bytes:
    return line({"jsonrpc": "2.0", "id": id_, "result": {}})


def initialised() -> Relay:
    relay = Relay()
    relay.from_client(line(INITIALIZE))
    relay.from_server(answer(1))
    relay.from_client(line({"jsonrpc": "2.0", "method": "notifications/initialized"}))
    return relay


def test_a_call_in_flight_is_answered_with_what_to_do_next() -> None:
    relay = Relay()
    relay.from_client(request("a"))
    (error,) = map(json.loads, relay.lost())
    assert error["id"] == "a"
    assert "read_events" in error["error"]["message"]


def test_an_answered_call_is_not_answered_again() -> None:
    relay = Relay()
    relay.from_client(request(7))
    relay.from_server(answer(7))
    assert relay.lost() == []
    assert not relay.waiting


def test_a_call_that_never_left_is_neither_failed_nor_repeated() -> None:
    relay = Relay()
    relay.from_client(request(7))
    assert relay.lost(unsent=frozenset({7})) == []
    assert relay.greeting(unsent=frozenset({7})) == []
    assert relay.waiting


@pytest.mark.parametrize("method", ["tools/list", "server/discover", "ping"])
def test_a_harmless_request_is_asked_again_without_a_word(method: str) -> None:
    relay = Relay()
    sent = request(7, method)
    relay.from_client(sent)
    assert relay.lost() == []
    assert relay.greeting() == [sent + b"\n"]
    assert relay.from_server(answer(7))


def test_a_new_server_is_initialised_in_the_place_of_the_client_and_its_answer_is_swallowed() -> None:
    relay = initialised()
    relay.lost()
    initialize, initialized = map(json.loads, relay.greeting())
    assert initialize["params"] == INITIALIZE["params"]
    assert initialized["method"] == "notifications/initialized"
    assert not relay.from_server(answer(initialize["id"]))


def test_the_log_level_and_subscriptions_are_set_again() -> None:
    relay = initialised()
    relay.from_client(request(2, "logging/setLevel", level="debug"))
    relay.from_client(request(3, "resources/subscribe", uri="a:1"))
    relay.from_client(request(4, "resources/subscribe", uri="a:2"))
    relay.from_client(request(5, "resources/unsubscribe", uri="a:1"))
    for id_ in (2, 3, 4, 5):
        relay.from_server(answer(id_))
    relay.lost()
    greeting = [json.loads(sent) for sent in relay.greeting()]
    assert [sent["method"] for sent in greeting[2:]] == ["logging/setLevel", "resources/subscribe"]
    assert greeting[3]["params"] == {"uri": "a:2"}
    assert not any(relay.from_server(answer(sent["id"])) for sent in greeting if "id" in sent)


def test_an_initialize_that_was_not_answered_is_asked_again_under_its_own_id() -> None:
    relay = Relay()
    relay.from_client(line(INITIALIZE))
    relay.lost()
    assert [json.loads(sent)["id"] for sent in relay.greeting()] == [1]
    assert relay.from_server(answer(1))


def test_a_client_of_the_modern_era_needs_no_greeting() -> None:
    relay = Relay()
    relay.from_client(request(1, "server/discover"))
    relay.from_server(answer(1))
    relay.lost()
    assert relay.greeting() == []


def test_a_stream_of_changes_goes_on_with_the_next_server_and_is_acknowledged_once() -> None:
    relay = Relay()
    listen = request("l", "subscriptions/listen", notifications={"toolsListChanged": True})
    meta = {"io.modelcontextprotocol/subscriptionId": "l"}
    acknowledged = line(
        {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {"_meta": meta}}
    )
    changed = line({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {"_meta": meta}})
    relay.from_client(listen)
    assert not relay.waiting
    assert relay.from_server(acknowledged)
    assert relay.lost() == []
    assert relay.greeting() == [listen + b"\n"]
    assert not relay.from_server(acknowledged)
    assert relay.from_server(changed)
    assert relay.from_server(answer("l"))


def test_the_same_id_twice_is_refused() -> None:
    relay = Relay()
    assert isinstance(relay.from_client(request(1)), Forward)
    assert isinstance(relay.from_client(request(1)), Answer)
    assert isinstance(relay.from_client(request("1")), Forward)


def test_too_many_requests_in_flight_are_refused_not_kept() -> None:
    relay = Relay()
    for id_ in range(MAX_IN_FLIGHT):
        assert isinstance(relay.from_client(request(id_)), Forward)
    assert isinstance(relay.from_client(request("more")), Answer)


def test_a_cancellation_does_not_start_a_server() -> None:
    step = Relay().from_client(line({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {}}))
    assert step == Forward(step.line, starts_server=False)


def test_what_was_cancelled_is_not_waited_for() -> None:
    relay = Relay()
    for id_ in range(2 * MAX_IN_FLIGHT):
        assert isinstance(relay.from_client(request(id_)), Forward)
        relay.from_client(line({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id_}}))
    assert not relay.waiting
    assert relay.lost() == []


@pytest.mark.parametrize("params", [{}, {"requestId": []}, {"requestId": None}, []])
def test_a_cancellation_of_nothing_is_passed_on(params: Any) -> None:
    sent = line({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
    assert isinstance(Relay().from_client(sent), Forward)


def test_nonsense_goes_to_the_server_which_has_the_words_for_it() -> None:
    assert Relay().from_client(b"{nonsense") == Forward(b"{nonsense", starts_server=True)
