"""API keys: random, shown once, and kept as a hash only.

A key has 256 random bits, so that one round of SHA-256 keeps it as safe as a slow hash keeps a password: there is
nothing to guess, and every call hashes once.
"""

import hashlib
import secrets

KEY_PREFIX = "tw_"
"""Tells a key from a token, and lets scanners for leaked secrets find it."""

HASH_PREFIX = "sha256:"
HASH_PATTERN = f"^{HASH_PREFIX}[0-9a-f]{{64}}$"


def new_key() -> str:
    """A key for one caller, for example ``tw_J3l…``; 46 characters."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What the callers file holds of a key."""
    return HASH_PREFIX + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
