"""The server's certificate, read from disk and changed while connections are open."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tokenwire.config import SecurityConfig
from tokenwire.errors import ConfigurationError
from tokenwire.security.watched import Watched, read_setting

logger = logging.getLogger("tokenwire.security")


class Certificates(NamedTuple):
    """PEM texts that belong together."""

    chain: bytes
    key: bytes
    client_ca: bytes | None


def watched_certificates(config: SecurityConfig) -> Watched[Certificates]:
    """The certificates that ``config`` names. Raises ConfigurationError."""
    certificate, key, client_ca = config.tls_certificate, config.tls_key, config.tls_client_ca
    if certificate is None or key is None:
        raise ConfigurationError("TLS needs tls_certificate and tls_key")
    paths = [path for path in (certificate, key, client_ca) if path is not None]
    return Watched("certificates", paths, lambda: _load(certificate, key, client_ca))


def server_credentials(certificates: Watched[Certificates]) -> grpc.ServerCredentials:
    """Credentials that take the newest certificates for every new connection."""
    given = certificates.value

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC from threads of its own, before each handshake; None: as before.
        nonlocal given
        newest = certificates.value
        if newest is given:
            return None
        given = newest
        return _configuration(newest)

    # An authority that is added or left out later changes whom it trusts, never whether it asks.
    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        fetch,  # type: ignore[arg-type]  # the stubs leave out None
        require_client_authentication=given.client_ca is not None,
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificates.key, certificates.chain)], root_certificates=certificates.client_ca
    )


def _load(certificate: Path, key: Path, client_ca: Path | None) -> Certificates:
    chain = read_setting("tls_certificate", certificate)
    own = _certificates("tls_certificate", certificate, chain)[0]
    key_pem = read_setting("tls_key", key)
    if _public_bytes(_public_key_of(key, key_pem)) != _public_bytes(own.public_key()):
        raise ConfigurationError(f"tls_key {key}: does not belong to the certificate in tls_certificate {certificate}")
    ca_pem = None
    if client_ca is not None:
        ca_pem = read_setting("tls_client_ca", client_ca)
        _certificates("tls_client_ca", client_ca, ca_pem)
    if own.not_valid_after_utc <= datetime.now(UTC):
        # Some clients do not look, and no certificate at all would help none of them.
        logger.warning("tls_certificate %s: expired at %s", certificate, own.not_valid_after_utc.isoformat())
    return Certificates(chain, key_pem, ca_pem)


def _certificates(setting: str, path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigurationError(f"{setting} {path}: holds no certificate in PEM") from None


def _public_key_of(path: Path, pem: bytes) -> object:
    try:
        return load_pem_private_key(pem, None).public_key()
    except TypeError:
        raise ConfigurationError(f"tls_key {path}: has a passphrase; give the key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"tls_key {path}: holds no private key in PEM") from None


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return encoded
