"""Conversations by the hundred from a seed: mostly as real ones are, some of them broken.

hypothesis finds the odd character; this finds the odd structure, at a fraction of the cost.
"""

import random
from typing import Any, NamedTuple

Json = dict[str, Any]

FRAGMENTS = (
    "Hello", "what is", "the weather", " in Köln", "?", "\n", "\n\n", "  ", "\t", "日本語", "😀", "it's", "\\",
    '"quoted"', "<think>", "</think>", "<think>\nhm\n</think>\n\nyes", "/no_think", "/think", "/system_override",
    "<tool_response>", "</tool_response>", "<|im_end|>", "<|im_start|>", "[INST]", "{{ x }}", "{% if %}", "{#", "<b>&",
    "0", "1.5", "None", "True", "a" * 60, "é\u200b", "<|channel|>final", "\u2028", "- a\n- b", "```json\n{}\n```",
    "\x1c", "ß", "\r\n",
)  # fmt: skip
NAMES = ("city", "unit", "items", "keys", "get", "values", "name", "a b", "größe", "update", "copy")


class Case(NamedTuple):
    """What ``apply_chat_template`` is given."""

    messages: list[Json]
    options: Json
    """tools, documents, add_generation_prompt, continue_final_message."""
    variables: Json


class Generator:
    """A stream of cases."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def text(self) -> str:
        return "".join(self._random.choices(FRAGMENTS, k=self._random.choice((0, 1, 1, 2, 3, 5))))

    def value(self, depth: int = 0) -> Any:
        kind = self._random.randrange(8 if depth < 3 else 6)
        match kind:
            case 0:
                return self._random.choice((None, True, False))
            case 1:
                return self._random.choice((0, -1, 7, 2**40, -(2**63), 2**63 - 1))
            case 2:
                return self._random.choice((0.5, -0.0, 1e16, 1e-5, 3.0, 1e300, 0.1))
            case 6:
                return [self.value(depth + 1) for _ in range(self._random.randrange(3))]
            case 7:
                return self.object(depth + 1)
            case _:
                return self.text()

    def object(self, depth: int = 0) -> Json:
        names = self._random.sample(NAMES, self._random.randrange(4))
        return {name: self.value(depth) for name in names}

    def schema(self, depth: int = 0) -> Json:
        kinds = ["string", "integer", "number", "boolean", "array", "object", ["string", "null"], ["string"], None]
        kind = self._random.choice(kinds)
        schema: Json = {} if kind is None else {"type": kind}
        if self._maybe(0.6):
            schema["description"] = self.text()
        if kind == "array" and self._maybe(0.8):
            schema["items"] = self.schema(depth + 1) if depth < 2 else {"type": "string"}
        if kind == "object" and self._maybe(0.7) and depth < 2:
            schema |= self.properties(depth + 1)
        if kind == "string" and self._maybe(0.3):
            schema["enum"] = self._random.choice((["a", "b"], ["x"], []))
        if kind is None and self._maybe(0.5) and depth < 2:
            schema["oneOf"] = [self.schema(depth + 1) for _ in range(self._random.randrange(3))]
        if self._maybe(0.2):
            schema["nullable"] = self._maybe(0.5)
        if self._maybe(0.2):
            schema["default"] = self._random.choice(("a", 3, None, [1], 0.5))
        return schema

    def properties(self, depth: int = 0) -> Json:
        names = self._random.sample(NAMES, self._random.randrange(4))
        found: Json = {"properties": {name: self.schema(depth) for name in names}}
        if self._maybe(0.6):
            found["required"] = names[:1]
        return found

    def tool(self) -> Json:
        function = {
            "name": self._random.choice(("get_weather", "search", "f")),
            "description": self.text(),
            "parameters": {"type": "object", **self.properties()},
        }
        return {"type": "function", "function": function}

    def call(self) -> Json:
        call: Json = {
            "type": "function",
            "function": {"name": self._random.choice(("search", "f")), "arguments": self.object()},
        }
        if self._maybe(0.8):
            call["id"] = self._random.choice(("abcdefghi", "short", "longer than nine"))
        return call

    def content(self) -> Any:
        if self._maybe(0.85):
            return self.text()
        return [{"type": "text", "text": self.text()} for _ in range(self._random.randrange(3))]

    def exchange(self) -> list[Json]:
        """A question and its answer, perhaps by way of a tool."""
        messages: list[Json] = [{"role": "user", "content": self.content()}]
        if self._maybe(0.3):
            calls = [self.call() for _ in range(self._random.choice((1, 1, 1, 2)))]
            asking: Json = {"role": "assistant", "tool_calls": calls}
            if self._maybe(0.7):
                asking["content"] = self._random.choice((None, "", self.text()))
            if self._maybe(0.4):
                asking[self._random.choice(("reasoning_content", "thinking", "reasoning"))] = self.text()
            messages.append(asking)
            messages += [
                {"role": "tool", "content": self.text(), "tool_call_id": call.get("id", "abcdefghi")} for call in calls
            ]
        answer: Json = {"role": "assistant", "content": self.content()}
        if self._maybe(0.3):
            answer["reasoning_content"] = self.text()
        return [*messages, answer]

    def messages(self) -> list[Json]:
        messages: list[Json] = []
        if self._maybe(0.5):
            messages.append({"role": self._random.choice(("system", "system", "developer")), "content": self.text()})
        for _ in range(self._random.randint(1, 3)):
            messages += self.exchange()
        if self._maybe(0.6):
            messages.pop()
        if self._maybe(0.1):
            self._random.shuffle(messages)
        if self._maybe(0.1):
            messages.append(self._random.choice((
                {"role": "user"}, {"role": "system", "content": self.text()}, {"role": "odd", "content": "x"},
                {"content": "x"}, {"role": "assistant", "content": None}, {"role": "user", "content": 5},
                {"role": "user", "content": {"text": "x"}}, {"role": "assistant", "content": "x", "tool_calls": []},
            )))  # fmt: skip
        return messages or [{"role": "user", "content": "x"}]

    def variables(self) -> Json:
        choices: Json = {
            "enable_thinking": (True, False), "date_string": ("today", ""), "reasoning_effort": ("low", "high", 3),
            "thinking": (True, False), "length": ("short", "long", "odd", 5), "citation_mode": ("fast", "off"),
            "max_turns": (0, 1, 2, -1, 2.0, True), "temperature_hint": (0.125, 2, 1e-7), "flag": (True, False, 0, "x"),
            "note": ("", "abc", "b<a>&", self.text()), "truncated": (True,), "model_identity": ("You are it.",),
            "controls": ("x", 1.0), "custom_instructions": ("Be kind.", ""), "tools_in_user_message": (True, False),
        }  # fmt: skip
        return {name: self._random.choice(values) for name, values in choices.items() if self._maybe(0.25)}

    def case(self) -> Case:
        options: Json = {}
        if self._maybe(0.5):
            options["tools"] = [self.tool() for _ in range(self._random.randrange(3))]
        if self._maybe(0.3):
            options["documents"] = [
                {"title": self._random.choice(("", "T", self.text())), "text": self.text()}
                for _ in range(self._random.randrange(3))
            ]
        turn = self._random.choice(("open", "open", "closed", "unset", "continue", "both"))
        if turn in ("open", "closed", "both"):
            options["add_generation_prompt"] = turn != "closed"
        if turn == "continue" or (turn == "both" and self._maybe(0.1)):
            options["continue_final_message"] = True
        return Case(self.messages(), options, self.variables())
