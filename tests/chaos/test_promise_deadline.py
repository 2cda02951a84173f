"""deadline_aware: an answer ends shortly before its call's deadline with what there is, in every call."""

import asyncio
from pathlib import Path
from typing import Any

from chaos_service import Chaos, answer_to, request, serving

from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2

TIMEOUT_S = 6.0
STEP_S = 0.8
"""The engine leaves itself one and a half steps: enough for a machine that has much else to do."""


def config(**settings: Any) -> generation_pb2.GenerationConfig:
    return generation_pb2.GenerationConfig(max_new_tokens=4000, deadline_aware=True, **settings)


async def streamed(call: Any) -> list[generation_pb2.GeneratedSequence]:
    """A stream as the unary call would give it."""
    sequences: dict[int, Any] = {}
    async for event in call:
        match event.WhichOneof("event"):
            case "delta":
                whole = sequences.setdefault(event.delta.sequence_index, generation_pb2.GeneratedSequence())
                whole.text += event.delta.text
                whole.token_ids.extend(event.delta.token_ids)
            case "finish":
                sequences[event.finish.sequence_index].finish.CopyFrom(event.finish)
    return [sequences[index] for index in sorted(sequences)]


async def all_kinds(service: Chaos) -> dict[str, list[generation_pb2.GeneratedSequence]]:
    calls = service.generation
    plain = request("plain", 4000, deadline_aware=True)
    several = request("several", 4000, deadline_aware=True, do_sample=True, seed=1, num_return_sequences=3)
    beams = request("beams", 4000, deadline_aware=True, num_beams=2)
    message = chat_pb2.ChatMessage(role="user", content=[chat_pb2.ContentPart(text="hi")])
    chat = generation_service_pb2.ChatRequest(
        conversation=chat_pb2.Conversation(messages=[message]), generation_config=config()
    )
    prompts = [generation_service_pb2.Prompt(text=text) for text in ("first", "second")]
    batch = generation_service_pb2.GenerateBatchRequest(prompts=prompts, generation_config=config())
    answers = await asyncio.gather(
        calls.Generate(plain, timeout=TIMEOUT_S),
        calls.Generate(several, timeout=TIMEOUT_S),
        calls.Generate(beams, timeout=TIMEOUT_S),
        calls.GenerateBatch(batch, timeout=TIMEOUT_S),
        calls.Chat(chat, timeout=TIMEOUT_S),
        streamed(calls.GenerateStream(plain, timeout=TIMEOUT_S)),
        streamed(calls.GenerateStream(several, timeout=TIMEOUT_S)),
        streamed(calls.ChatStream(chat, timeout=TIMEOUT_S)),
    )
    return {
        "plain": list(answers[0].sequences),
        "several": list(answers[1].sequences),
        "beams": list(answers[2].sequences),
        "first": list(answers[3].items[0].response.sequences),
        "second": list(answers[3].items[1].response.sequences),
        "chat": [choice.sequence for choice in answers[4].choices],
        "plain stream": answers[5],
        "several streams": answers[6],
        "chat stream": answers[7],
    }


async def test_every_call_ends_shortly_before_its_deadline_with_what_there_is(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": STEP_S, "num_blocks": 16_384}) as service:
        answers = await all_kinds(service)
        for kind, sequences in answers.items():
            assert len(sequences) == (3 if kind.startswith("several") else 1), kind
            for sequence in sequences:
                assert sequence.finish.reason == generation_pb2.FINISH_REASON_DEADLINE, kind
                assert len(sequence.token_ids) == sequence.finish.usage.completion_token_count > 1, kind
                assert sequence.text, kind
        for prompt, kind in (("plain", "plain"), ("plain", "plain stream"), ("first", "first"), ("second", "second")):
            tokens = list(answers[kind][0].token_ids)
            assert tokens == answer_to(prompt, len(tokens))
        await service.until_nothing_is_held()
