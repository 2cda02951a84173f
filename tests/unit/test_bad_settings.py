"""Every setting from every source: a value that it cannot have is one line that names it, and exit code 2."""

import dataclasses
import os
import sys
import types
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenwire import cli
from tokenwire.config import ServiceConfig

SOURCES = ("flag", "environment", "file")


class Bad(typing.NamedTuple):
    """A setting and a value that it cannot have, as text and as TOML."""

    name: str
    text: str
    toml: str


def settings() -> Iterator[tuple[str, Any, Any]]:
    """Name, type without None, and validator of each setting."""
    for group in typing.get_type_hints(ServiceConfig).values():
        hints = typing.get_type_hints(group, include_extras=True)
        for setting in dataclasses.fields(group):
            hint, parameter = typing.get_args(hints[setting.name])[:2]
            kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
            is_optional = isinstance(hint, types.UnionType) and len(kinds) == 1
            validators = parameter.validator
            yield setting.name, kinds[0] if is_optional else hint, validators[0] if validators else None


def quoted(text: str) -> str:
    return f'"{text}"'


def bad_values() -> Iterator[Bad]:
    for name, kind, validator in settings():
        bounds = [getattr(validator, bound, None) for bound in ("gte", "gt", "lte", "lt")]
        if kind is int:
            yield Bad(name, "many", quoted("many"))
            yield Bad(name, "1.5", "1.5")
            yield Bad(name, str(bounds[0] - 1), str(bounds[0] - 1))
            yield Bad(name, str(bounds[2] + 1), str(bounds[2] + 1))
        elif kind is float:
            yield Bad(name, "much", quoted("much"))
            yield Bad(name, "nan", "nan")
            yield Bad(name, "inf", "inf")
            lowest = bounds[1] if bounds[0] is None else bounds[0] - 0.5
            yield Bad(name, str(lowest), str(float(lowest)))
            yield Bad(name, str(bounds[2] + 0.5), str(bounds[2] + 0.5))
        elif kind is bool:
            yield Bad(name, "perhaps", quoted("perhaps"))
        elif typing.get_origin(kind) is typing.Literal:
            yield Bad(name, "neither", quoted("neither"))
        elif kind is str and validator is not None:
            yield Bad(name, "", quoted(""))


BAD = list(bad_values())


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from elsewhere, and a server that must not be reached."""
    module = types.ModuleType("tokenwire.server")
    monkeypatch.setitem(sys.modules, "tokenwire.server", module)
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("TOKENWIRE_")]:
        monkeypatch.delenv(variable)


def test_the_table_holds_every_setting_with_a_range() -> None:
    free = {"device_map", "skip_modules"} | {name for name, kind, _ in settings() if kind is Path}
    assert {bad.name for bad in BAD} == {name for name, _, _ in settings()} - free
    assert len(BAD) > 150


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("source", SOURCES)
def test_a_value_that_cannot_be_is_one_line_that_names_its_setting(
    source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = []
    alone = Counter(bad.name for bad in BAD)
    for number, bad in enumerate(BAD):
        # Each value from one source, each setting from all of them: every run of the command takes its time.
        if alone[bad.name] >= len(SOURCES) and SOURCES[number % len(SOURCES)] != source:
            continue
        arguments = ["serve"] if bad.name == "model" else ["serve", "--model", "x"]
        if source == "environment" and not bad.text:
            # An empty variable is one that is not set.
            continue
        with monkeypatch.context() as changed:
            match source:
                case "flag":
                    named = "--" + bad.name.replace("_", "-")
                    arguments.append(f"{named}={bad.text}")
                case "environment":
                    named = f"TOKENWIRE_{bad.name.upper()}"
                    changed.setenv(named, bad.text)
                case _:
                    named = bad.name
                    Path("tokenwire.toml").write_text(f"{bad.name} = {bad.toml}\n")
            code = cli.main(arguments)
        shown = capsys.readouterr()
        if (code, shown.err.count("\n"), shown.out) != (2, 1, "") or named not in shown.err:
            wrong.append((named, bad.text, code, shown.err))
    assert not wrong


MISSPELT = [
    ("flag", "--max-runing", "--max-running"),
    ("environment", "TOKENWIRE_MAX_RUNING", "TOKENWIRE_MAX_RUNNING"),
    ("environment", "TOKENWIRE_QUEUE_TIMEOUTS", "TOKENWIRE_QUEUE_TIMEOUT"),
    ("file", "max_runing", "max_running"),
]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("source", "name", "meant"), MISSPELT)
def test_an_unknown_key_is_one_line_that_names_it_and_what_was_meant(
    source: str, name: str, meant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["serve", "--model", "x"]
    match source:
        case "flag":
            arguments.append(f"{name}=3")
        case "environment":
            monkeypatch.setenv(name, "3")
        case _:
            Path("tokenwire.toml").write_text(f"{name} = 3\n")
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert name in shown
    assert meant in shown
    assert shown.count("\n") == 1


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "name", ["TOKENWIRE_SERVICE_HOST", "TOKENWIRE_CACHE", "TOKENWIRE_API_KEY", "TOKENWIRE_ADDRESS"]
)
def test_a_variable_that_is_like_no_setting_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    served = []
    sys.modules["tokenwire.server"].run = lambda config: served.append(config) or 0  # type: ignore[attr-defined]
    assert cli.main(["serve", "--model", "x"]) == 0
    assert served
