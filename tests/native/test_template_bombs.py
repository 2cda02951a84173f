"""Templates that would run for ever, fill the memory or read a file: each is an error, soon."""

import resource
from pathlib import Path

import pytest
from tokenizer_kinds import Pair

from tokenwire import _native

MESSAGES = '[{"role": "user", "content": "x"}]'
NEST = "".join(f"{{% for a{depth} in range(1000) %}}" for depth in range(6)) + "x" + "{% endfor %}" * 6

BOMBS = {
    "nested loops": NEST,
    "a loop that writes nothing": NEST.replace("x{% endfor %}", "{% endfor %}"),
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros that call each other": (
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}"
    ),
    "doubling": (
        "{% set n = namespace(s='0123456789abcdef') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
        "{{ n.s }}"
    ),
    "a long output": "{% for i in range(9000000) %}0123456789abcdef0123456789abcdef{% endfor %}",
    "a huge range": "{% for i in range(10 ** 15) %}{% endfor %}",
    "a huge power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "a repeated text": "{{ 'x' * (10 ** 13) }}",
    "a wide text": "{{ 'x'.ljust(10 ** 13) }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_an_error(chat_pair: Pair, source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(_native.TemplateError):
        _native.ChatTemplate(source, tokenizer=chat_pair.native, special_tokens={}).render(MESSAGES)
    # In KiB: of gigabytes that these ask for, nothing much is taken.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


@pytest.mark.parametrize("statement", ["include", "import", "extends", "from"])
def test_no_file_is_read(chat_pair: Pair, tmp_path: Path, statement: str) -> None:
    file = tmp_path / "secret"
    file.write_text("the secret")
    tail = {"import": " as x", "from": " import x"}.get(statement, "")
    source = f"{{% {statement} '{file}'{tail} %}}"
    with pytest.raises(_native.TemplateError) as refused:
        _native.ChatTemplate(source, tokenizer=chat_pair.native, special_tokens={}).render(MESSAGES)
    assert "the secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["__class__", "__globals__", "mro", "__init__"])
def test_no_way_to_python(chat_pair: Pair, name: str) -> None:
    template = _native.ChatTemplate(f"[{{{{ ''.{name} }}}}]", tokenizer=chat_pair.native, special_tokens={})
    assert template.render(MESSAGES).text == "[]"
