"""Bearer tokens: what is taken, and that everything else is refused with one of two errors."""

import base64
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.tokens import AUDIENCE, ISSUER, Issuer
from tokenwire.errors import UnauthenticatedError
from tokenwire.security.tokens import LEEWAY_S, Claims, TokenVerifier

ONE = Issuer()
INFERENCE, ADMIN = frozenset({"inference"}), frozenset({"admin"})


def verifier(*keys: dict[str, Any], roles_claim: str = "roles") -> TokenVerifier:
    jwks = json.dumps({"keys": keys}).encode()
    return TokenVerifier(jwks, issuer=ISSUER, audience=AUDIENCE, roles_claim=roles_claim)


VERIFIER = verifier(ONE.jwk)


def reason(token: str, by: TokenVerifier = VERIFIER) -> str:
    with pytest.raises(UnauthenticatedError) as refused:
        by.verify(token)
    return refused.value.reason


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
def test_good_tokens(algorithm: str) -> None:
    issuer = Issuer(algorithm)
    assert verifier(issuer.jwk).verify(issuer.token()) == Claims("alice", INFERENCE)


@pytest.mark.parametrize(
    ("claim", "roles"),
    [
        (None, INFERENCE),
        (["inference"], INFERENCE),
        (["admin"], ADMIN),
        (["admin", "inference", "else"], ADMIN | INFERENCE),
        ("openid inference", INFERENCE),
        ("openid", frozenset()),
        ([], frozenset()),
        ("", frozenset()),
        (["Admin", "admin "], frozenset()),
    ],
)
def test_roles(claim: object, roles: frozenset[str]) -> None:
    assert VERIFIER.verify(ONE.token(roles=claim)).roles == roles
    assert verifier(ONE.jwk, roles_claim="scope").verify(ONE.token(scope=claim)).roles == roles


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://else.example"},
        {"iss": None},
        {"aud": "else"},
        {"aud": None},
        {"aud": ["else", "more"]},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": time.time() + 3600},
        {"roles": 7},
    ],
)
def test_claims_that_are_refused(changes: dict[str, Any]) -> None:
    assert reason(ONE.token(**changes)) == "CREDENTIAL_INVALID"


@pytest.mark.parametrize("subject", ["x" * 256, "größer 世界", "spiffe://a/b", "a@b.example", "|", "\u200dx"])
def test_subjects_that_are_taken(subject: str) -> None:
    assert VERIFIER.verify(ONE.token(sub=subject)).subject == subject


@pytest.mark.parametrize("subject", ["x" * 257, "a\nb", "\r", "\x1b[2K", "\x00", "\x7f", "\x85", "\u2028", "a\ud800"])
def test_subjects_that_no_log_should_hold_are_refused(subject: str) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        VERIFIER.verify(ONE.token(sub=subject))
    assert refused.value.reason == "CREDENTIAL_INVALID"
    assert str(refused.value) == "the token's sub must be at most 256 characters, none of them for control"


def test_the_audience_may_be_one_of_several() -> None:
    assert VERIFIER.verify(ONE.token(aud=["else", AUDIENCE])).subject == "alice"


def test_expiry_has_some_leeway_and_a_name() -> None:
    now = time.time()
    assert VERIFIER.verify(ONE.token(exp=now - LEEWAY_S / 3)).subject == "alice"
    assert reason(ONE.token(exp=now - LEEWAY_S - 60)) == "TOKEN_EXPIRED"
    # Only of a token that is good otherwise.
    assert reason(Issuer().token(exp=now - 3600)) == "CREDENTIAL_INVALID"


def test_keys_are_told_apart_by_kid() -> None:
    two = Issuer("RS256", "two")
    both = verifier(ONE.jwk, two.jwk)
    assert both.verify(ONE.token()).subject == both.verify(two.token()).subject == "alice"
    assert reason(Issuer(kid="three").token(), both) == "CREDENTIAL_INVALID"
    assert reason(Issuer(kid="one").token(), both) == "CREDENTIAL_INVALID"
    # Without one there is nothing to choose by, unless there is no choice.
    nameless = jwt.encode(ONE.claims(), ONE.key, algorithm="ES256")
    assert reason(nameless, both) == "CREDENTIAL_INVALID"
    assert VERIFIER.verify(nameless).subject == "alice"


def test_the_token_does_not_choose_its_algorithm() -> None:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    for algorithm in ("none", "None", "nOnE", "", None, 7, "HS256", "ES384", "RS256"):
        header = {"alg": algorithm, "typ": "JWT", "kid": "one"}
        assert reason(f"{part(header)}.{part(ONE.claims())}.") == "CREDENTIAL_INVALID"
        signature = ONE.token().rpartition(".")[2]
        assert reason(f"{part(header)}.{part(ONE.claims())}.{signature}") == "CREDENTIAL_INVALID"
    # The public key as a secret: the classic confusion.
    signed = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'one'})}.{part(ONE.claims())}"
    public = ONE.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (public, json.dumps(ONE.jwk).encode()):
        signature = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), "sha256")).rstrip(b"=").decode()
        assert reason(f"{signed}.{signature}") == "CREDENTIAL_INVALID"


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_no_text_raises_anything_else(text: str) -> None:
    assert reason(text) == "CREDENTIAL_INVALID"


@given(place=st.integers(0, 10_000), replacement=st.characters())
def test_no_change_of_a_good_token_passes(place: int, replacement: str) -> None:
    token = ONE.token()
    place %= token.rindex(".")
    changed = token[:place] + replacement + token[place + 1 :]
    if changed != token:
        assert reason(changed) == "CREDENTIAL_INVALID"


def test_a_header_that_is_a_bomb() -> None:
    nested = base64.urlsafe_b64encode(b"[" * 20_000).decode()
    assert reason(f"{nested}.{nested}.{nested}") == "CREDENTIAL_INVALID"


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [{"kty": "oct", "k": "c2VjcmV0", "kid": "one", "alg": "HS256"}],
        [{**ONE.jwk, "x": "short"}],
        [ONE.jwk, Issuer("RS256", "one").jwk],
        [{"kty": "none"}],
    ],
)
def test_key_sets_that_are_refused(keys: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        verifier(*keys)
