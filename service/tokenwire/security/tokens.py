"""Bearer tokens (JWT), verified with public keys from a file. Nothing is fetched."""

import unicodedata
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jwt

from tokenwire.config import SecurityConfig
from tokenwire.errors import ConfigurationError, UnauthenticatedError
from tokenwire.security.callers import Role
from tokenwire.security.watched import Watched, read_setting

_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
"""Signatures by a private key. Not HS256 and the like, whose key would have to lie here and could sign as well."""

MAX_SUBJECT_CHARACTERS = 256
"""As for names in the callers file."""

LEEWAY_S = 30.0
"""By how much the clocks of issuer and server may differ."""


class Claims(NamedTuple):
    """What a verified token says."""

    subject: str
    roles: frozenset[Role]


class TokenVerifier:
    """Verifies tokens of one issuer for one audience."""

    def __init__(self, jwks: bytes, *, issuer: str, audience: str, roles_claim: str) -> None:
        """Raises ValueError where ``jwks`` holds no usable key."""
        try:
            keys = jwt.PyJWKSet.from_json(jwks.decode()).keys
        except jwt.PyJWTError as error:
            raise ValueError(str(error)) from None
        for key in keys:
            if key.algorithm_name not in _ALGORITHMS:
                raise ValueError(f"key {key.key_id or 'without kid'}: algorithm {key.algorithm_name} is not taken")
        self._keys = {key.key_id: key for key in keys}
        if len(self._keys) < len(keys):
            raise ValueError("every key needs a kid of its own")
        self._only = keys[0] if len(keys) == 1 else None
        self._issuer = issuer
        self._audience = audience
        self._roles_claim = roles_claim

    def verify(self, token: str) -> Claims:
        """The claims of a good token. Raises UnauthenticatedError."""
        try:
            claims = self._decode(token)
            subject, roles = claims["sub"], self._roles(claims)
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("TOKEN_EXPIRED", "the token has expired") from None
        except Exception:
            # PyJWT's own errors, and whatever a header made by a stranger can cause in a parser of JSON.
            raise UnauthenticatedError("CREDENTIAL_INVALID", "the token is not valid here") from None
        if not _is_sane(subject):
            message = f"the token's sub must be at most {MAX_SUBJECT_CHARACTERS} characters, none of them for control"
            raise UnauthenticatedError("CREDENTIAL_INVALID", message)
        return Claims(subject, roles)

    def _decode(self, token: str) -> dict[str, Any]:
        key_id = jwt.get_unverified_header(token).get("kid")
        key = self._only if key_id is None else self._keys.get(key_id)
        if key is None:
            raise ValueError("no such key")
        # The algorithm is the key's, never the one that the token names.
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        if not claims["sub"]:
            raise ValueError("no subject")
        return claims

    def _roles(self, claims: dict[str, Any]) -> frozenset[Role]:
        listed = claims.get(self._roles_claim)
        if listed is None:
            return frozenset({"inference"})
        # As OAuth writes scopes: words in one string.
        words = set(listed.split() if isinstance(listed, str) else map(str, listed))
        return frozenset(role for role in get_args(Role) if role in words)


def _is_sane(subject: str) -> bool:
    """Whether logs, traces and limits can name a caller by ``subject``: it is short, and one line of Unicode."""
    # Control characters, lone surrogates, separators of lines and paragraphs.
    unfit = {"Cc", "Cs", "Zl", "Zp"}
    return len(subject) <= MAX_SUBJECT_CHARACTERS and not any(unicodedata.category(each) in unfit for each in subject)


def watched_verifier(config: SecurityConfig) -> Watched[TokenVerifier] | None:
    """The verifier that ``config`` asks for, or None. Raises ConfigurationError."""
    path, issuer, audience = config.jwt_keys, config.jwt_issuer, config.jwt_audience
    if path is None or issuer is None or audience is None:
        return None
    return Watched("token keys", [path], lambda: _load(path, issuer, audience, config.jwt_roles_claim))


def _load(path: Path, issuer: str, audience: str, roles_claim: str) -> TokenVerifier:
    data = read_setting("jwt_keys", path)
    try:
        return TokenVerifier(data, issuer=issuer, audience=audience, roles_claim=roles_claim)
    except Exception as error:
        raise ConfigurationError(f"jwt_keys {path}: is no usable JWKS ({' '.join(str(error).split())})") from None
