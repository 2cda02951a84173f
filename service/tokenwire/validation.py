"""Every rule about requests, checked before any work; all violations of a request are reported at once.

Ranges of sampling and stopping parameters live in Rust (asked by ``engine.ranges``), the rules between settings in
``engine.settings.resolve``; this module adds presence, sizes, counts and everything about prompts; `validation_chat`
has the rules of conversations.
Counts and sizes come first: a list that is too long is not looked at element by element.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from tokenwire.config import LimitsConfig
from tokenwire.engine.protocol import ModelInfo
from tokenwire.engine.ranges import out_of_range
from tokenwire.engine.settings import GenerationOverrides, GenerationSettings, Note, Resolution, resolve
from tokenwire.errors import InvalidRequestError, UnknownModelError, Violation
from tokenwire.v1 import generation_pb2, generation_service_pb2

MIN_TEXT_BYTES = 64 * 1024
"""Text that is tokenized however small the context is, where its tokens are asked for or cannot be bounded."""

MAX_REPORTED_ELEMENTS = 8
"""Bad elements of one list that are reported; the rest would only repeat the rule."""

_CONFIG = "generation_config"
_LIST_PATHS = {
    "eos_token_id": "eos_token_id.ids",
    "suppress_tokens": "suppress_tokens.ids",
    "stop_strings": "stop_strings.values",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the served model and the operator allow."""

    info: ModelInfo
    limits: LimitsConfig
    max_prompt_bytes: int
    """Most UTF-8 bytes of a prompt: above it no text can fit the context, or where the tokenizer sets no such bound,
    hardly any (`servicers.backend`). At most max_message_bytes."""

    @property
    def max_sequence_tokens(self) -> int:
        """Most tokens of prompt and answer: the context, or what the KV cache can hold for one sequence."""
        return min(self.info.context_length, self.info.kv_token_capacity)

    @property
    def capacity_name(self) -> str:
        """What sets ``max_sequence_tokens``, for error texts."""
        return "KV cache" if self.info.kv_token_capacity < self.info.context_length else "context"


@dataclass(frozen=True, slots=True)
class Output:
    """OutputOptions with defaults filled in."""

    logprobs: int | None
    processed_logprobs: bool
    skip_special_tokens: bool


class Resolved(NamedTuple):
    """Settings in force for one sequence, and what is to be said about them."""

    settings: GenerationSettings
    notes: tuple[Note, ...]
    length_is_default: bool


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
    text = repr(value[: limit + 1]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_model(model: str, info: ModelInfo) -> None:
    """Raise UnknownModelError unless ``model`` is empty or the served one."""
    if model and model != info.model_id:
        raise UnknownModelError(shorten(model, 200)[1:-1], info.model_id)


def flag(message: Message, name: str) -> bool:
    """Value of an optional bool whose default is true."""
    return bool(getattr(message, name)) if message.HasField(name) else True


def output_of(output: generation_pb2.OutputOptions) -> Output:
    """The options with their defaults."""
    return Output(
        logprobs=output.logprobs if output.HasField("logprobs") else None,
        processed_logprobs=output.processed_logprobs,
        skip_special_tokens=flag(output, "skip_special_tokens"),
    )


def check_prompt(prompt: generation_service_pb2.Prompt, bounds: Bounds, violations: Violations, path: str) -> None:
    """Check what can be told without tokenizing."""
    has_text, has_ids = prompt.HasField("text"), len(prompt.token_ids) > 0
    if has_text and has_ids:
        violations.add(path, "must have either text or token_ids, not both", "both")
    elif has_ids:
        _check_room(len(prompt.token_ids), bounds, violations, f"{path}.token_ids")
        if len(prompt.token_ids) < bounds.max_sequence_tokens:
            check_token_ids(prompt.token_ids, bounds.info.vocab_size, violations, f"{path}.token_ids")
        for name in ("add_special_tokens", "parse_special_tokens"):
            if prompt.HasField(name):
                violations.add(f"{path}.{name}", "must be unset with token_ids", getattr(prompt, name))
    elif not has_text:
        violations.add(path, "must have text or token_ids", "neither")
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


def check_sizes(
    config: generation_pb2.GenerationConfig, output: Output, limits: LimitsConfig, violations: Violations
) -> bool:
    """Check counts and lengths, on the message. False where something is too long to be copied and looked into."""
    stop_strings = config.stop_strings.values
    path = f"{_CONFIG}.stop_strings.values"
    fits = within(stop_strings, limits.max_stop_strings, violations, path, "strings")
    if fits:
        for index, text in enumerate(stop_strings):
            size = len(text.encode())
            if size > limits.max_stop_string_bytes:
                rule = f"must be at most {limits.max_stop_string_bytes} bytes"
                violations.add(f"{path}[{index}]", rule, Verbatim(f"{size} bytes"))
                fits = False
    for ids, name in (
        (config.eos_token_id.ids, "eos_token_id.ids"),
        (config.stop_token_ids, "stop_token_ids"),
        (config.suppress_tokens.ids, "suppress_tokens.ids"),
    ):
        fits = within(ids, limits.max_token_ids, violations, f"{_CONFIG}.{name}", "ids") and fits
    bias = config.logit_bias
    fits = within(bias, limits.max_logit_bias, violations, f"{_CONFIG}.logit_bias", "entries") and fits
    if output.logprobs is not None and not 0 <= output.logprobs <= limits.max_logprobs:
        violations.add("output.logprobs", f"must be in [0, {limits.max_logprobs}]", output.logprobs)
    return fits


def check_generation(
    overrides: GenerationOverrides, output: Output, bounds: Bounds, violations: Violations, *, prompt_tokens: int = 1
) -> None:
    """Check the settings of a request that passed ``check_sizes``: ranges, and the rules between them.

    ``prompt_tokens``: how many the prompt has, or at least has.
    """
    violations.extend(_range_violations(overrides, bounds.info))
    suppressed = overrides.suppress_tokens or ()
    if len(suppressed) >= bounds.info.vocab_size and len(set(suppressed)) >= bounds.info.vocab_size:
        violations.add(f"{_CONFIG}.suppress_tokens.ids", "must leave a token to generate", Verbatim("the vocabulary"))
    resolution = _resolve(overrides, output, bounds, min(prompt_tokens, bounds.max_sequence_tokens - 1))
    violations.extend(resolution.violations)


def check_batch_size(count: int, bounds: Bounds, violations: Violations, path: str) -> None:
    """Check how many prompts a batch has."""
    if not 1 <= count <= bounds.limits.max_batch_size:
        rule = f"must have 1 to {bounds.limits.max_batch_size} prompts"
        violations.add(path, rule, Verbatim(f"{count} prompts"))


def resolve_settings(overrides: GenerationOverrides, output: Output, bounds: Bounds, prompt_tokens: int) -> Resolved:
    """The settings in force for a prompt of this length. Raises InvalidRequestError."""
    resolution = _resolve(overrides, output, bounds, prompt_tokens)
    if resolution.settings is None:
        raise InvalidRequestError(list(resolution.violations))
    return Resolved(resolution.settings, resolution.notes, resolution.length_is_default)


def _resolve(overrides: GenerationOverrides, output: Output, bounds: Bounds, prompt_tokens: int) -> Resolution:
    return resolve(
        overrides,
        bounds.info.defaults,
        prompt_tokens=prompt_tokens,
        context_length=bounds.max_sequence_tokens,
        vocab_size=bounds.info.vocab_size,
        logprobs=output.logprobs,
        processed_logprobs=output.processed_logprobs,
        skip_special_tokens=output.skip_special_tokens,
    )


def _range_violations(overrides: GenerationOverrides, info: ModelInfo) -> Iterator[Violation]:
    # A length that follows from the prompt is judged once the prompt is tokenized.
    for violation in out_of_range(overrides, vocab_size=info.vocab_size, max_new_tokens=info.context_length):
        name, bracket, index = violation.field.partition("[")
        path = f"{_CONFIG}.{_LIST_PATHS.get(name, name)}{bracket}{index}"
        yield Violation(path, violation.rule, shorten(Verbatim(violation.value)))
