"""Explanations over gRPC: with their tokens, in every call, of the first tokens alone, refused where they cannot be."""

from typing import Any

import pytest
from fakes import FakeEngine, FakeStream, model_info, say
from harness import Service
from test_calls import conversation
from test_statuses import failure

from tokenwire._native import MAX_EXPLAINED_TOKENS
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.v1 import generation_pb2, generation_service_pb2, model_service_pb2
from tokenwire.v1.generation_pb2 import GenerationConfig, OutputOptions

TEXT = "Grüße an alle."


def requests_of(output: OutputOptions, **config: Any) -> tuple[Any, Any, Any]:
    """One request for Generate, Chat and GenerateBatch each."""
    prompt = generation_service_pb2.Prompt(text="hi")
    options: Any = {"generation_config": GenerationConfig(**config), "output": output}
    return (
        generation_service_pb2.GenerateRequest(prompt=prompt, **options),
        generation_service_pb2.ChatRequest(conversation=conversation(("user", "hi")), **options),
        generation_service_pb2.GenerateBatchRequest(prompts=[prompt, prompt], **options),
    )


async def answers_of(service: Service, output: OutputOptions, **config: Any) -> list[Any]:
    """The sequences of one prompt by every call: those of streams put together from their deltas."""
    generate, chat, batch = requests_of(output, **config)
    found = [
        list((await service.generation.Generate(generate)).sequences),
        [choice.sequence for choice in (await service.generation.Chat(chat)).choices],
        *(list(item.response.sequences) for item in (await service.generation.GenerateBatch(batch)).items),
    ]
    for stream in (service.generation.GenerateStream(generate), service.generation.ChatStream(chat)):
        sequences = [generation_pb2.GeneratedSequence() for _ in found[0]]
        async for event in stream:
            if event.HasField("delta"):
                delta = event.delta
                assert len(delta.explanations) <= len(delta.token_ids)
                own = sequences[delta.sequence_index]
                own.token_ids.extend(delta.token_ids)
                own.explanations.extend(delta.explanations)
        found.append(sequences)
    return found


@pytest.mark.parametrize("details", [False, True])
async def test_every_call_explains_each_token(service: Service, engine: FakeEngine, details: bool) -> None:
    engine.script = say(TEXT)
    output = OutputOptions(explain=True, token_details=details)
    for sequences in await answers_of(service, output, do_sample=True, num_return_sequences=2):
        assert len(sequences) == 2
        for sequence in sequences:
            explanations = sequence.explanations
            assert [explanation.token_id for explanation in explanations] == list(sequence.token_ids)
            assert [explanation.outcome.entropy for explanation in explanations] == [
                place + 0.5 for place in range(len(sequence.token_ids))
            ]
            first = explanations[0]
            assert first.text == "G"
            assert not first.HasField("model")
            mended, narrowed = first.effects
            assert (mended.name, mended.HasField("before"), mended.after.probability) == (
                "remove_invalid_values",
                False,
                0.25,
            )
            assert (narrowed.name, narrowed.removed_token_count) == ("top_k", 7)
            assert (narrowed.before.rank, narrowed.before.token_count) == (2, 9)
            assert (narrowed.after.rank, narrowed.after.token_count) == (1, 2)


async def test_nothing_is_explained_unless_asked_for(service: Service, engine: FakeEngine) -> None:
    engine.script = say(TEXT)
    for output in (OutputOptions(), OutputOptions(explain=False, logprobs=1)):
        for sequences in await answers_of(service, output):
            assert not any(sequence.explanations for sequence in sequences)
    assert not any(stream.settings.explain for stream in engine.streams)


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("step", [1, 7, 300])
async def test_the_first_tokens_are_explained(service: Service, engine: FakeEngine, step: int, details: bool) -> None:
    limits = (await service.model.GetModel(model_service_pb2.GetModelRequest())).model.limits
    assert limits.max_explained_token_count == MAX_EXPLAINED_TOKENS
    length = MAX_EXPLAINED_TOKENS + 44

    def script(stream: FakeStream) -> None:
        for start in range(0, length, step):
            count = min(step, length - start)
            stream.push("a" * count, [97] * count)
        stream.push("", [], "length")

    engine.script = script
    for sequences in await answers_of(service, OutputOptions(explain=True, token_details=details)):
        (sequence,) = sequences
        assert len(sequence.token_ids) == length
        assert [explanation.outcome.entropy for explanation in sequence.explanations] == [
            place + 0.5 for place in range(MAX_EXPLAINED_TOKENS)
        ]


async def test_tokens_that_wait_keep_their_explanations(service: Service, engine: FakeEngine) -> None:
    def script(stream: FakeStream) -> None:
        stream.push("a", [97])
        stream.push("", [69])
        stream.push("", [78])
        stream.push("Eb", [98])
        stream.push("", [68], "stop_string")

    engine.script = script
    for sequences in await answers_of(service, OutputOptions(explain=True)):
        (sequence,) = sequences
        assert list(sequence.token_ids) == [97, 69, 78, 98, 68]
        assert [explanation.outcome.entropy for explanation in sequence.explanations] == [0.5, 1.5, 2.5, 3.5, 4.5]


async def test_beams_are_not_explained(service: Service) -> None:
    generate, chat, batch = requests_of(OutputOptions(explain=True), num_beams=2)
    for call in (
        service.generation.Generate(generate),
        service.generation.Chat(chat),
        service.generation.GenerateBatch(batch),
    ):
        assert (await failure(call)).fields == {"output.explain"}
    for call in (service.generation.GenerateStream(generate), service.generation.ChatStream(chat)):
        assert (await failure(call)).fields == {"output.explain", "generation_config.num_beams"}
    assert not service.engine.streams


async def test_beams_of_the_models_defaults_are_not_explained_either(start: Any) -> None:
    service = await start(FakeEngine(model_info(defaults=GenerationOverrides(num_beams=2))))
    generate, *_ = requests_of(OutputOptions(explain=True))
    assert (await failure(service.generation.Generate(generate))).fields == {"output.explain"}
