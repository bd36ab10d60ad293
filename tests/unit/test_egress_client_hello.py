"""The hello of a TLS client: read whole or in crumbs, from real clients and from liars."""

import ssl
import struct

import pytest
from galley_vault_proxy.egress.client_hello import MAX_HELLO, AfterHello, BadHello, ClientHello, HelloReader, is_tls

GREASE = 0x3A3A
ECH = 0xFE0D


def real_hello(name: str | None) -> bytes:
    """What this machine's OpenSSL says first."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size) + data


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!H", kind) + vector(2, content)


def names(*found: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in found)))


def message(*extensions: bytes, ciphers: bytes = b"\x3a\x3a\x13\x01", tail: bytes = b"") -> bytes:
    body = b"\x03\x03" + bytes(32) + vector(1, b"session") + vector(2, ciphers) + vector(1, b"\0")
    if extensions:
        body += vector(2, b"".join(extensions))
    body += tail
    return b"\x01" + vector(3, body)


def records(data: bytes, size: int = 16384) -> bytes:
    return b"".join(b"\x16\x03\x01" + vector(2, data[at : at + size]) for at in range(0, len(data), size))


def read(data: bytes) -> ClientHello | None:
    return HelloReader().feed(data)


def test_a_real_hello_names_its_host() -> None:
    assert read(real_hello("Api.Example.com")) == ClientHello("api.example.com")


def test_a_real_hello_to_an_address_names_none() -> None:
    assert read(real_hello(None)) == ClientHello(None)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_it_may_come_in_pieces_of_any_size(size: int) -> None:
    data = real_hello("api.test")
    reader = HelloReader()
    found = [reader.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert found[-1] == ClientHello("api.test")
    assert set(found[:-1]) == {None}


@pytest.mark.parametrize("size", [1, 7, 200])
def test_it_may_lie_in_several_records(size: int) -> None:
    wanted = message(names(b"api.test"), tail=b"")
    if len(wanted) / size > 64:
        with pytest.raises(BadHello, match="more than 64 records"):
            read(records(wanted, size))
    else:
        assert read(records(wanted, size)) == ClientHello("api.test")


def test_values_that_mean_nothing_are_passed_over() -> None:
    grease = extension(GREASE, b"\0")
    assert read(records(message(grease, names(b"api.test"), extension(0x4A4A, b"")))) == ClientHello("api.test")


def test_an_old_hello_without_extensions_names_none() -> None:
    assert read(records(message())) == ClientHello(None)


def test_a_hidden_second_hello_is_told() -> None:
    assert read(records(message(names(b"a.test"), extension(ECH, b"x" * 40)))) == ClientHello("a.test", hides_name=True)


def test_what_follows_the_hello_in_another_record_is_not_looked_at() -> None:
    assert read(records(message(names(b"a.test"))) + b"\x17\x03\x03\x00\x05early") == ClientHello("a.test")


def test_nothing_but_a_handshake_is_tls() -> None:
    assert is_tls(b"\x16\x03\x01")
    assert not is_tls(b"GET / HTTP/1.1")
    assert not is_tls(b"\x80\x2e\x01\x00\x02")  # the hello of SSL 2


@pytest.mark.parametrize(
    "liar",
    [
        records(message(names(b"a.test"), names(b"b.test"))),
        records(message(names(b"a.test", b"b.test"))),
        records(message(names())),
        records(message(names(b""))),
        records(message(names(b"a.test", kind=1))),
        records(message(names(b"a\0.test"))),
        records(message(names("ä.test".encode()))),
        records(message(names(b"a.test"), tail=b"?")),
        records(message(extension(0, vector(2, b"\0" + vector(2, b"a.test")) + b"?"))),
        records(message(extension(0, b"\x00"))),
        records(message(names(b"a.test"), ciphers=b"\x13")),
        records(message(names(b"a.test")) + b"\x01"),
        records(b"\x02" + message(names(b"a.test"))[1:]),
        records(b"\x01" + (MAX_HELLO + 1).to_bytes(3)),
        b"\x16\x02\x01\x00\x05hello",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        records(message(names(b"a.test"))[:20]) + b"\x17\x03\x03\x00\x01x",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(liar: bytes) -> None:
    with pytest.raises(BadHello):
        read(liar)


def test_every_cut_of_a_hello_waits_or_is_refused() -> None:
    whole = message(names(b"api.test"), extension(GREASE, b"x"))
    for length in range(4, len(whole)):
        cut = b"\x01" + (length - 4).to_bytes(3) + whole[4:length]
        try:
            found = read(records(cut))
        except BadHello:
            continue
        # Only the form without extensions is whole by itself.
        assert found == ClientHello(None)


SECOND = records(message(names(b"evil.test")))
CHANGE = b"\x14\x03\x03\x00\x01\x01"
FINISHED = b"\x17\x03\x03\x00\x40" + bytes(64)
KEY_EXCHANGE = b"\x16\x03\x03\x00\x05\x10\0\0\0\0"


def after(data: bytes, size: int, *, early: bool = False) -> tuple[bytes, list[str | None], bool]:
    """What was passed on, which names were checked before, and whether the watch is over."""
    seen: list[str | None] = []
    watched = AfterHello(ClientHello("a.test", talks_early=early), lambda hello: seen.append(hello.server_name))
    passed = b"".join(watched.feed(data[at : at + size]) for at in range(0, len(data), size))
    return passed, seen, watched.done


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
@pytest.mark.parametrize("before", [b"", CHANGE])
def test_a_second_hello_is_checked_before_any_of_it_is_passed_on(size: int, before: bytes) -> None:
    assert after(before + SECOND, size) == (before + SECOND, ["evil.test"], True)
    assert after(before + SECOND[:-1], size) == (before, [], False)


@pytest.mark.parametrize("size", [1, 64, 10_000])
def test_a_second_hello_after_early_data_is_checked_too(size: int) -> None:
    assert after(FINISHED + CHANGE + SECOND, size, early=True) == (FINISHED + CHANGE + SECOND, ["evil.test"], True)


@pytest.mark.parametrize("size", [1, 64, 10_000])
@pytest.mark.parametrize("usual", [CHANGE + FINISHED, KEY_EXCHANGE + CHANGE, FINISHED, b"\x99nonsense"])
def test_a_handshake_that_goes_on_is_watched_no_longer(usual: bytes, size: int) -> None:
    assert after(usual + SECOND, size) == (usual + SECOND, [], True)


def test_early_data_without_end_is_watched_no_longer() -> None:
    passed, seen, done = after(FINISHED * 5000, 65536, early=True)
    assert (passed, seen, done) == (FINISHED * 5000, [], True)
