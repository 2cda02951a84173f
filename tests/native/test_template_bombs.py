"""Templates that would run for ever, fill the memory or read a file: each is an error, soon."""

import contextlib
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizer_kinds import Pair

from tokenwire import _native

MESSAGES = '[{"role": "user", "content": "x"}]'
NEST = "".join(f"{{% for a{depth} in range(1000) %}}" for depth in range(6)) + "x" + "{% endfor %}" * 6

NAMESPACE = "{% set n = namespace(x=1) %}{% set m = namespace(x=1) %}"


def grown(value: str, count: int, then: str) -> str:
    """``value`` put into n.x and m.x, which it reads as X, again and again; then something is done with them."""
    both = "".join(f"{{% set {name}.x = {value.replace('X', f'{name}.x')} %}}" for name in "nm")
    return f"{NAMESPACE}{{% for i in range({count}) %}}{both}{{% endfor %}}{then}"


DEEP = {
    f"{name} {use}": grown(value, count, then)
    for name, value, count in (
        ("a deep list", "[X]", 20_000),
        ("a deep dict", "{'a': X}", 20_000),
        ("a deep list by a filter", "[X] | batch(1) | list", 20_000),
        ("a list of lists that doubles", "[X, X]", 64),
    )
    for use, then in (
        ("printed", "{{ n.x }}"),
        ("as JSON", "{{ n.x | tojson }}"),
        ("compared", "{{ n.x == m.x }}"),
        ("ordered", "{{ n.x < m.x }}"),
        ("as text", "{{ (n.x | string) ~ n.x }}"),
        ("dropped", ""),
    )
}
RINGS = {
    "a ring": NAMESPACE + "{% set n.x = n %}{{ n.x }}",
    "a ring in a list": NAMESPACE + "{% set n.x = [[n]] %}{{ n | tojson }}",
    "two rings": NAMESPACE + "{% set n.x = n %}{% set m.x = m %}{{ n == m }}",
}
CHAINS = {
    f"a chain of {name}": source
    for name, source in {
        "lists": "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
        "brackets": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        "not": "{{ " + "not " * 20_000 + "1 }}",
        "minus": "{{ " + "-" * 20_000 + "1 }}",
        "filters": "{{ [1]" + "|batch(1)" * 20_000 + " }}",
        "attributes": "{{ x" + ".a" * 20_000 + " }}",
        "sums": "{{ 1" + " + 1" * 20_000 + " }}",
        "powers": "{{ 1" + " ** 1" * 20_000 + " }}",
        "and": "{{ 1" + " and 1" * 20_000 + " }}",
        "else": "{{ " + "1 if 1 else " * 20_000 + "1 }}",
        "calls": "{{ " + "f(" * 20_000 + ")" * 20_000 + " }}",
        "statements": "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
        "loops": "{% for a in b %}" * 20_000 + "{% endfor %}" * 20_000,
        "assignments": "{% set x = 1 %}" + "{% set x = [x] %}" * 20_000 + "{{ x }}",
        "deep assignments": "{% set x = 1 %}" + ("{% set x = " + "[" * 70 + "x" + "]" * 70 + " %}") * 300 + "{{ x }}",
    }.items()
}

BOMBS = {
    **DEEP,
    **RINGS,
    **CHAINS,
    "a long source": "x" * (2 << 20),
    "a list that doubles": grown("X + X", 64, "").replace("x=1", "x=[1]"),
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


@pytest.mark.parametrize(
    "chain",
    ["[1]" + "|batch(1)" * 490, "1" + " + 1" * 990, "1" + " and 1" * 990, "not " * 1980 + "1", "x" + ".a" * 980],
    ids=["filters", "sums", "and", "not", "attributes"],
)
def test_the_longest_tag_that_is_taken_fits_the_stack(chat_pair: Pair, chain: str) -> None:
    """On a thread, as the service renders; that it is not killed is the test."""
    with contextlib.suppress(_native.TemplateError), ThreadPoolExecutor(1) as pool:
        template = _native.ChatTemplate(f"{{{{ {chain} }}}}", tokenizer=chat_pair.native, special_tokens={})
        pool.submit(template.render, MESSAGES).result()
