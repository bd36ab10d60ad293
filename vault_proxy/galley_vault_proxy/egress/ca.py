"""The authority that signs for hosts whose TLS ends at the door. Only sandboxes are told to trust it.

Its names cannot be constrained in advance, because credentials come and go while sandboxes run. What can be is: it
signs nothing but servers (extended key usage) and no other authorities (path length 0), and what it signs lives for
days. Its key never leaves the proxy's home.
"""

import contextlib
import ipaddress
import os
import ssl
import tempfile
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from anyio import to_thread
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from galley_vault_proxy.errors import ConfigError
from galley_vault_proxy.kept import private_directory
from galley_vault_proxy.turns import Turns

_CA_LIFE: Final = timedelta(days=5 * 365)
_CA_RENEWED_BEFORE: Final = timedelta(days=180)
_LEAF_LIFE: Final = timedelta(days=7)
_LEAF_RENEWED_BEFORE: Final = timedelta(days=1)
# Clocks of sandboxes may be a little behind.
_BACKDATED: Final = timedelta(hours=1)
_MOST_LEAVES: Final = 512
_LONGEST: Final = 64 * 1024


class Authority:
    """Key and certificate of the authority, and the leaves that it signed a while ago."""

    def __init__(self, home: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._home = home
        self._key = key
        self._certificate = certificate
        # One key for all leaves: it lives as long as the process, and only in its memory.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: OrderedDict[str, tuple[datetime, ssl.SSLContext]] = OrderedDict()
        self._turns = Turns()

    @classmethod
    def open(cls, home: Path, *, now: datetime) -> Self:
        """Take the authority kept in `home`/egress_ca, or make one. Blocking. Raises ConfigError."""
        folder = home / "egress_ca"
        private_directory(folder)
        try:
            found = _read(folder, now)
            if found is None:
                _make(folder, now)
                found = _read(folder, now)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be used: {error.strerror or error}") from None
        if found is None:
            raise ConfigError(f"{folder} does not hold what the proxy wrote there: remove it, and the next start does")
        return cls(folder, *found)

    @property
    def pem(self) -> bytes:
        """The certificate that a sandbox must trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    async def context(self, host: str) -> ssl.SSLContext:
        """What a server needs to answer as `host`, a name or an address in its normal spelling."""
        async with self._turns.take(host):
            now = datetime.now(UTC)
            known = self._contexts.get(host)
            if known is not None and now < known[0]:
                self._contexts.move_to_end(host)
                return known[1]
            context = await to_thread.run_sync(self._new_context, host, now)
            self._contexts[host] = (now + _LEAF_LIFE - _LEAF_RENEWED_BEFORE, context)
            while len(self._contexts) > _MOST_LEAVES:
                self._contexts.popitem(last=False)
            return context

    def leaf(self, host: str, now: datetime) -> x509.Certificate:
        """A certificate for `host`, signed by the authority."""
        name: x509.GeneralName
        try:
            name = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        # A common name holds 64 characters, and nobody reads it where there are alternative names.
        return (
            x509.CertificateBuilder()
            .subject_name(_name(host if len(host) <= 64 else "galley egress"))
            .issuer_name(self._certificate.subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(min(now + _LEAF_LIFE, self._certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._leaf_key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )

    def _new_context(self, host: str, now: datetime) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        chain = self.leaf(host, now).public_bytes(serialization.Encoding.PEM) + self.pem
        key = _private_pem(self._leaf_key)
        # OpenSSL's binding in Python reads keys from files only: this one is ours alone and gone at once.
        with tempfile.NamedTemporaryFile(dir=self._home, prefix=".leaf-", suffix=".pem") as file:
            file.write(key + chain)
            file.flush()
            context.load_cert_chain(file.name)
        return context


def _make(folder: Path, now: datetime) -> None:
    """Two proxies that share a home may both be here: the file of one of them wins, whole."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Galley egress authority")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    descriptor, draft = tempfile.mkstemp(dir=folder, prefix=".authority-")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_private_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
            file.flush()
            os.fsync(file.fileno())
        expired = _file(folder)
        if _certificate_of(expired) is not None and _read(folder, now) is None:
            expired.unlink()
        with contextlib.suppress(FileExistsError):
            os.link(draft, _file(folder))
    finally:
        os.unlink(draft)


def _read(folder: Path, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None:
    """None: there is none, or it ends soon. Raises ConfigError, OSError."""
    path = _file(folder)
    certificate = _certificate_of(path)
    if certificate is None or certificate.not_valid_after_utc - now < _CA_RENEWED_BEFORE:
        return None
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others: run `chmod 600 {path}`")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except ValueError:
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return key, certificate


def _certificate_of(path: Path) -> x509.Certificate | None:
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificate(file.read(_LONGEST))
    except (FileNotFoundError, ValueError):
        return None


def _file(folder: Path) -> Path:
    return folder / "authority.pem"


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Galley"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
