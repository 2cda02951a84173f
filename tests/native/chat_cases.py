"""Conversations, and how both sides render them."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tokenwire import _native

SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
Json = dict[str, Any]


def render(template: _native.ChatTemplate, messages: list[Json], **options: Any) -> _native.RenderedChat:
    variables = {key: options.pop(key) for key in list(options) if key in ("enable_thinking", "date_string")}
    for name in ("tools", "documents"):
        if options.get(name) is not None:
            options[f"{name}_json"] = json.dumps(options[name])
        options.pop(name, None)
    return template.render(json.dumps(messages), variables_json=json.dumps(variables), **options)


def outcome(call: Callable[[], str]) -> tuple[str, str]:
    """The text, or what the template itself said; other failures only have to fail on both sides."""
    try:
        return "text", call()
    except _native.TemplateError as error:
        said = str(error)
        return "refused", "" if said.startswith("the chat template fails") else said
    except Exception as error:
        return "refused", str(error) if type(error).__name__ == "TemplateError" else ""


# Conversations.
words = st.sampled_from(
    ["hello", " ", "\n", "", "{{ x }}", "{% if %}", "<think>", "</think>", "<tool_response>", "</tool_response>",
     "it's", '"', "\\", "é", "日本", "😀", "<|im_end|>", "<|im_start|>", "<|im_", "end|>", "[INST]", "\u200b", "<b>&"]
)  # fmt: skip
# Characters that the running Python does not know yet are no test of ours.
known = st.characters(exclude_categories=["Cs", "Cn"])
content = st.lists(st.one_of(words, st.text(known, max_size=4)), max_size=4).map("".join)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False), content
)
arguments = st.dictionaries(
    st.one_of(st.sampled_from(["city", "items", "get", "<|im_end|>"]), content),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(content, inner, max_size=2)),
    max_size=3,
)
schema_types = st.sampled_from(["string", "integer", "number", "boolean", "object", ["string", "null"], "odd"])
schemas = st.one_of(
    st.fixed_dictionaries({"type": schema_types}, optional={"description": content}),
    st.fixed_dictionaries({"type": st.just("array"), "items": st.fixed_dictionaries({"type": schema_types})}),
)
tool_lists = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["get_weather", "search"]),
                    "description": content,
                    "parameters": st.fixed_dictionaries(
                        {
                            "type": st.just("object"),
                            "properties": st.dictionaries(
                                st.sampled_from(["city", "unit", "items", "keys"]), schemas, max_size=3
                            ),
                        },
                        optional={"required": st.just(["city"])},
                    ),
                }
            ),
        }
    ),
    max_size=2,
)
tool_calls = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": st.sampled_from(["search"]), "arguments": arguments}),
        },
        optional={"id": st.sampled_from(["abcdefghi", "short"])},
    ),
    min_size=1,
    max_size=2,
)
parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": content}), max_size=2)
messages_of_any_kind = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": content}),
    st.fixed_dictionaries({"role": st.just("user"), "content": content}, optional={"name": content}),
    st.fixed_dictionaries({"role": st.just("user"), "content": parts}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": content},
        optional={"reasoning_content": content, "thinking": content, "tool_calls": tool_calls},
    ),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none(), "tool_calls": tool_calls}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": content, "tool_call_id": st.just("abcdefghi")}),
)
dialogues = st.builds(
    lambda system, turns: (
        system + [{"role": "user" if i % 2 == 0 else "assistant", "content": turn} for i, turn in enumerate(turns)]
    ),
    st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": content}), max_size=1),
    st.lists(content, min_size=1, max_size=4),
)
conversations = st.one_of(dialogues, st.lists(messages_of_any_kind, min_size=1, max_size=5))
