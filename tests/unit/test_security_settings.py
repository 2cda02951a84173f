"""Files of the operator's: keys, callers, certificates and token keys. What is wrong is one line that names it."""

import hashlib
import json
import logging
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.serving import ROOT, clean_environment, serve_command
from tests.tokens import Issuer
from tokenwire import cli
from tokenwire.config import SecurityConfig
from tokenwire.errors import ConfigurationError
from tokenwire.security.authentication import make_authenticator
from tokenwire.security.callers import Limits, read_callers
from tokenwire.security.keys import hash_of, new_key
from tokenwire.security.tls import watched_certificates
from tokenwire.security.watched import Watched

HASH = hash_of("tw_x")


def test_keys_are_random_and_only_their_hash_is_known() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch(r"tw_[\w-]{43}", key) for key in keys)
    key = keys.pop()
    assert hash_of(key) == "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def test_the_command_makes_a_key_that_its_entry_lets_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "alice"]) == 0
    shown = capsys.readouterr()
    key = shown.out.strip()
    path = tmp_path / "callers.toml"
    path.write_text(shown.err)
    authenticator = make_authenticator(SecurityConfig(callers=path))
    caller = authenticator.identify("/tokenwire.v1.ModelService/GetModel", [f"Bearer {key}"], ())
    assert caller.name == "alice"
    assert key not in shown.err


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a]", "x" * 65])
def test_a_name_that_is_no_toml_key_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", name]) == 2
    assert capsys.readouterr().out == ""


def test_an_entry_has_the_defaults_that_it_does_not_set(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(
        f"""
        [defaults]
        max_running = 8
        tokens_per_minute = 1000
        priority = "low"
        [callers.alice]
        key_hashes = ["{HASH}"]
        max_running = 3
        max_queued = 2
        [callers.bob]
        jwt_subjects = ["bob@example.com"]
        priority = "high"
        """
    )
    callers = read_callers(path)
    alice = callers.by_key_hash[HASH]
    assert (alice.name, alice.priority, alice.roles) == ("alice", "low", {"inference"})
    assert alice.limits == Limits(max_running=3, max_queued=2, tokens_per_minute=1000)
    bob = callers.of_token("bob@example.com", frozenset({"admin"}))
    assert (bob.name, bob.priority, bob.roles) == ("bob", "high", {"admin"})
    assert bob.limits == Limits(max_running=8, tokens_per_minute=1000)
    # A subject called as an entry is, is somebody else.
    other = callers.of_token("alice", frozenset({"inference"}))
    assert (other.name, other.priority, other.limits) == (
        "jwt:alice",
        "low",
        Limits(max_running=8, tokens_per_minute=1000),
    )


BAD_CALLERS = [
    ("[callers.a", "TOML"),
    ("\x00", "TOML"),
    ("[caller.a]\n", "unknown field `caller`"),
    ("[callers.a]\nkeys = []\n", "unknown field `keys`"),
    ("[defaults]\nmax_runing = 1\n", "unknown field `max_runing`"),
    ("[defaults]\nmax_running = 0\n", "`int` >= 1 - at `$.defaults.max_running`"),
    (f'[callers.a]\nkey_hashes = ["{HASH}"]\ntokens_per_minute = -5\n', ".tokens_per_minute"),
    (f'[callers.a]\nkey_hashes = ["{HASH}"]\nmax_queued = "many"\n', ".max_queued"),
    (f'[callers.a]\nkey_hashes = ["{HASH}"]\nroles = ["root"]\n', "'root'"),
    (f'[callers.a]\nkey_hashes = ["{HASH}"]\npriority = "urgent"\n', "'urgent'"),
    (f'[callers.a]\nkey_hashes = ["{HASH.upper()}"]\n', ".key_hashes"),
    ('[callers.a]\nkey_hashes = ["tw_a_key_in_the_clear"]\n', ".key_hashes"),
    ("[callers.a]\n", "callers.a needs key_hashes, jwt_subjects or certificate_names"),
    (f'[callers."a:b"]\nkey_hashes = ["{HASH}"]\n', "callers.a:b: a name must have no colon"),
    (f'[callers.a]\nkey_hashes = ["{HASH}"]\n[callers.b]\nkey_hashes = ["{HASH}"]\n', "as does a"),
]


@pytest.mark.parametrize(("content", "said"), BAD_CALLERS)
def test_a_bad_callers_file_is_one_line_that_names_the_key(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        read_callers(path)
    line = str(refused.value)
    assert line.startswith(f"callers {path}: ")
    assert "\n" not in line
    if said != "TOML":
        assert said in line
    assert "in_the_clear" not in line


def _expired(folder: Path) -> None:
    Authority().issue(days=-1).write(folder)


BAD_PAIRS: list[tuple[Callable[[Path], object], str | None]] = [
    (lambda folder: (folder / "tls.crt").unlink(), "tls_certificate {folder}/tls.crt: cannot be read"),
    (lambda folder: (folder / "tls.key").unlink(), "tls_key {folder}/tls.key: cannot be read"),
    (lambda folder: (folder / "ca.crt").unlink(), "tls_client_ca {folder}/ca.crt: cannot be read"),
    (lambda folder: (folder / "tls.crt").write_text("x"), "tls_certificate {folder}/tls.crt: holds no certificate"),
    (lambda folder: (folder / "tls.key").write_text("x"), "tls_key {folder}/tls.key: holds no private key"),
    (lambda folder: (folder / "ca.crt").write_text(""), "tls_client_ca {folder}/ca.crt: holds no certificate"),
    (
        lambda folder: (folder / "tls.key").write_bytes(Authority().issue().key_pem()),
        "tls_key {folder}/tls.key: does not belong to the certificate in tls_certificate {folder}/tls.crt",
    ),
    (
        lambda folder: (folder / "tls.key").write_bytes(Authority().issue().key_pem(b"secret")),
        "tls_key {folder}/tls.key: has a passphrase",
    ),
    (lambda folder: [(folder / "tls.key").unlink(), (folder / "tls.key").mkdir()], "tls_key {folder}/tls.key: cannot"),
    (_expired, None),
]


@pytest.mark.parametrize(("damage", "said"), BAD_PAIRS)
def test_a_bad_certificate_is_one_line_that_names_the_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], said: str | None
) -> None:
    authority = Authority()
    certificate, key = authority.issue().write(tmp_path)
    client_ca = tmp_path / "ca.crt"
    client_ca.write_bytes(authority.pem)
    config = SecurityConfig(tls_certificate=certificate, tls_key=key, tls_client_ca=client_ca)
    watched_certificates(config)
    damage(tmp_path)
    if said is None:
        watched_certificates(config)
        assert "expired" in caplog.text
        return
    with pytest.raises(ConfigurationError) as refused:
        watched_certificates(config)
    line = str(refused.value)
    assert line.startswith(said.format(folder=tmp_path))
    assert "\n" not in line


@pytest.mark.parametrize(
    "content", ["", "{", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "AA"}]}', "[" * 9999]
)
def test_a_bad_key_set_is_one_line_that_names_the_setting(tmp_path: Path, content: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        make_authenticator(SecurityConfig(jwt_keys=path, jwt_issuer="a", jwt_audience="b"))
    assert str(refused.value).startswith(f"jwt_keys {path}: is no usable JWKS (")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("setting", ["tls", "callers", "jwt"])
def test_serve_ends_with_exit_code_2(tmp_path: Path, setting: str) -> None:
    certificate, _ = Authority().issue().write(tmp_path)
    key = tmp_path / "other.key"
    key.write_bytes(Authority().issue().key_pem())
    flags = {
        "tls": ["--tls-certificate", certificate, "--tls-key", key],
        "callers": ["--callers", tmp_path / "none.toml"],
        "jwt": ["--jwt-keys", certificate, "--jwt-issuer", "a", "--jwt-audience", "b"],
    }[setting]
    done = subprocess.run(
        serve_command("--model", str(tmp_path), "--port", "0", *map(str, flags)),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (record,) = map(json.loads, done.stderr.splitlines())
    assert record["level"] == "error"
    assert record["event"].startswith({"tls": "tls_key ", "callers": "callers ", "jwt": "jwt_keys "}[setting])


def test_a_watched_value_follows_its_file_and_complains_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "jwks.json"
    Issuer().write(tmp_path)
    loads = 0

    def load() -> int:
        nonlocal loads
        loads += 1
        if "bad" in path.read_text():
            raise ConfigurationError("x is bad")
        return loads

    watched = Watched("things", [path], load)
    caplog.set_level(logging.INFO)
    for _ in range(3):
        watched.refresh()
    assert (watched.value, loads, caplog.messages) == (1, 1, [])
    path.write_text("bad")
    for _ in range(3):
        watched.refresh()
    assert (watched.value, loads) == (1, 4)
    assert caplog.messages == ["the old things stay in use: x is bad"]
    path.write_text("good again")
    watched.refresh()
    assert watched.value == 5
    assert caplog.messages[1:] == ["things read anew"]


class Loading:
    """A `Watched` whose ``load`` fails with ``error`` while that is set."""

    def __init__(self, path: Path) -> None:
        path.write_text("old")
        self.count = 0
        self.error: Exception | None = None
        self.watched = Watched("things", [path], self._load)

    def _load(self) -> int:
        self.count += 1
        if self.error is not None:
            raise self.error
        return self.count


def test_a_change_without_a_new_time_or_size_is_seen(tmp_path: Path) -> None:
    """As of rights or owner, and of a copy that keeps the time."""
    path = tmp_path / "file"
    loading = Loading(path)
    before = path.stat()
    path.write_text("new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
    loading.watched.refresh()
    assert loading.watched.value == 2


@pytest.mark.parametrize("kind", [ConfigurationError, RecursionError])
def test_a_failure_is_tried_again_at_each_look_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "file"
    loading = Loading(path)
    watched = loading.watched
    path.write_text("changed")
    for error in ("cannot be read", "is empty"):
        loading.error = kind(error)
        for _ in range(3):
            watched.refresh()
    assert (watched.value, loading.count) == (1, 7)
    assert caplog.messages == [f"the old things stay in use: {error}" for error in ("cannot be read", "is empty")]
    assert (watched.num_reloads, watched.num_failures) == (0, 2)
    # Whoever asks is told.
    watched.refresh(always=True)
    assert caplog.messages[2:] == ["the old things stay in use: is empty"]
    # Mended in a way that does not show on the file.
    loading.error = None
    for _ in range(3):
        watched.refresh()
    assert (watched.value, loading.count) == (9, 9)
    assert caplog.messages[3:] == ["things read anew"]
    assert (watched.num_reloads, watched.num_failures) == (1, 3)


def test_whoever_asks_has_it_read_though_nothing_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watched = Loading(tmp_path / "file").watched
    watched.refresh()
    watched.refresh(always=True)
    assert watched.value == 2
    assert caplog.messages == ["things read anew"]
