"""docs/generation.md is complete: every setting of transformers and of the protocol, and every code of a warning."""

import re
from pathlib import Path

from transformers import GenerationConfig

import tokenwire
from tokenwire.engine.defaults import _NEUTRAL_VALUES, _OUR_NAMES, _SERVED
from tokenwire.v1 import generation_pb2

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "generation.md").read_text()
ROWS = dict(re.findall(r"^\| `(\w+)` \| (served|refused) \|", TEXT, re.MULTILINE))
PROTOCOL = {field.name for field in generation_pb2.GenerationConfig.DESCRIPTOR.fields}


def test_every_setting_of_transformers_is_served_or_refused() -> None:
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert settings - set(ROWS) == set()
    assert set(ROWS) - settings == set()


def test_what_is_served_is_a_field_of_the_protocol_and_nothing_else_is() -> None:
    served = {name for name, how in ROWS.items() if how == "served"}
    assert served <= PROTOCOL
    refused = set(ROWS) - served
    assert not refused & PROTOCOL
    for name in PROTOCOL - served:
        assert f"`{name}`" in TEXT, name


def test_what_is_served_is_served_as_a_default_of_the_model_as_well() -> None:
    names = {ours: name for name, ours in _OUR_NAMES.items()}
    applied = {names.get(name, name) for name in _SERVED}
    served = {name for name, how in ROWS.items() if how == "served"}
    # A draft's length is read from the draft model's own file by transformers.
    assert served - applied == {"num_assistant_tokens"}
    assert {ROWS[name] for name in _NEUTRAL_VALUES} == {"refused"}


def test_every_code_of_a_warning_is_explained() -> None:
    table = set(re.findall(r"^\| `(\w+)` \| (?:start|finish) \|", TEXT, re.MULTILINE))
    sources = (path.read_text() for path in Path(tokenwire.__file__).parent.rglob("*.py"))
    pattern = re.compile(r'(?:\bNote\(|_note\(|Warning\(code=)\s*"(\w+)"')
    assert {code for source in sources for code in pattern.findall(source)} == table
