"""Mutated messages: any answer but UNKNOWN, nothing internal in any detail, and the server goes on."""

import os
import random
from typing import Any

import grpc
import grpc.aio
from fakes import FakeEngine, say
from harness import Service
from test_calls import conversation, generate_request

from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2, tokenizer_service_pb2

ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    # A stream that is to be kept, where none are.
    grpc.StatusCode.FAILED_PRECONDITION,
}
INTERNALS = ("Traceback", "Error(", "Exception", "site-packages", ".py", "object at 0x")


def seeds() -> list[tuple[str, bytes]]:
    generate = generate_request(
        "Once upon a time", max_new_tokens=5, temperature=0.7, top_k=40, top_p=0.9, seed=3, stop_token_ids=[1, 2]
    )
    generate.generation_config.logit_bias[7] = 1.5
    generate.generation_config.stop_strings.values.append("END")
    generate.output.logprobs = 2
    generate.output.explain = True
    talk = conversation(("system", "be brief"), ("user", "hi"))
    talk.messages.append(chat_pb2.ChatMessage(role="assistant", tool_calls=[chat_pb2.ToolCall(name="f")]))
    talk.messages[-1].tool_calls[0].arguments_json = '{"a": 1}'
    talk.tools.append(chat_pb2.Tool(name="f", parameters_json="{}"))
    chat = generation_service_pb2.ChatRequest(conversation=talk, generation_config=generate.generation_config)
    batch = generation_service_pb2.GenerateBatchRequest(prompts=[generate.prompt] * 3)
    detokenize = tokenizer_service_pb2.DetokenizeRequest(token_ids=generation_pb2.TokenIds(ids=[1, 2, 300]))
    messages: list[tuple[str, Any]] = [
        ("GenerationService/Generate", generate),
        ("GenerationService/GenerateStream", generate),
        ("GenerationService/GenerateBatch", batch),
        ("GenerationService/Chat", chat),
        ("GenerationService/ChatStream", chat),
        ("TokenizerService/Tokenize", tokenizer_service_pb2.TokenizeRequest(text="héllo")),
        ("TokenizerService/Detokenize", detokenize),
        ("TokenizerService/RenderChat", tokenizer_service_pb2.RenderChatRequest(conversation=talk)),
    ]
    return [(method, message.SerializeToString()) for method, message in messages]


def mutate(data: bytes, rng: random.Random) -> bytes:
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(mutated) + 1)
        match rng.randrange(5):
            case 0 if mutated:
                mutated[place % len(mutated)] = rng.randrange(256)
            case 1 if mutated:
                mutated[place % len(mutated)] ^= 1 << rng.randrange(8)
            case 2:
                mutated[place:place] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del mutated[place : place + rng.randint(1, 8)]
            case _:
                mutated += mutated[place : place + 32]
    return bytes(mutated)


async def test_no_mutated_message_gives_unknown(service: Service, engine: FakeEngine) -> None:
    engine.script = say("x")
    count = int(os.environ.get("TOKENWIRE_FUZZ_COUNT", "2000"))
    rng = random.Random(20240607)
    originals = seeds()
    codes: dict[grpc.StatusCode, int] = {}
    for _ in range(count):
        method, original = rng.choice(originals)
        data = mutate(original, rng)
        call: Any = service.channel.unary_stream(f"/tokenwire.v1.{method}", None, None)(data)
        async for _answer in _until_error(call):
            pass
        code = await call.code()
        codes[code] = codes.get(code, 0) + 1
        assert code in ALLOWED, (method, data, code, await call.details())
        shown = await call.details() or ""
        trailing = dict(await call.trailing_metadata())
        shown += trailing.get("grpc-status-details-bin", b"").decode(errors="replace")
        assert not any(word in shown for word in INTERNALS), (method, data, shown)
    assert codes[grpc.StatusCode.OK] > 0
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > 0
    assert not engine.open


async def _until_error(call: Any) -> Any:
    try:
        async for answer in call:
            yield answer
    except grpc.aio.AioRpcError:
        return
