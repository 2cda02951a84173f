"""From a request message to a submitted request, and from its deltas to a whole answer."""

from collections.abc import AsyncGenerator
from contextlib import closing
from typing import NamedTuple

from tokenwire import convert, validation
from tokenwire.admission.admission import Admission
from tokenwire.call import Progress, current_call
from tokenwire.convert_settings import config_of
from tokenwire.engine.handle import TokenStream
from tokenwire.engine.protocol import Finish
from tokenwire.engine.settings import GenerationOverrides, GenerationSettings
from tokenwire.errors import InvalidRequestError, Violation
from tokenwire.security.callers import Priority
from tokenwire.servicers.backend import Served
from tokenwire.servicers.healing import heal
from tokenwire.servicers.pitfalls import prompt_notes
from tokenwire.servicers.sequences import Echo, SequenceWriter, StreamEvent, StreamResponse, TokenDetails
from tokenwire.servicers.text import off_loop
from tokenwire.servicers.tokenizer import render
from tokenwire.v1 import generation_pb2, generation_service_pb2
from tokenwire.validation import Violations
from tokenwire.validation_chat import check_conversation
from tokenwire.validation_settings import (
    Output,
    Resolved,
    Shape,
    check_supported,
    checked_overrides,
    output_of,
    resolve_settings,
)


class EncodedPrompt(NamedTuple):
    """A tokenized prompt; ``text`` is None where it came as token ids."""

    token_ids: list[int]
    text: str | None


class Prepared(NamedTuple):
    """A validated and tokenized request."""

    served: Served
    prompt: EncodedPrompt
    """As it was given."""
    computed_ids: list[int]
    """Its tokens that the model is fed: all, or all but the one that is healed."""
    negative_prompt_ids: list[int] | None
    output: Output
    resolved: Resolved
    start: generation_pb2.GenerationStart
    echo: str | None
    """The prompt's text where it goes in front of the answer."""
    healed_text: str
    """Text of the token that healing took off the prompt, with which the generated tokens begin; not in the answer."""

    def submit(self, admission: Admission, *, num_items: int = 1) -> TokenStream:
        """Queue it, one of ``num_items`` of its call.

        Raises QueueFullError, CallerLimitError or EngineUnavailableError.
        """
        call, settings = current_call(), self.resolved.settings
        stream = admission.submit(
            call.caller,
            call.priority,
            self.computed_ids,
            settings,
            negative_prompt_ids=self.negative_prompt_ids,
            deadline=call.deadline if settings.deadline_aware else None,
            num_items=num_items,
        )
        call.count_prompt(len(self.prompt.token_ids))
        call.settings, call.model = settings, self.served.info.model_id
        return stream

    def writers(self, response: StreamResponse) -> list[SequenceWriter]:
        """One per sequence, by index."""
        return [self._writer(index, response) for index in range(self.resolved.settings.num_return_sequences)]

    def _writer(self, index: int, response: StreamResponse) -> SequenceWriter:
        text, skip = self.served.text, self.output.skip_special_tokens
        prompt_ids = self.prompt.token_ids
        # Where the border was healed, the echoed prompt ends where the answer begins.
        tail = prompt_ids if self.resolved.settings.healed_token_id is None else []
        return SequenceWriter(
            text,
            response,
            index=index,
            echo=None if self.echo is None else Echo(text, self.echo, tail, skip_special_tokens=skip),
            details=TokenDetails(text, skip_special_tokens=skip, hidden=self.healed_text)
            if self.output.token_details
            else None,
            prompt_ids=prompt_ids,
        )

    def finish_of(self, finish: Finish, sequence_index: int) -> generation_pb2.GenerationFinish:
        """The finish message of a sequence."""
        warnings = convert.finish_warnings(finish, length_is_default=self.resolved.length_is_default)
        return convert.finish_of(finish, sequence_index, warnings)

    def check_all_finished(self, count: int) -> None:
        """Raise RuntimeError unless every sequence has had its finish."""
        if count != self.resolved.settings.num_return_sequences:
            raise RuntimeError("the engine ended a request without a finish for each sequence")


class Collected(NamedTuple):
    """A whole answer."""

    response: generation_service_pb2.GenerateResponse
    texts: list[str]
    """Of its sequences, without the echoed prompt."""


async def prepare_prompt(
    served: Served, request: generation_service_pb2.GenerateRequest, *, is_streaming: bool = False
) -> Prepared:
    """Validate and tokenize a GenerateRequest. Raises InvalidRequestError, or UnsupportedError."""
    violations = Violations()
    if request.HasField("prompt"):
        validation.check_prompt(request.prompt, served.bounds, violations, "prompt")
    else:
        violations.add("prompt", "must be set", None)
    shape = _shape_of(request, is_streaming=is_streaming)._replace(
        prompt_tokens=max(1, len(request.prompt.token_ids)), has_text_prompt=not request.prompt.token_ids
    )
    overrides, output = _checked(served, request, violations, shape)
    prompt = await encode(served, request.prompt, "prompt")
    negative_prompt_ids = await _encode_negative(served, request)
    return await prepared_prompt_of(served, prompt, overrides, output, shape, negative_prompt_ids=negative_prompt_ids)


async def prepare_chat(
    served: Served, request: generation_service_pb2.ChatRequest, *, is_streaming: bool = False
) -> Prepared:
    """Validate, render and tokenize a ChatRequest. Raises InvalidRequestError, or UnsupportedError."""
    served.text.check_chat_template()
    violations = Violations()
    if request.HasField("conversation"):
        check_conversation(request.conversation, served.bounds, violations)
    else:
        violations.add("conversation", "must be set", None)
    shape = _shape_of(request, is_streaming=is_streaming)
    overrides, output = _checked(served, request, violations, shape)
    rendered = await render(served, request.conversation)
    validation.check_prompt_tokens(len(rendered.token_ids), served.bounds, "conversation")
    negative_prompt_ids = await _encode_negative(served, request)
    prompt = EncodedPrompt(rendered.token_ids, rendered.text)
    return await prepared_of(served, prompt, overrides, output, shape, negative_prompt_ids=negative_prompt_ids)


def _shape_of(
    request: generation_service_pb2.GenerateRequest | generation_service_pb2.ChatRequest, *, is_streaming: bool
) -> Shape:
    return Shape(
        is_streaming=is_streaming,
        negative_prompt_field="negative_prompt" if request.HasField("negative_prompt") else "",
        has_deadline=current_call().deadline is not None,
    )


def _checked(
    served: Served,
    request: generation_service_pb2.GenerateRequest | generation_service_pb2.ChatRequest,
    violations: Violations,
    shape: Shape,
) -> tuple[GenerationOverrides, Output]:
    """What is left of the first look, before anything is tokenized.

    Raises InvalidRequestError, PermissionDeniedError, UnsupportedError.
    """
    output = output_of(request.output)
    if request.resumable and not shape.is_streaming:
        violations.add("resumable", "must be false in a call that does not stream", True)
    asked = validation.check_priority(request.priority, violations)
    if request.HasField("negative_prompt"):
        validation.check_prompt(request.negative_prompt, served.bounds, violations, "negative_prompt")
    overrides = checked_overrides(request.generation_config, output, served.bounds, violations, shape)
    violations.check()
    take_priority(asked)
    check_supported(overrides, served.info)
    return overrides, output


def take_priority(asked: Priority | None) -> None:
    """Let the call's requests wait where it asked to. Raises PermissionDeniedError."""
    call = current_call()
    call.priority = call.caller.priority_for(asked)


async def _encode_negative(
    served: Served, request: generation_service_pb2.GenerateRequest | generation_service_pb2.ChatRequest
) -> list[int] | None:
    if not request.HasField("negative_prompt"):
        return None
    return (await encode(served, request.negative_prompt, "negative_prompt")).token_ids


async def encode(served: Served, prompt: generation_service_pb2.Prompt, path: str) -> EncodedPrompt:
    """Text and token ids of a validated prompt. Raises InvalidRequestError where they do not fit."""
    if prompt.token_ids:
        return EncodedPrompt(list(prompt.token_ids), None)
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
    return EncodedPrompt(prompt_ids, text)


async def prepared_prompt_of(
    served: Served,
    prompt: EncodedPrompt,
    overrides: GenerationOverrides,
    output: Output,
    shape: Shape,
    *,
    negative_prompt_ids: list[int] | None = None,
    negative_path: str = "negative_prompt",
) -> Prepared:
    """As ``prepared_of`` for a raw prompt, with warnings of what is probably not meant about it."""
    prepared = await prepared_of(
        served,
        prompt,
        overrides,
        output,
        shape,
        negative_prompt_ids=negative_prompt_ids,
        negative_path=negative_path,
    )
    notes = await prompt_notes(served, prompt.token_ids, prompt.text, prepared.resolved.settings)
    prepared.start.warnings.extend(map(convert.warning_of, notes))
    return prepared


async def prepared_of(
    served: Served,
    prompt: EncodedPrompt,
    overrides: GenerationOverrides,
    output: Output,
    shape: Shape,
    *,
    negative_prompt_ids: list[int] | None = None,
    negative_path: str = "negative_prompt",
) -> Prepared:
    """Decide the settings for a tokenized prompt. Raises InvalidRequestError where they do not fit its length."""
    prompt_ids = prompt.token_ids
    resolved = resolve_settings(overrides, output, served.bounds, shape._replace(prompt_tokens=len(prompt_ids)))
    settings = resolved.settings
    healed = heal(served.text, prompt_ids, settings)
    if negative_prompt_ids is not None:
        _check_negative_room(len(negative_prompt_ids), healed.settings, served, negative_path)
    start = generation_pb2.GenerationStart(
        request_id=current_call().request_id,
        model=served.info.model_id,
        generation_config=config_of(settings, with_seed=settings.do_sample or overrides.seed is not None),
        prompt_token_count=len(prompt_ids),
        warnings=map(convert.warning_of, resolved.notes),
    )
    echo = await _echo_of(served, prompt, output) if output.echo else None
    return Prepared(
        served,
        prompt,
        healed.prompt_ids,
        negative_prompt_ids,
        output,
        resolved._replace(settings=healed.settings),
        start,
        echo,
        healed.given_text,
    )


def _check_negative_room(count: int, settings: GenerationSettings, served: Served, path: str) -> None:
    # The answer is computed behind it a second time, and so is the token that heals the prompt.
    limit, num_new = served.bounds.max_sequence_tokens, settings.max_new_tokens
    is_healing = settings.healed_token_id is not None
    if count + is_healing + num_new > limit:
        what = f"max_new_tokens, {num_new}," + (" and the healed token" if is_healing else "")
        rule = f"must leave room for {what} in the {served.bounds.capacity_name} of {limit}"
        raise InvalidRequestError([Violation(path, rule, f"{count} tokens")])


async def _echo_of(served: Served, prompt: EncodedPrompt, output: Output) -> str:
    if prompt.text is not None:
        return prompt.text
    ids, skip = prompt.token_ids, output.skip_special_tokens
    return await off_loop(len(ids), lambda: served.text.decode(ids, skip_special_tokens=skip))


async def events_of(
    prepared: Prepared, stream: TokenStream, response: StreamResponse
) -> AsyncGenerator[StreamEvent, None]:
    """The deltas and finishes of an answer, as events of a stream. Closes nothing."""
    progress = Progress(current_call())
    writers = prepared.writers(response)
    num_finished = 0
    async for delta in stream:
        progress.count(len(delta.token_ids), delta.sequence_index)
        writer = writers[delta.sequence_index]
        if delta.prompt_logprobs:
            await writer.score_prompt(delta)
        event = writer.push(delta)
        if event is not None:
            yield event
        if delta.finish is not None:
            num_finished += 1
            progress.finish(delta.finish, delta.sequence_index)
            yield response(finish=prepared.finish_of(delta.finish, delta.sequence_index))
    prepared.check_all_finished(num_finished)


async def collect(prepared: Prepared, stream: TokenStream, progress: Progress | None = None) -> Collected:
    """The whole answer. Closes the stream, whatever happens. ``progress``: who counts; by default one of its own."""
    progress = progress or Progress(current_call())
    writers = prepared.writers(generation_service_pb2.GenerateStreamResponse)
    response = generation_service_pb2.GenerateResponse(start=prepared.start)
    # In their place from the start: what a prompt's log probabilities fill is not copied.
    sequences = [response.sequences.add() for _ in writers]
    pieces: list[list[str]] = [[] for _ in writers]
    num_finished = 0
    with closing(stream):
        async for delta in stream:
            index = delta.sequence_index
            progress.count(len(delta.token_ids), index)
            if delta.prompt_logprobs:
                await writers[index].score_prompt(delta, sequences[index].prompt_logprobs)
            event = writers[index].push(delta)
            if event is not None:
                pieces[index].append(event.delta.text)
                _append(event.delta, sequences[index])
            if delta.finish is not None:
                num_finished += 1
                progress.finish(delta.finish, index)
                sequences[index].finish.CopyFrom(prepared.finish_of(delta.finish, index))
    prepared.check_all_finished(num_finished)
    texts = []
    for writer, sequence, parts in zip(writers, sequences, pieces, strict=True):
        sequence.text = "".join(parts)
        texts.append(sequence.text[writer.echoed_characters :])
    return Collected(response, texts)


def _append(delta: generation_pb2.GenerationDelta, sequence: generation_pb2.GeneratedSequence) -> None:
    sequence.token_ids.extend(delta.token_ids)
    if delta.logprobs:
        sequence.logprobs.extend(delta.logprobs)
    if delta.tokens:
        sequence.tokens.extend(delta.tokens)
    if delta.explanations:
        sequence.explanations.extend(delta.explanations)
