"""The sample's first step, once: certificates, the broker's service key, and whose each folder is.

In production the certificates come from your own authority and the key from wherever you keep secrets. Here each
authority signs one server and is thrown away: to renew, remove its two volumes and start again.
"""

import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BROKER, SANDBOX, STORE = 10001, 10002, 100
FOLDERS = (
    *("store-tls", "store-ca", "store-data", "store-audit", "operator", "login", "service-key", "proxy-home"),
    *("proxy-sockets", "request", "greeting", "outside-tls", "outside-ca", "outside-secrets"),
)
_LIFE = timedelta(days=397)


def certificate(
    subject: str,
    key: ec.EllipticCurvePublicKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    names: Sequence[str] | None,
) -> x509.Certificate:
    """`names` None: an authority."""
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names is not None:
        built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return built.sign(signer, hashes.SHA256())


def make_certificates(server: Path, authority: Path, names: Sequence[str]) -> None:
    """`server`/server.pem and server.key for these names, and `authority`/ca.pem, if they are not there yet."""
    if (server / "server.key").exists():
        return
    signer, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = f"Authority of the sample, for {names[0]}"
    pem = serialization.Encoding.PEM
    (authority / "ca.pem").write_bytes(certificate(issuer, signer.public_key(), issuer, signer, None).public_bytes(pem))
    (server / "server.pem").write_bytes(
        certificate(names[0], key.public_key(), issuer, signer, names).public_bytes(pem)
    )
    put(
        server / "server.key",
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
    )


def make_secret(path: Path, prefix: str) -> None:
    if not path.exists():
        put(path, f"{prefix}{secrets.token_urlsafe(32)}\n")


def put(path: Path, text: str) -> None:
    """For its owner alone from its first moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def give(folder: Path, user: int, *, mode: int = 0o700, group: int | None = None) -> None:
    """All in the folder, and the folder, to this user; to the group too, if one is given, for reading."""
    owner = (user, user if group is None else group)
    for path in [folder, *folder.rglob("*")]:
        if os.geteuid() == 0:  # nobody else can, and then all runs as one user
            os.chown(path, *owner)
        if group is not None:
            path.chmod(0o750 if path.is_dir() else 0o640)
    folder.chmod(0o750 if group is not None else mode)


def main(root: Path) -> int:
    """Everything below `root` is a volume of its own, named after what is in it."""
    for folder in FOLDERS:
        (root / folder).mkdir(exist_ok=True)
    make_certificates(root / "store-tls", root / "store-ca", ["store", "localhost"])
    make_secret(root / "service-key" / "service_key", "galley_proxy_")
    for folder in ("store-tls", "store-data", "store-audit"):
        give(root / folder, STORE)
    give(root / "store-ca", BROKER, mode=0o755)
    for folder in ("operator", "login", "proxy-home", "proxy-sockets"):
        give(root / folder, BROKER)
    # Whoever runs sandboxes is in the broker's group: it reads the service key, and hands greetings to the tunnels.
    give(root / "service-key", BROKER, group=BROKER)
    give(root / "greeting", SANDBOX, group=BROKER)
    give(root / "request", BROKER, mode=0o755)

    # What the sample brings along in place of the world outside.
    make_certificates(root / "outside-tls", root / "outside-ca", ["outside.sample.internal", "localhost"])
    make_secret(root / "outside-secrets" / "mcp_token", "sample-secret-")
    make_secret(root / "outside-secrets" / "api_key", "sample-secret-")
    give(root / "outside-tls", BROKER)
    give(root / "outside-ca", BROKER, mode=0o755)
    give(root / "outside-secrets", BROKER)
    sys.stdout.write("prepared\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
