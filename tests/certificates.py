"""Certificate authorities and certificates, made for one test."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def chain_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        encryption: KeySerializationEncryption = (
            NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
        )
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """``tls.crt`` and ``tls.key`` in the folder."""
        certificate, key = folder / "tls.crt", folder / "tls.key"
        certificate.write_bytes(self.chain_pem)
        key.write_bytes(self.key_pem())
        return certificate, key


def _build(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """Signs certificates."""

    def __init__(self, name: str = "test authority") -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _build(name, _name(name), key, 10).add_extension(x509.BasicConstraints(True, None), critical=True)
        self._pair = Pair(builder.sign(key, hashes.SHA256()), key)

    @property
    def pem(self) -> bytes:
        return self._pair.chain_pem

    def issue(self, name: str = "server", *, uri: str | None = None, days: int = 10) -> Pair:
        """A certificate for 127.0.0.1 and localhost, or for a client with a URI; one with ``days`` < 0 has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        if uri is not None:
            names = [x509.UniformResourceIdentifier(uri)]
        builder = _build(name, self._pair.certificate.subject, key, days)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return Pair(builder.sign(self._pair.key, hashes.SHA256()), key)
