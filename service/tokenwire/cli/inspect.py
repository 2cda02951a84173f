"""`tokenwire tokenize` and `tokenwire model`."""

import dataclasses
import json
from typing import Annotated, Any

from cyclopts import Parameter

from tokenwire.cli.generate import text_or_stdin
from tokenwire.cli.options import ConfigFile, ConnectionFlags, Json
from tokenwire.cli.output import Output, stdout
from tokenwire.client import Model

_DEFAULT_CONNECTION = ConnectionFlags()


def _write_json(value: Any, out: Output) -> None:
    out.line(json.dumps(value, ensure_ascii=False, indent=2))


def tokenize(
    text: Annotated[str | None, Parameter(help="The text. Default: standard input.")] = None,
    /,
    *,
    add_special_tokens: Annotated[bool, Parameter(help="Let the tokenizer add its special tokens.")] = True,
    as_json: Json = False,
    config: ConfigFile = None,
    connection: ConnectionFlags = _DEFAULT_CONNECTION,
) -> int:
    """Show the tokens of a text: id, vocabulary entry, and the UTF-8 bytes that it covers."""
    content = text_or_stdin(text, "text")
    with connection.connect() as client:
        tokens = client.tokenize(content, add_special_tokens=add_special_tokens)
    out = stdout()
    if as_json:
        _write_json([dataclasses.asdict(token) for token in tokens], out)
        return 0
    for token in tokens:
        start, end = token.range
        out.line(f"{token.id:>8}  {start:>6}-{end:<6}  {token.piece!r}")
    return 0


def model(
    *,
    as_json: Json = False,
    config: ConfigFile = None,
    connection: ConnectionFlags = _DEFAULT_CONNECTION,
) -> int:
    """Describe the served model."""
    with connection.connect() as client:
        served = client.model()
    out = stdout()
    if as_json:
        _write_json(dataclasses.asdict(served), out)
        return 0
    lines = _description(served)
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        out.line(f"{name:<{width}}{value}")
    return 0


def _description(served: Model) -> list[tuple[str, str]]:
    limits = [(each.name, getattr(served.limits, each.name)) for each in dataclasses.fields(served.limits)]

    def listed(values: Any) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in values) or "none"

    return [
        ("id", served.id),
        ("revision", served.revision or "unknown"),
        ("architecture", served.architecture),
        ("parameters", f"{served.parameter_count:,}"),
        ("quantization", served.quantization),
        ("dtype", served.dtype),
        ("device", served.device),
        ("forward path", f"{served.forward_path} ({served.forward_path_reason})"),
        ("context length", f"{served.context_length:,} tokens"),
        ("vocabulary", f"{served.vocab_size:,} tokens"),
        ("chat templates", ", ".join(served.chat_template_names) or "none"),
        ("special tokens", listed((each.name, each.text) for each in served.special_tokens)),
        ("generation defaults", listed(served.default_generation_config.items())),
        ("not applied", ", ".join(served.unapplied_defaults) or "none"),
        *((name.replace("_", " "), f"{value:,}") for name, value in limits),
    ]
