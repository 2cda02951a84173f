"""Settings from a TOML file: keys at the top for `serve`, a ``[client]`` table for the other commands."""

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from tokenwire.errors import ConfigurationError

DEFAULT_PATH = Path("tokenwire.toml")
CLIENT_TABLE = "client"


def read(path: Path) -> dict[str, Any]:
    """The file's tables. Raises ConfigurationError naming the file, and the line where its syntax is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from None


class TomlFile:
    """A source of settings for cyclopts: the file that ``--config`` names, or ./tokenwire.toml where there is one.

    Without a table, every key at the top of the file but ``[client]`` must be a setting of the command. With one, its
    keys must be among ``known``; those that the command does not have are left to the commands that do.
    """

    def __init__(self, table: str | None = None, known: Collection[str] = ()) -> None:
        self._table = table
        self._known = known

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Fill the arguments that no earlier source has set."""
        option = arguments["--config"]
        path = Path(option.tokens[0].value) if option.tokens else DEFAULT_PATH
        if not option.tokens and not path.exists():
            return
        settings = read(path)
        own = {name for argument in arguments if argument is not option for name in _keys(argument.names)}
        known: Collection[str] = own
        if self._table is not None:
            settings, known = settings.get(self._table, {}), self._known
            if not isinstance(settings, dict):
                raise ConfigurationError(f"{path}: {self._table} must be a table, [{self._table}]")
        else:
            settings = {key: value for key, value in settings.items() if key != CLIENT_TABLE}
        for key, value in settings.items():
            self._check(path, key, value, known)
        usable: dict[str, Any] = {key: value for key, value in settings.items() if key in own}
        # Nested under its command's name: at the top, cyclopts takes the key `model` for the command of that name.
        for command in reversed(commands):
            usable = {command: usable}
        Dict(usable, source=str(path))(app, commands, arguments)

    def _check(self, path: Path, key: str, value: Any, known: Collection[str]) -> None:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            raise ConfigurationError(f'{path}: unknown setting "{key}"{hint}')
        if isinstance(value, dict):
            raise ConfigurationError(f"{path}: {key} must be a single value, got a table")


def _keys(names: Collection[str]) -> set[str]:
    return {name.removeprefix("--").replace("-", "_") for name in names if name.startswith("--")}
