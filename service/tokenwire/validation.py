"""Every rule about requests, checked before any work; all violations of a request are reported at once.

Prompts are judged here, conversations by `validation_chat`, settings by `validation_settings`. Counts and sizes come
first: a list that is too long is not looked at element by element.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from tokenwire.config import LimitsConfig
from tokenwire.engine.protocol import ModelInfo
from tokenwire.errors import InvalidRequestError, UnknownModelError, Violation, spelled
from tokenwire.security.callers import Priority
from tokenwire.v1 import generation_service_pb2

MIN_TEXT_BYTES = 64 * 1024
"""Text that is tokenized however small the context is, where its tokens are asked for or cannot be bounded."""

MAX_REPORTED_ELEMENTS = 8
"""Bad elements of one list that are reported; the rest would only repeat the rule."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the served model and the operator allow."""

    info: ModelInfo
    limits: LimitsConfig
    max_prompt_bytes: int
    """Most UTF-8 bytes of a prompt: above it no text can fit the context, or where the tokenizer sets no such bound,
    hardly any (`servicers.backend`). At most max_message_bytes."""
    max_running: int
    """Rows that the engine generates at the same time."""

    @property
    def max_sequence_tokens(self) -> int:
        """Most tokens of prompt and answer: the context, or what the KV cache can hold for one sequence."""
        return min(self.info.context_length, self.info.kv_token_capacity)

    @property
    def capacity_name(self) -> str:
        """What sets ``max_sequence_tokens``, for error texts."""
        return "KV cache" if self.info.kv_token_capacity < self.info.context_length else "context"


class Violations:
    """Collects violations; one per field, the first rule that it breaks."""

    def __init__(self) -> None:
        self._items: dict[str, Violation] = {}

    def add(self, field: str, rule: str, value: object) -> None:
        """Note that ``field`` breaks ``rule``."""
        self._items.setdefault(field, Violation(field, rule, shorten(value)))

    def extend(self, violations: Iterable[Violation]) -> None:
        """Note violations found elsewhere."""
        for violation in violations:
            self._items.setdefault(violation.field, violation)

    def check(self) -> None:
        """Raise InvalidRequestError with everything noted, if there is anything."""
        if self._items:
            raise InvalidRequestError(list(self._items.values()))

    def __bool__(self) -> bool:
        return bool(self._items)


class Verbatim(str):
    """A value that is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def __getitem__(self, key: Any) -> "Verbatim":
        return Verbatim(super().__getitem__(key))


def shorten(value: object, limit: int = 60) -> str:
    """A value as it appears in an error text: at most ``limit`` characters."""
    text = repr(value[: limit + 1]) if isinstance(value, str | bytes) else spelled(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_model(model: str, info: ModelInfo) -> None:
    """Raise UnknownModelError unless ``model`` is empty or the served one."""
    if model and model != info.model_id:
        raise UnknownModelError(shorten(model, 200)[1:-1], info.model_id)


def flag(message: Message, name: str) -> bool:
    """Value of an optional bool whose default is true."""
    return bool(getattr(message, name)) if message.HasField(name) else True


def check_prompt(prompt: generation_service_pb2.Prompt, bounds: Bounds, violations: Violations, path: str) -> None:
    """Check what can be told without tokenizing."""
    has_text, has_ids = prompt.HasField("text"), len(prompt.token_ids) > 0
    if has_text and has_ids:
        violations.add(path, "must have either text or token_ids, not both", Verbatim("both"))
    elif has_ids:
        _check_room(len(prompt.token_ids), bounds, violations, f"{path}.token_ids")
        if len(prompt.token_ids) < bounds.max_sequence_tokens:
            check_token_ids(prompt.token_ids, bounds.info.vocab_size, violations, f"{path}.token_ids")
        for name in ("add_special_tokens", "parse_special_tokens"):
            if prompt.HasField(name):
                violations.add(f"{path}.{name}", "must be unset with token_ids", getattr(prompt, name))
    elif not has_text:
        violations.add(path, "must have text or token_ids", Verbatim("neither"))
    elif not prompt.text:
        violations.add(f"{path}.text", "must not be empty", "")
    else:
        check_text_size(prompt.text, bounds, violations, f"{path}.text")


def check_text_size(text: str, bounds: Bounds, violations: Violations, path: str) -> None:
    """Check that a prompt's text can fit the context at all, before it is tokenized."""
    if _is_larger(text, bounds.max_prompt_bytes):
        rule = (
            f"must be at most {bounds.max_prompt_bytes} bytes: longer texts do not fit the {bounds.capacity_name} of "
            f"{bounds.max_sequence_tokens} tokens"
        )
        violations.add(path, rule, Verbatim(f"{len(text.encode())} bytes"))


def check_tokenize_size(text: str, bounds: Bounds, violations: Violations, path: str) -> None:
    """Check a text that is only tokenized: as large as any prompt, and MIN_TEXT_BYTES in small contexts."""
    limit = max(bounds.max_prompt_bytes, MIN_TEXT_BYTES)
    if _is_larger(text, limit):
        rule = f"must be at most {limit} bytes; split longer texts"
        violations.add(path, rule, Verbatim(f"{len(text.encode())} bytes"))


def _is_larger(text: str, limit: int) -> bool:
    # A character has at most four bytes: most texts need not be encoded to be measured.
    return len(text) > limit or (len(text) * 4 > limit and len(text.encode()) > limit)


def check_token_ids(ids: Sequence[int] | NDArray[np.int64], vocab_size: int, violations: Violations, path: str) -> None:
    """Check that every id lies in the vocabulary."""
    values = np.asarray(ids, dtype=np.int64)
    outside = np.flatnonzero((values < 0) | (values >= vocab_size))
    for index in outside[:MAX_REPORTED_ELEMENTS].tolist():
        violations.add(f"{path}[{index}]", f"must be in [0, {vocab_size})", int(values[index]))


_PRIORITIES: dict[int, Priority] = {
    generation_service_pb2.PRIORITY_LOW: "low",
    generation_service_pb2.PRIORITY_NORMAL: "normal",
    generation_service_pb2.PRIORITY_HIGH: "high",
}


def check_priority(value: int, violations: Violations) -> Priority | None:
    """The priority that a request asks for; None for its caller's."""
    if value and value not in _PRIORITIES:
        violations.add("priority", "must be a value of Priority", value)
    return _PRIORITIES.get(value)


def check_prompt_tokens(count: int, bounds: Bounds, path: str) -> None:
    """Check the length of a tokenized prompt. Raises InvalidRequestError."""
    violations = Violations()
    if count == 0:
        violations.add(path, "must give at least one token", Verbatim("none"))
    _check_room(count, bounds, violations, path)
    violations.check()


def _check_room(count: int, bounds: Bounds, violations: Violations, path: str) -> None:
    if count >= bounds.max_sequence_tokens:
        rule = f"must leave room for an answer in the {bounds.capacity_name} of {bounds.max_sequence_tokens} tokens"
        violations.add(path, rule, Verbatim(f"{count} tokens"))


def within(items: Sequence[Any] | Mapping[Any, Any], limit: int, violations: Violations, path: str, what: str) -> bool:
    """Check how many items a field has; False where it has too many to be looked at."""
    if len(items) <= limit:
        return True
    violations.add(path, f"must have at most {limit} {what}", Verbatim(f"{len(items)} {what}"))
    return False


def check_batch_size(count: int, bounds: Bounds, violations: Violations, path: str) -> None:
    """Check how many prompts a batch has."""
    if not 1 <= count <= bounds.limits.max_batch_size:
        rule = f"must have 1 to {bounds.limits.max_batch_size} prompts"
        violations.add(path, rule, Verbatim(f"{count} prompts"))


def check_negative_prompts(request: generation_service_pb2.GenerateBatchRequest, violations: Violations) -> None:
    """Check that a batch has no negative prompts, or one for each prompt."""
    count, num_prompts = len(request.negative_prompts), len(request.prompts)
    if count not in (0, num_prompts):
        rule = f"must be empty, or have one for each of the {num_prompts} prompts"
        violations.add("negative_prompts", rule, Verbatim(f"{count} prompts"))


def check_request_id(request_id: str) -> None:
    """Check that a request is named. Raises InvalidRequestError."""
    violations = Violations()
    if not request_id:
        violations.add("request_id", "must not be empty", "")
    violations.check()


def check_positions(request: generation_service_pb2.ResumeStreamRequest, limits: LimitsConfig) -> None:
    """Check what can be told without the stream. Raises InvalidRequestError."""
    check_request_id(request.request_id)
    violations = Violations()
    if within(request.positions, limits.max_return_sequences, violations, "positions", "positions"):
        seen = set()
        for place, position in enumerate(request.positions):
            for name in ("sequence_index", "text_bytes", "token_count"):
                if getattr(position, name) < 0:
                    violations.add(f"positions[{place}].{name}", "must be at least 0", getattr(position, name))
            if position.sequence_index in seen:
                rule = "must differ from those of the other positions"
                violations.add(f"positions[{place}].sequence_index", rule, position.sequence_index)
            seen.add(position.sequence_index)
    violations.check()
