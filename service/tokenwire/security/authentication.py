"""From what a call brings to a caller with the role that its method asks for."""

import hmac
from collections.abc import Iterable, Sequence
from typing import Protocol

from tokenwire.config import SecurityConfig
from tokenwire.errors import PermissionDeniedError, UnauthenticatedError
from tokenwire.security.callers import ANONYMOUS, Caller, Callers, Role, watched_callers
from tokenwire.security.keys import KEY_PREFIX, hash_of
from tokenwire.security.watched import Refreshable, Watched

AUTHORIZATION_KEY = "authorization"
"""Metadata key of the credential: ``Bearer`` and an API key or a token."""

_OPEN_SERVICES = ("grpc.health.v1.Health",)
"""Probes have no credentials; they learn whether it serves, and nothing else."""

_INFERENCE_SERVICES = (
    "tokenwire.v1.GenerationService",
    "tokenwire.v1.TokenizerService",
    "tokenwire.v1.ModelService",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)


def required_role(method: str) -> Role | None:
    """The role that a method, ``/package.Service/Method``, asks for; None where anyone may call it.

    A service that is not listed is for administrators, so that one which was forgotten here is closed.
    """
    service = method.removeprefix("/").rpartition("/")[0]
    if service in _OPEN_SERVICES:
        return None
    return "inference" if service in _INFERENCE_SERVICES else "admin"


def check_role(method: str, caller: Caller) -> None:
    """Raise PermissionDeniedError unless ``caller`` has the role that ``method`` asks for."""
    role = required_role(method)
    if role is not None and role not in caller.roles:
        raise PermissionDeniedError("ROLE_MISSING", f"this method needs the role {role}")


class Verifier(Protocol):
    """What is needed of `tokens.TokenVerifier`, which needs libraries that not every server has."""

    def verify(self, token: str) -> tuple[str, frozenset[Role]]:
        """Subject and roles of a good token. Raises UnauthenticatedError."""


class Authenticator:
    """Knows callers by API key, token or client certificate. Without callers and verifier anyone is ANONYMOUS."""

    def __init__(self, callers: Watched[Callers] | None = None, verifier: Watched[Verifier] | None = None) -> None:
        self._callers = callers
        self._verifier = verifier
        self._no_callers = Callers()

    @property
    def watched(self) -> list[Refreshable]:
        """What is read anew when its file changes."""
        return [each for each in (self._callers, self._verifier) if each is not None]

    def identify(self, method: str, authorization: Sequence[str], certificate_names: Iterable[str]) -> Caller:
        """Who calls ``method``, whether or not it may. Raises UnauthenticatedError.

        ``authorization``: every value of that metadata key. ``certificate_names``: those of the client's certificate,
        verified by TLS.
        """
        if required_role(method) is None or (self._callers is None and self._verifier is None):
            return ANONYMOUS
        callers = self._no_callers if self._callers is None else self._callers.value
        if authorization:
            return self._by_credential(authorization, callers)
        for name in certificate_names:
            if name in callers.by_certificate:
                return callers.by_certificate[name]
        raise UnauthenticatedError(
            "CREDENTIAL_MISSING", f"send a credential as metadata {AUTHORIZATION_KEY}: Bearer <API key or token>"
        )

    def _by_credential(self, authorization: Sequence[str], callers: Callers) -> Caller:
        scheme, _, credential = authorization[0].partition(" ")
        credential = credential.strip()
        if len(authorization) > 1 or scheme.lower() != "bearer" or not credential:
            raise UnauthenticatedError("CREDENTIAL_INVALID", f"{AUTHORIZATION_KEY} must be: Bearer <API key or token>")
        if credential.startswith(KEY_PREFIX):
            return _by_key(credential, callers)
        if self._verifier is None:
            raise UnauthenticatedError("CREDENTIAL_INVALID", "this is no API key")
        return callers.of_token(*self._verifier.value.verify(credential))


def _by_key(key: str, callers: Callers) -> Caller:
    given = hash_of(key)
    found = None
    # All of them, each in constant time: how long it takes says nothing about any of them.
    for known, caller in callers.by_key_hash.items():
        if hmac.compare_digest(known, given):
            found = caller
    if found is None:
        raise UnauthenticatedError("CREDENTIAL_INVALID", "this API key is not known here")
    return found


def make_authenticator(config: SecurityConfig) -> Authenticator:
    """The authenticator of these settings. Raises ConfigurationError."""
    verifier: Watched[Verifier] | None = None
    if config.jwt_keys is not None:
        # Here, so that a server without tokens needs no library for them.
        from tokenwire.security.tokens import watched_verifier

        verifier = watched_verifier(config)
    return Authenticator(watched_callers(config), verifier)
