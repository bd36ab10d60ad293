"""Which session goes when there are too many."""

from galley_server.mcp.sessions import FRESH_S, SessionBook

IDLE_S = 1800.0


def book(*used_at: float) -> SessionBook:
    sessions = SessionBook(limit=3, idle_s=IDLE_S)
    for number, at in enumerate(used_at):
        sessions.opened(f"s{number}", at)
    return sessions


def test_the_session_idle_for_longest_goes() -> None:
    assert book(20.0, 10.0, 30.0).victim(now=100.0) == "s1"


def test_a_session_in_use_stays_however_old() -> None:
    sessions = book(0.0, 10.0)
    with sessions.using("s0", 1, lambda: 100.0):
        assert sessions.victim(now=100.0) == "s1"


def test_a_session_used_just_now_stays() -> None:
    assert book(100.0).victim(now=100.0 + FRESH_S / 2) is None


def test_use_is_remembered_from_its_end() -> None:
    sessions = book(0.0, 10.0)
    with sessions.using("s0", 1, lambda: 50.0):
        pass
    assert sessions.victim(now=100.0) == "s1"


def test_sessions_that_the_sdk_has_ended_are_forgotten() -> None:
    sessions = book(0.0, 1000.0)
    sessions.forget_idle(now=IDLE_S + 1)
    assert len(sessions) == 1


def test_a_request_id_is_taken_while_its_answer_is_awaited() -> None:
    sessions = book(0.0)
    with sessions.using("s0", 1, lambda: 1.0):
        assert sessions.answering("s0", "1")
        assert not sessions.answering("s0", 2)
    assert not sessions.answering("s0", 1)


def test_an_unknown_session_is_nobodys_business_here() -> None:
    sessions = book()
    with sessions.using("unknown", 1, lambda: 1.0):
        assert not sessions.answering("unknown", 1)
    sessions.ended("unknown")
