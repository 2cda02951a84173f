"""Chat templates: text and refusals equal to transformers'."""

import json
import mmap
import os
import re
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_cases import SPECIAL_TOKENS, Json, content, conversations, outcome, render, tool_lists
from chat_expressions import Expressions
from chat_templates import TEMPLATES
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import Pair
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tokenwire import _native


@pytest.fixture(scope="module")
def reference(chat_pair: Pair) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=chat_pair.reference, **SPECIAL_TOKENS)


@pytest.mark.parametrize("family", TEMPLATES)
@given(
    messages=conversations,
    tools=st.none() | tool_lists,
    add_generation_prompt=st.booleans(),
    variables=st.fixed_dictionaries({"date_string": content}, optional={"enable_thinking": st.booleans()}),
)
def test_text_equals_the_reference(
    reference: PreTrainedTokenizerFast,
    compiled: Callable[[str], _native.ChatTemplate],
    family: str,
    messages: list[Json],
    tools: list[Json] | None,
    add_generation_prompt: bool,
    variables: Json,
) -> None:
    source = TEMPLATES[family]
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt, **variables}
    expected = outcome(lambda: reference.apply_chat_template(messages, chat_template=source, tokenize=False, **options))
    assert outcome(lambda: render(compiled(source), messages, **options).text) == expected


@pytest.mark.parametrize("family", TEMPLATES)
@given(messages=conversations)
def test_continuation_equals_the_reference(
    reference: PreTrainedTokenizerFast,
    compiled: Callable[[str], _native.ChatTemplate],
    family: str,
    messages: list[Json],
) -> None:
    source = TEMPLATES[family]
    expected = outcome(
        lambda: reference.apply_chat_template(
            messages, chat_template=source, tokenize=False, continue_final_message=True, date_string="today"
        )
    )
    got = outcome(lambda: render(compiled(source), messages, continue_final_message=True, date_string="today").text)
    # The refusals of transformers itself (ValueError) are worded by us.
    assert got[0] == expected[0]
    assert got[0] == "refused" or got == expected


VARIABLES = {
    "s": "Hello <b>World</b>\n x", "e": "", "n": 3, "neg": -7, "f": 1.5, "big": 1e16, "small": 1e-5, "t": True,
    "fl": False, "none": None, "l": [3, 1, 2], "ls": ["b", "a", "B"], "inum": " 42 ",
    "d": {"b": 1, "a": [1, None, True], "items": 5, "get": 6}, "path": "a.b.c", "q": "it's",
    "nested": [{"r": "u", "c": "x", "n": 1}, {"r": "a", "c": None}, {"r": "u"}], "uni": "é😀\u200b'q\"\x7f\x1f",
    "ws": "  a \x1c b\u00a0", "lines": "a\nb\r\nc\u2028d\n", "num": "12.5",
}  # fmt: skip


def test_the_table_of_expressions(chat_pair: Pair) -> None:
    """Each row is an expression, or a template behind ``!`` with ``\\N`` for a line break."""
    messages = [{"role": "user", "content": "hi"}]
    failures = []
    for row in Path(__file__).with_name("template_table.txt").read_text().splitlines():
        source = row[1:].replace("\\N", "\n") if row.startswith("!") else "{{ " + row + " }}"

        def ours(source: str = source) -> str:
            template = _native.ChatTemplate(source, tokenizer=chat_pair.native, special_tokens={})
            return template.render(json.dumps(messages), variables_json=json.dumps(VARIABLES)).text

        def theirs(source: str = source) -> str:
            return render_jinja_template([messages], chat_template=source, **VARIABLES)[0][0]

        if (got := outcome(ours)) != (expected := outcome(theirs)):
            failures.append((source, expected, got))
    assert not failures


def test_random_expressions(chat_pair: Pair) -> None:
    messages = [{"role": "user", "content": "hi"}]
    generator = Expressions(0)
    texts, failures = 0, []
    for _ in range(1500):
        source = generator.template()

        def ours(source: str = source) -> str:
            template = _native.ChatTemplate(source, tokenizer=chat_pair.native, special_tokens={})
            return template.render(json.dumps(messages), variables_json=json.dumps(VARIABLES)).text

        def theirs(source: str = source) -> str:
            with warnings.catch_warnings(action="ignore"):
                return render_jinja_template([messages], chat_template=source, **VARIABLES)[0][0]

        expected = outcome(theirs)
        texts += expected[0] == "text"
        # Addresses and views are written as Python writes its objects.
        if not re.search(r" at 0x|dict_|range\(", expected[1]) and (got := outcome(ours)) != expected:
            failures.append((source, expected, got))
    assert not failures
    assert texts > 500


STRFTIME = """
import json, sys
from datetime import datetime
from pathlib import Path
from tokenwire import _native

formats = "%d %b %Y|%A %B %j|%H:%M:%S|%I %p|%y-%m-%d|%f|%Z%z|%%|%-d %-I|%c|%x|%X|%U %W %w %u %G-%V"
tokenizer = _native.Tokenizer.from_json(sys.stdin.read())
template = _native.ChatTemplate("{{ strftime_now('" + formats + "') }}", tokenizer=tokenizer, special_tokens={})
for now in (0.0, 1_700_000_000.25, 1_720_000_000.5):
    expected = datetime.fromtimestamp(now).strftime(formats)
    got = template.render('[{"role": "user"}]', now=now).text
    assert got == expected, (got, expected)
clock = _native.ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", tokenizer=tokenizer, special_tokens={})
before = datetime.now().strftime("%Y-%m-%d")
assert before <= clock.render('[{"role": "user"}]').text <= datetime.now().strftime("%Y-%m-%d")
"""


@pytest.mark.parametrize("zone", ["UTC", "EST5EDT,M3.2.0,M11.1.0", "IST-5:30"])
def test_strftime_now_is_python_s_in_the_local_zone(chat_pair: Pair, zone: str) -> None:
    subprocess.run(
        [sys.executable, "-c", STRFTIME],
        input=chat_pair.reference.to_str(),
        text=True,
        check=True,
        env={**os.environ, "TZ": zone, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


REFUSALS = [
    ("{{ raise_exception('Not like this: ' ~ messages[0].role) }}", {}, r"^Not like this: user$"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {}, "line 1.*10000000 steps"),
    ("{{ 'x' * 999999999 }}", {}, "steps"),
    ("{% set x = 'x' * 1000000 %}{% for i in range(50) %}{{ x }}{% endfor %}", {}, "output exceeds 33554432 bytes"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", {}, "recursion"),
    ("a\n{{ missing.x }}", {}, "line 2: undefined value"),
    ("{% include '/etc/passwd' %}", {}, "template"),
    ("{{ messages.append(1) }}", {}, "append"),
    ("x", {"messages_json": "[]"}, "^messages: must not be empty$"),
    ("x", {"messages_json": "{}"}, "^messages: must be a list$"),
    ("x", {"messages_json": "[1]"}, r"^messages\[0\]: must be an object$"),
    ("x", {"messages_json": "[" * 500}, "^messages: not JSON"),
    ("x", {"tools_json": "[1]"}, "^tools: must be a list of objects$"),
    ("x", {"documents_json": "{}"}, "^documents: must be a list of objects$"),
    ("x", {"variables_json": "[]"}, "^variables: must be an object$"),
    ("x", {"variables_json": '{"messages": 1}'}, "^variables: messages is set by the service$"),
    ("x", {"now": float("inf")}, "^now is out of range$"),
    ("x", {"add_generation_prompt": True, "continue_final_message": True}, "not compatible"),
    ("x", {"continue_final_message": True}, "not an accepted field"),
    ("{% if content %}{% endif %}", {"continue_final_message": True}, "does not appear"),
]


@pytest.mark.parametrize(("source", "options", "match"), REFUSALS)
def test_refusals(chat_pair: Pair, source: str, options: Json, match: str) -> None:
    template = _native.ChatTemplate(source, tokenizer=chat_pair.native, special_tokens={})
    arguments = {"messages_json": '[{"role": "user", "content": "SECRET"}]', **options}
    with pytest.raises(_native.TemplateError, match=match) as caught:
        template.render(**arguments)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("source", ["{{", "{% if %}", "{% for x in %}", "{% endif %}", "{{ 'a }}", "{% nope %}"])
def test_syntax_errors_are_refused_at_once(chat_pair: Pair, source: str) -> None:
    with pytest.raises(_native.TemplateError, match="line 1: syntax error"):
        _native.ChatTemplate(source, tokenizer=chat_pair.native, special_tokens={})


# The real thing.

GGUF = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def template_of(gguf: Path) -> str:
    """The template alone: key, type (uint32), length (uint64), text. gguf's reader takes seconds for the vocabulary."""
    key = b"tokenizer.chat_template"
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(key) + len(key)
        _, length = struct.unpack_from("<IQ", data, start)
        return data[start + 12 : start + 12 + length].decode()


@pytest.mark.skipif(not GGUF.exists(), reason="the model is fetched by make demo")
def test_smollm2(reference: PreTrainedTokenizerFast, compiled: Callable[[str], _native.ChatTemplate]) -> None:
    source = template_of(GGUF)
    for messages in (
        [{"role": "user", "content": "Hi!"}],
        [{"role": "system", "content": "Be terse."}, {"role": "user", "content": " a\n"}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "é"}],
    ):
        for add_generation_prompt in (False, True):
            expected = reference.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=add_generation_prompt
            )
            assert render(compiled(source), messages, add_generation_prompt=add_generation_prompt).text == expected
