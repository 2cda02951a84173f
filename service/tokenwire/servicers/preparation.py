"""From a request message to a submitted sequence, and from its deltas to a whole answer."""

from contextlib import closing
from typing import NamedTuple

from tokenwire import convert, validation
from tokenwire.call import current_call
from tokenwire.engine.handle import EngineHandle, TokenStream
from tokenwire.engine.protocol import Finish
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.servicers.backend import Served
from tokenwire.servicers.text import off_loop
from tokenwire.servicers.tokenizer import render
from tokenwire.v1 import generation_pb2, generation_service_pb2
from tokenwire.validation import Bounds, Output, Resolved, Violations
from tokenwire.validation_chat import check_conversation


class Prepared(NamedTuple):
    """A validated and tokenized request."""

    served: Served
    prompt_ids: list[int]
    resolved: Resolved
    start: generation_pb2.GenerationStart

    def submit(self, engine: EngineHandle, *, sequence_index: int = 0) -> TokenStream:
        """Queue it. Raises QueueFullError or EngineUnavailableError."""
        stream = engine.submit(self.prompt_ids, self.resolved.settings, sequence_index=sequence_index)
        current_call().count_prompt(len(self.prompt_ids))
        return stream

    def finish_of(self, finish: Finish | None) -> generation_pb2.GenerationFinish:
        """The finish message. ``finish`` is the last delta's."""
        if finish is None:
            raise RuntimeError("the engine ended a sequence without a finish")
        resolved = self.resolved
        return convert.finish_of(finish, convert.length_warnings(finish, length_is_default=resolved.length_is_default))


async def prepare_prompt(served: Served, request: generation_service_pb2.GenerateRequest) -> Prepared:
    """Validate and tokenize a GenerateRequest. Raises InvalidRequestError."""
    output = validation.output_of(request.output)
    violations = Violations()
    if request.HasField("prompt"):
        validation.check_prompt(request.prompt, served.bounds, violations, "prompt")
    else:
        violations.add("prompt", "must be set", None)
    at_least = max(1, len(request.prompt.token_ids))
    overrides = checked_overrides(request.generation_config, output, served.bounds, violations, prompt_tokens=at_least)
    violations.check()
    return prepared_of(served, await encode(served, request.prompt, "prompt"), overrides, output)


async def prepare_chat(served: Served, request: generation_service_pb2.ChatRequest) -> Prepared:
    """Validate, render and tokenize a ChatRequest. Raises InvalidRequestError, or UnsupportedError."""
    served.text.check_chat_template()
    output = validation.output_of(request.output)
    violations = Violations()
    if request.HasField("conversation"):
        check_conversation(request.conversation, served.bounds, violations)
    else:
        violations.add("conversation", "must be set", None)
    overrides = checked_overrides(request.generation_config, output, served.bounds, violations)
    violations.check()
    rendered = await render(served, request.conversation)
    validation.check_prompt_tokens(len(rendered.token_ids), served.bounds, "conversation")
    return prepared_of(served, rendered.token_ids, overrides, output)


def checked_overrides(
    config: generation_pb2.GenerationConfig,
    output: Output,
    bounds: Bounds,
    violations: Violations,
    *,
    prompt_tokens: int = 1,
) -> GenerationOverrides:
    """What a request sets, judged; only to be used where nothing is violated.

    ``prompt_tokens``: how many the prompt has, or at least has. Sizes come first: what is too long is not even copied.
    """
    if not validation.check_sizes(config, output, bounds.limits, violations):
        return GenerationOverrides()
    overrides = convert.overrides_of(config)
    validation.check_generation(overrides, output, bounds, violations, prompt_tokens=prompt_tokens)
    return overrides


async def encode(served: Served, prompt: generation_service_pb2.Prompt, path: str) -> list[int]:
    """Token ids of a validated prompt. Raises InvalidRequestError where they do not fit."""
    if prompt.token_ids:
        return list(prompt.token_ids)
    text = prompt.text
    add_special_tokens = validation.flag(prompt, "add_special_tokens")
    parse_special_tokens = validation.flag(prompt, "parse_special_tokens")
    prompt_ids = await off_loop(
        len(text),
        lambda: served.text.encode(
            text, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
        ),
    )
    validation.check_prompt_tokens(len(prompt_ids), served.bounds, f"{path}.text")
    return prompt_ids


def prepared_of(served: Served, prompt_ids: list[int], overrides: GenerationOverrides, output: Output) -> Prepared:
    """Decide the settings for a tokenized prompt. Raises InvalidRequestError where they do not fit its length."""
    resolved = validation.resolve_settings(overrides, output, served.bounds, len(prompt_ids))
    settings = resolved.settings
    start = generation_pb2.GenerationStart(
        request_id=current_call().request_id,
        model=served.info.model_id,
        generation_config=convert.config_of(settings, with_seed=settings.do_sample or overrides.seed is not None),
        prompt_token_count=len(prompt_ids),
        warnings=[convert.warning_of(note) for note in resolved.notes],
    )
    return Prepared(served, prompt_ids, resolved, start)


async def collect(prepared: Prepared, stream: TokenStream) -> generation_service_pb2.GenerateResponse:
    """The whole answer. Closes the stream, whatever happens."""
    call = current_call()
    texts: list[str] = []
    sequence = generation_pb2.GeneratedSequence()
    finish: Finish | None = None
    with closing(stream):
        async for delta in stream:
            call.count(len(delta.token_ids))
            finish = delta.finish
            texts.append(delta.text)
            sequence.token_ids.extend(delta.token_ids)
            if delta.logprobs:
                sequence.logprobs.extend(
                    convert.position_logprobs_of(delta.token_ids, delta.logprobs, prepared.served.text.token_text)
                )
    sequence.text = "".join(texts)
    sequence.finish.CopyFrom(prepared.finish_of(finish))
    return generation_service_pb2.GenerateResponse(start=prepared.start, sequences=[sequence])
