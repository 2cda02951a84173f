"""Who may call: roles and limits, and the file that says so."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tokenwire.config import SecurityConfig
from tokenwire.errors import ConfigurationError, PermissionDeniedError
from tokenwire.security.keys import HASH_PATTERN
from tokenwire.security.watched import Watched, read_setting

Role = Literal["inference", "admin"]
Priority = Literal["low", "normal", "high"]

_RANKS: dict[Priority, int] = {"low": 0, "normal": 1, "high": 2}

_Limit = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one caller may take of the service; None is no limit of its own."""

    max_running: _Limit | None = None
    """Rows of the batch (one per sequence or beam) generated at the same time; further requests wait."""
    max_queued: _Limit | None = None
    """Requests that may wait."""
    tokens_per_minute: _Limit | None = None
    """Tokens of prompts and answers."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """One caller, as limits and the log know it."""

    name: str
    roles: frozenset[Role]
    limits: Limits = Limits()
    priority: Priority = "normal"
    """Of its requests, and the highest that they may ask for."""

    def priority_for(self, asked: Priority | None) -> Priority:
        """Where a request waits that asks for ``asked``. Raises PermissionDeniedError for more than is the caller's."""
        if asked is None:
            return self.priority
        if _RANKS[asked] > _RANKS[self.priority]:
            message = f"priority {asked} is above the caller's own, {self.priority}"
            raise PermissionDeniedError("PRIORITY_NOT_ALLOWED", message)
        return asked


ANONYMOUS = Caller(name="", roles=frozenset({"inference"}))
"""Whoever calls where no credentials are asked for. Never an administrator."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table ``[callers.NAME]`` of the file. What is left out comes from ``[defaults]``."""

    key_hashes: tuple[Annotated[str, msgspec.Meta(pattern=HASH_PATTERN)], ...] = ()
    """Hashes of API keys, as `tokenwire keys` prints them; two while one key replaces another."""
    jwt_subjects: tuple[_Name, ...] = ()
    """The sub claims of its tokens."""
    certificate_names: tuple[_Name, ...] = ()
    """Names in its client certificates: a SPIFFE id or another URI, a DNS name, or the common name."""
    roles: tuple[Role, ...] = ("inference",)
    """What a key or a certificate allows; a token brings its own."""
    priority: Priority | None = None
    max_running: _Limit | None = None
    max_queued: _Limit | None = None
    tokens_per_minute: _Limit | None = None


class Defaults(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[defaults]``: for callers that say nothing else, and for tokens of no entry."""

    priority: Priority = "normal"


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The callers file."""

    defaults: Defaults = Defaults()
    callers: dict[_Name, Entry] = {}


class Callers:
    """The callers of one file, by each kind of credential."""

    def __init__(self, file: File | None = None) -> None:
        file = file or File()
        self._defaults = file.defaults
        self.by_key_hash: dict[str, Caller] = {}
        self.by_subject: dict[str, Caller] = {}
        self.by_certificate: dict[str, Caller] = {}
        for name, entry in file.callers.items():
            caller = self._caller(name, entry)
            for kind, credentials, known in (
                ("key_hashes", entry.key_hashes, self.by_key_hash),
                ("jwt_subjects", entry.jwt_subjects, self.by_subject),
                ("certificate_names", entry.certificate_names, self.by_certificate),
            ):
                for credential in credentials:
                    if credential in known:
                        raise ValueError(f"callers.{name}.{kind} holds {credential}, as does {known[credential].name}")
                    known[credential] = caller

    def of_token(self, subject: str, roles: frozenset[Role]) -> Caller:
        """Whoever a verified token speaks for."""
        known = self.by_subject.get(subject)
        if known is not None:
            return msgspec.structs.replace(known, roles=roles)
        # A prefix that no entry can be reached by, so that a subject never takes an entry's limits by its name.
        return self._caller(f"jwt:{subject}", Entry(), roles)

    def _caller(self, name: str, entry: Entry, roles: frozenset[Role] | None = None) -> Caller:
        def setting(key: str) -> Any:
            own = getattr(entry, key)
            return getattr(self._defaults, key) if own is None else own

        return Caller(
            name=name,
            roles=frozenset(entry.roles) if roles is None else roles,
            limits=Limits(**{key: setting(key) for key in Limits.__struct_fields__}),
            priority=setting("priority"),
        )


def watched_callers(config: SecurityConfig) -> Watched[Callers] | None:
    """The callers of the file that ``config`` names, or None. Raises ConfigurationError."""
    path = config.callers
    return None if path is None else Watched("callers", [path], lambda: read_callers(path))


def read_callers(path: Path) -> Callers:
    """The callers of a file. Raises ConfigurationError with one line that names the key."""
    data = read_setting("callers", path)
    try:
        file = msgspec.toml.decode(data, type=File)
        for name, entry in file.callers.items():
            if ":" in name:
                raise ValueError(f"callers.{name}: a name must have no colon")
            if not (entry.key_hashes or entry.jwt_subjects or entry.certificate_names):
                raise ValueError(f"callers.{name} needs key_hashes, jwt_subjects or certificate_names")
        return Callers(file)
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"callers {path}: {' '.join(str(error).split())}") from None
