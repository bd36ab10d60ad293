"""The ledger: which calls the hand knows, and that none runs twice."""

import pytest
from galley_sandbox.hand import ledger
from galley_sandbox.hand.ledger import Ledger, Refused


def ignore(_result: bytes) -> None:
    pass


def test_a_call_is_run_the_first_time_only() -> None:
    book = Ledger()
    assert book.begin("a", b"d", ignore)
    assert not book.begin("a", b"d", ignore)


def test_everybody_who_asked_gets_the_result() -> None:
    book, heard = Ledger(), list[bytes]()
    book.begin("a", b"d", heard.append)
    book.begin("a", b"d", heard.append)
    book.finish("a", b"result")
    book.begin("a", b"d", heard.append)
    assert heard == [b"result"] * 3


def test_who_left_hears_nothing() -> None:
    book, heard = Ledger(), list[bytes]()
    waiter = heard.append
    book.begin("a", b"d", waiter)
    book.leave("a", waiter)
    book.finish("a", b"result")
    assert heard == []
    assert book.state("a") == ("finished", b"result")


def test_an_acknowledged_call_is_forgotten_and_still_never_runs_again() -> None:
    book = Ledger()
    book.begin("a", b"d", ignore)
    book.finish("a", b"result")
    book.acknowledge("a")
    assert book.state("a") == ("acknowledged", None)
    with pytest.raises(Refused, match="does not run again"):
        book.begin("a", b"d", ignore)


def test_a_running_call_cannot_be_acknowledged() -> None:
    book = Ledger()
    book.begin("a", b"d", ignore)
    with pytest.raises(Refused, match="still running"):
        book.acknowledge("a")


def test_an_id_stands_for_one_input() -> None:
    book = Ledger()
    book.begin("a", b"one", ignore)
    with pytest.raises(Refused, match="another tool or input"):
        book.begin("a", b"two", ignore)


@pytest.mark.parametrize("call_id", ["", "x" * (ledger.MAX_ID + 1)])
def test_ids_have_a_length(call_id: str) -> None:
    with pytest.raises(Refused, match="1 to 256 characters"):
        Ledger().begin(call_id, b"", ignore)


def test_results_nobody_acknowledges_are_bounded_in_number() -> None:
    book = Ledger()
    for number in range(ledger.MAX_UNACKNOWLEDGED):
        book.begin(str(number), b"", ignore)
    with pytest.raises(Refused, match="too many results"):
        book.begin("one more", b"", ignore)


def test_results_nobody_acknowledges_are_bounded_in_size() -> None:
    book = Ledger()
    book.begin("a", b"", ignore)
    book.finish("a", bytes(ledger.MAX_KEPT_BYTES))
    with pytest.raises(Refused, match="too many results"):
        book.begin("b", b"", ignore)
    book.acknowledge("a")
    assert book.begin("b", b"", ignore)
