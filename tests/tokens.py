"""An issuer of tokens, made for one test."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example", "tokenwire"

_MAKERS: dict[str, Any] = {
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "RS256": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate, OKPAlgorithm),
}


class Issuer:
    """One key and the tokens signed with it."""

    def __init__(self, algorithm: str = "ES256", kid: str = "one") -> None:
        make, self._algorithm_class = _MAKERS[algorithm]
        self.algorithm = algorithm
        self.kid = kid
        self.key = make()

    @property
    def jwk(self) -> dict[str, Any]:
        public: dict[str, Any] = self._algorithm_class.to_jwk(self.key.public_key(), as_dict=True)
        return {**public, "kid": self.kid, "use": "sig", "alg": self.algorithm}

    def write(self, folder: Path) -> Path:
        """``jwks.json`` with this key alone."""
        path = folder / "jwks.json"
        path.write_text(json.dumps({"keys": [self.jwk]}))
        return path

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good token, with changes; None leaves a claim out."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 600, **changes}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, **changes: Any) -> str:
        return self.sign(self.claims(**changes))

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        return jwt.encode(claims, self.key, algorithm=self.algorithm, headers={"kid": self.kid, **header})
