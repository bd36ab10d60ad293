"""The authority: made once, kept to itself, and signing for one host at a time."""

import asyncio
import ipaddress
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from galley_vault_proxy.egress.ca import Authority
from galley_vault_proxy.errors import ConfigError

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def certificate(authority: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.pem)


def test_its_key_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    Authority.open(tmp_path, now=NOW)
    (file,) = (tmp_path / "egress_ca").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert b"PRIVATE KEY" in file.read_bytes()


def test_it_is_made_once(tmp_path: Path) -> None:
    assert Authority.open(tmp_path, now=NOW).pem == Authority.open(tmp_path, now=NOW).pem


def test_what_it_gives_away_holds_no_key(tmp_path: Path) -> None:
    assert b"PRIVATE" not in Authority.open(tmp_path, now=NOW).pem


def test_it_may_sign_servers_and_nothing_else(tmp_path: Path) -> None:
    found = certificate(Authority.open(tmp_path, now=NOW))
    basic = found.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not found.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    key = found.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


@pytest.mark.parametrize("host", ["api.test", "10.0.0.1", "2001:db8::1", "a" * 60 + "." + "b" * 60 + ".test"])
def test_a_leaf_is_for_one_host_and_a_few_days(tmp_path: Path, host: str) -> None:
    leaf = Authority.open(tmp_path, now=NOW).leaf(host, NOW)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    wanted = names.get_values_for_type(x509.IPAddress) or names.get_values_for_type(x509.DNSName)
    assert [str(name) for name in wanted] == [host]
    assert leaf.not_valid_after_utc - NOW <= timedelta(days=7)
    assert leaf.not_valid_before_utc < NOW


def test_one_that_ends_soon_is_replaced(tmp_path: Path) -> None:
    first = Authority.open(tmp_path, now=NOW)
    later = Authority.open(tmp_path, now=certificate(first).not_valid_after_utc - timedelta(days=30))
    assert later.pem != first.pem


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path, now=NOW)
    (tmp_path / "egress_ca" / "authority.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Authority.open(tmp_path, now=NOW)


def test_a_damaged_file_is_told_and_not_overwritten(tmp_path: Path) -> None:
    Authority.open(tmp_path, now=NOW)
    path = tmp_path / "egress_ca" / "authority.pem"
    path.write_bytes(b"not it")
    with pytest.raises(ConfigError, match="remove it"):
        Authority.open(tmp_path, now=NOW)
    assert path.read_bytes() == b"not it"


@pytest.mark.anyio
async def test_a_strict_client_accepts_its_leaves(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, now=datetime.now(UTC))
    server = await authority.context("api.test")
    client = ssl.create_default_context(cadata=authority.pem.decode())
    # What Python 3.13 demands, and other libraries too.
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    inside = client.wrap_bio(to_client, to_server, server_hostname="api.test")
    outside = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (inside, outside, inside, outside):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert inside.getpeercert()["subjectAltName"] == (("DNS", "api.test"),)  # type: ignore[index]


@pytest.mark.anyio
async def test_one_host_is_signed_for_once_however_many_ask(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, now=datetime.now(UTC))
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(authority.context("api.test")) for _ in range(8)]
    assert len({id(task.result()) for task in asked}) == 1
    assert await authority.context("b.test") is not asked[0].result()
    assert len(list((tmp_path / "egress_ca").iterdir())) == 1  # no key is left behind


def test_addresses_are_addresses_in_a_leaf(tmp_path: Path) -> None:
    leaf = Authority.open(tmp_path, now=NOW).leaf("10.0.0.1", NOW)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.1")]
