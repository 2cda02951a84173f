"""Write docs/configuration.md from the settings that the command line knows; ``--check`` only compares."""

import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from cyclopts.argument import Argument
from cyclopts.validators import Number

from tokenwire.cli import build_app
from tokenwire.cli.options import CLIENT_SETTINGS, ENV_PREFIX

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = f"""# Configuration

Generated from the settings by `python tools/generate_configuration_docs.py`; do not edit.

A setting is taken from the first of these that has it: the flag, the environment variable, the TOML file, the default.
The TOML file is the one that `--config` (or `{ENV_PREFIX}CONFIG`) names, otherwise `tokenwire.toml` in the working
directory where there is one. An unknown key, a variable that looks like a misspelt setting, or a value outside its
range, ends the command with one line and exit code 2.

```toml
# tokenwire.toml
model = "models/SmolLM2-135M-Instruct"
quantize = "nf4"
kv_cache_memory = "512MiB"

[client]
address = "127.0.0.1:50051"
max_new_tokens = 200
```

# `tokenwire serve`

Keys stand at the top of the TOML file. A flag for a list may be repeated; its environment variable holds the items
with spaces between them. A flag for yes or no has a twin, `--no-…`. Sizes are numbers with a unit: KiB, MiB, GiB, TiB
(powers of 1024) or kB, MB, GB, TB (powers of 1000).
"""

CLIENT_HEAD = """
# `tokenwire chat`, `generate`, `tokenize` and `model`

Keys stand in the `[client]` table of the TOML file. The generation flags have the names and meanings of transformers'
`GenerationConfig`; the server checks their ranges, and its defaults are the model's.
"""


def type_name(hint: Any) -> str:
    """A type as a reader of the table knows it."""
    if get_origin(hint) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return type_name(next(each for each in get_args(hint) if each is not type(None)))
    if get_origin(hint) is tuple:
        return f"list of {type_name(get_args(hint)[0])}s"
    return {bool: "yes or no", int: "integer", float: "number", str: "text", Path: "path"}[hint]


def value_range(argument: Argument) -> str:
    """The range that a validator of cyclopts holds, as words."""
    number = next((each for each in argument.parameter.validator if isinstance(each, Number)), None)
    if number is None:
        return ""
    low = f"above {number.gt:g}" if number.gt is not None else f"from {number.gte:g}"
    return f", {low}" + ("" if number.lte == 2**31 - 1 else f" to {number.lte:g}".replace("86400", "86,400"))


def default(argument: Argument) -> str:
    """The default as it would be written."""
    value = argument.field_info.default
    if value is argument.field_info.empty:
        return "required"
    if value is None or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table(arguments: list[Argument], *, environment: bool) -> str:
    """A Markdown table of settings."""
    lines = ["| flag | environment | TOML key | type | default | meaning |", "|---|---|---|---|---|---|"]
    for argument in arguments:
        key = argument.name.removeprefix("--").replace("-", "_")
        name = f"`{ENV_PREFIX}{key.upper()}`" if environment or argument.parameter.env_var else ""
        kind = type_name(argument.hint) + value_range(argument)
        meaning = " ".join((argument.parameter.help or "").split()).replace("|", "\\|")
        lines.append(f"| `{argument.name}` | {name} | `{key}` | {kind} | {default(argument)} | {meaning} |")
    return "\n".join(lines) + "\n"


def settings_of(command: str) -> dict[str, list[Argument]]:
    """The settings of a command by group, in the order of ``--help``."""
    groups: dict[tuple[Any, str], list[Argument]] = {}
    for argument in build_app()[command].assemble_argument_collection(parse_docstring=True):
        group = argument.parameter.group[0]
        if argument.name not in ("*", "--config") and isinstance(group.sort_key, int):
            groups.setdefault((group.sort_key, group.name), []).append(argument)
    return {name: arguments for (_, name), arguments in sorted(groups.items(), key=lambda item: item[0][0])}


def document() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, arguments in settings_of("serve").items():
        parts.append(f"\n## {name}\n\n{table(arguments, environment=True)}")
    parts.append(CLIENT_HEAD)
    for name, arguments in settings_of("chat").items():
        own = [each for each in arguments if each.name.removeprefix("--").replace("-", "_") in CLIENT_SETTINGS]
        if own:
            parts.append(f"\n## {name}\n\n{table(own, environment=False)}")
    return "".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is current."""
    text = document()
    if arguments == ["--check"]:
        if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"docs/{TARGET.name} is not current: run `python tools/generate_configuration_docs.py`", file=sys.stderr)
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
