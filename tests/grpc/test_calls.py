"""Every call once: what goes in reaches the engine, what the engine gives comes out."""

import threading
from typing import Any

import pytest
from fakes import IM_END, VOCAB_SIZE, FakeEngine, model_info, say
from harness import Service

from tokenwire.engine.settings import GenerationOverrides
from tokenwire.servicers.text import INLINE_CHARACTERS
from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2, model_service_pb2, tokenizer_service_pb2
from tokenwire.validation import check_token_ids

TEXT = "Grüße, 世界 🙂!"


def generate_request(text: str = "hi", **config: object) -> generation_service_pb2.GenerateRequest:
    return generation_service_pb2.GenerateRequest(
        prompt=generation_service_pb2.Prompt(text=text),
        generation_config=generation_pb2.GenerationConfig(**config),  # type: ignore[arg-type]
    )


def conversation(*turns: tuple[str, str], **options: object) -> chat_pb2.Conversation:
    messages = [
        chat_pb2.ChatMessage(role=role, content=[chat_pb2.ContentPart(text=content)]) for role, content in turns
    ]
    return chat_pb2.Conversation(messages=messages, **options)  # type: ignore[arg-type]


async def test_generate(service: Service, engine: FakeEngine) -> None:
    engine.script = say(TEXT)
    answer = await service.generation.Generate(generate_request(max_new_tokens=64))
    (sequence,) = answer.sequences
    (stream,) = engine.streams
    assert stream.prompt_ids == list(b"hi")
    assert stream.settings.max_new_tokens == 64
    assert sequence.text == TEXT
    assert bytes(sequence.token_ids[:-1]) == TEXT.encode()
    assert sequence.token_ids[-1] == IM_END
    assert sequence.finish.reason == generation_pb2.FINISH_REASON_EOS
    assert sequence.finish.stop_token_id == IM_END
    assert sequence.finish.usage.prompt_token_count == 2
    assert sequence.finish.usage.completion_token_count == len(TEXT.encode()) + 1
    assert sequence.finish.timings.prefill_ms == 2.0
    assert answer.start.model == "fake"
    assert answer.start.prompt_token_count == 2
    assert answer.start.generation_config.max_new_tokens == 64
    assert not answer.start.generation_config.HasField("seed")


async def test_stream_is_start_deltas_finish_and_joins_to_the_unary_text(service: Service, engine: FakeEngine) -> None:
    engine.script = say(TEXT)
    events = [event async for event in service.generation.GenerateStream(generate_request(max_new_tokens=64))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["start"] + ["delta"] * (len(kinds) - 2) + ["finish"]
    deltas = [event.delta for event in events[1:-1]]
    unary = (await service.generation.Generate(generate_request(max_new_tokens=64))).sequences[0]
    assert "".join(delta.text for delta in deltas) == unary.text
    assert [token_id for delta in deltas for token_id in delta.token_ids] == list(unary.token_ids)
    assert events[-1].finish == unary.finish
    end = 0
    for delta in deltas:
        assert delta.text_range.start == end
        end = delta.text_range.end
        assert TEXT.encode()[delta.text_range.start : end].decode() == delta.text


async def test_logprobs_follow_their_tokens(service: Service, engine: FakeEngine) -> None:
    engine.script = say(TEXT)
    request = generate_request(max_new_tokens=64)
    request.output.logprobs = 2
    events = [event async for event in service.generation.GenerateStream(request)]
    deltas = [event.delta for event in events[1:-1]]
    for delta in deltas:
        assert [position.chosen.token_id for position in delta.logprobs] == list(delta.token_ids)
        assert all([top.logprob for top in position.top] == [-0.5, -1.5] for position in delta.logprobs)
    assert deltas[0].logprobs[0].chosen.text == "G"
    sequence = (await service.generation.Generate(request)).sequences[0]
    assert len(sequence.logprobs) == len(sequence.token_ids)


async def test_chat(service: Service, engine: FakeEngine) -> None:
    engine.script = say("Hello.")
    request = generation_service_pb2.ChatRequest(conversation=conversation(("user", "hi")))
    answer = await service.generation.Chat(request)
    assert engine.streams[0].prompt_ids == [
        *[256], *b"user\nhi", *[257], *b"\n", *[256], *b"assistant\n",
    ]  # fmt: skip
    (choice,) = answer.choices
    assert choice.message == conversation(("assistant", "Hello.")).messages[0]
    assert choice.sequence.text == "Hello."
    request.conversation.messages.append(choice.message)
    request.conversation.messages.append(conversation(("user", "again")).messages[0])
    assert (await service.generation.Chat(request)).choices[0].message.role == "assistant"


async def test_chat_stream(service: Service, engine: FakeEngine) -> None:
    engine.script = say("Hello.")
    request = generation_service_pb2.ChatRequest(conversation=conversation(("user", "hi")))
    events = [event async for event in service.generation.ChatStream(request)]
    assert events[0].WhichOneof("event") == "start"
    assert "".join(event.delta.text for event in events if event.HasField("delta")) == "Hello."
    assert [event.HasField("finish") for event in events].count(True) == 1
    assert events[-1].HasField("finish")


async def test_rendered_chat_is_what_chat_submits(service: Service, engine: FakeEngine) -> None:
    engine.script = say("x")
    talk = conversation(("system", "be brief"), ("user", "hi"))
    rendered = await service.tokenizer.RenderChat(tokenizer_service_pb2.RenderChatRequest(conversation=talk))
    await service.generation.Chat(generation_service_pb2.ChatRequest(conversation=talk))
    assert engine.streams[0].prompt_ids == list(rendered.token_ids.ids)
    assert rendered.text.endswith("<|im_start|>assistant\n")
    talk.add_generation_prompt = False
    closed = await service.tokenizer.RenderChat(tokenizer_service_pb2.RenderChatRequest(conversation=talk))
    assert closed.text + "<|im_start|>assistant\n" == rendered.text


async def test_token_ids_are_taken_as_they_are(service: Service, engine: FakeEngine) -> None:
    engine.script = say("x")
    prompt = generation_service_pb2.Prompt(token_ids=[0, VOCAB_SIZE - 1])
    await service.generation.Generate(generation_service_pb2.GenerateRequest(prompt=prompt))
    assert engine.streams[0].prompt_ids == [0, VOCAB_SIZE - 1]


@pytest.mark.parametrize("text", ["", "a", TEXT, "x" * 5000])
async def test_tokenize_round_trip(service: Service, text: str) -> None:
    answer = await service.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text=text))
    ids = [token.id for token in answer.tokens]
    assert bytes(ids) == text.encode()
    assert all(token.piece for token in answer.tokens)
    request = tokenizer_service_pb2.DetokenizeRequest(token_ids=generation_pb2.TokenIds(ids=ids))
    assert (await service.tokenizer.Detokenize(request)).text == text


async def test_special_tokens_in_text_are_read_only_where_asked(service: Service) -> None:
    request = tokenizer_service_pb2.TokenizeRequest(text="<|im_end|>")
    assert [token.id for token in (await service.tokenizer.Tokenize(request)).tokens] == [IM_END]
    request.parse_special_tokens = False
    assert bytes(token.id for token in (await service.tokenizer.Tokenize(request)).tokens) == b"<|im_end|>"


@pytest.mark.parametrize(("skip", "text"), [(None, "a"), (True, "a"), (False, "a<|im_end|>")])
async def test_detokenize_skips_special_tokens(service: Service, skip: bool | None, text: str) -> None:
    request = tokenizer_service_pb2.DetokenizeRequest(
        token_ids=generation_pb2.TokenIds(ids=[ord("a"), IM_END]), skip_special_tokens=skip
    )
    assert (await service.tokenizer.Detokenize(request)).text == text


@pytest.mark.parametrize(("count", "on_loop"), [(INLINE_CHARACTERS, True), (INLINE_CHARACTERS + 1, False)])
async def test_many_token_ids_are_looked_at_off_the_event_loop(
    service: Service, monkeypatch: pytest.MonkeyPatch, count: int, on_loop: bool
) -> None:
    threads = []

    def check(*arguments: Any) -> None:
        threads.append(threading.current_thread())
        check_token_ids(*arguments)

    monkeypatch.setattr("tokenwire.servicers.tokenizer.check_token_ids", check)
    request = tokenizer_service_pb2.DetokenizeRequest(token_ids=generation_pb2.TokenIds(ids=[ord("a")] * count))
    assert (await service.tokenizer.Detokenize(request)).text == "a" * count
    assert [thread is threading.current_thread() for thread in threads] == [on_loop]


async def test_get_model(service: Service) -> None:
    model = (await service.model.GetModel(model_service_pb2.GetModelRequest())).model
    assert (model.id, model.context_length, model.vocab_size) == ("fake", 128, VOCAB_SIZE)
    assert model.forward_path == model_service_pb2.FORWARD_PATH_PAGED
    assert model.has_chat_template
    assert list(model.chat_template_names) == ["default"]
    assert list(model.unapplied_defaults) == ["num_beams=4"]
    assert [(token.name, token.text, token.id) for token in model.special_tokens] == [
        ("eos_token", "<|im_end|>", IM_END)
    ]
    defaults = model.default_generation_config
    assert (defaults.max_new_tokens, defaults.do_sample, list(defaults.eos_token_id.ids)) == (20, False, [IM_END])
    assert not defaults.HasField("seed")
    assert (model.limits.max_sequence_tokens, model.limits.max_running_count) == (128, 4)
    assert model.limits.max_batch_size == 256
    named = await service.model.GetModel(model_service_pb2.GetModelRequest(model="fake"))
    assert named.model == model


async def test_unset_seed_is_drawn_and_returned(service: Service, engine: FakeEngine) -> None:
    engine.script = say("x")
    seeds = [
        (await service.generation.Generate(generate_request(do_sample=True))).start.generation_config.seed
        for _ in range(2)
    ]
    assert seeds[0] != seeds[1]
    assert [stream.settings.seed for stream in engine.streams] == seeds
    answer = await service.generation.Generate(generate_request(temperature=0.5, seed=0))
    assert answer.start.generation_config.HasField("seed")
    assert answer.start.generation_config.seed == 0
    assert answer.start.generation_config.do_sample


@pytest.mark.parametrize(
    ("config", "warned"), [({}, True), ({"max_new_tokens": 20}, False), ({"max_length": 22}, False)]
)
async def test_default_length_is_pointed_out_only_where_it_cut(
    service: Service, engine: FakeEngine, config: dict[str, int], warned: bool
) -> None:
    engine.script = say("x" * 20, "length")
    finish = (await service.generation.Generate(generate_request(**config))).sequences[0].finish
    assert [warning.code for warning in finish.warnings] == ["default_length_cut"] * warned
    engine.script = say("x", "eos")
    finish = (await service.generation.Generate(generate_request(**config))).sequences[0].finish
    assert not finish.warnings


async def test_settings_without_effect_are_pointed_out(service: Service, engine: FakeEngine) -> None:
    engine.script = say("x")
    start = (await service.generation.Generate(generate_request("<|im_start|>", seed=7))).start
    assert [warning.code for warning in start.warnings] == ["seed_without_effect"]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("length", generation_pb2.FINISH_REASON_LENGTH),
        ("stop_string", generation_pb2.FINISH_REASON_STOP_STRING),
        ("stop_token", generation_pb2.FINISH_REASON_STOP_TOKEN),
        ("max_time", generation_pb2.FINISH_REASON_MAX_TIME),
        ("deadline", generation_pb2.FINISH_REASON_DEADLINE),
    ],
)
async def test_finish_reasons(service: Service, engine: FakeEngine, reason: str, expected: int) -> None:
    engine.script = say("x", reason)
    finish = (await service.generation.Generate(generate_request())).sequences[0].finish
    assert finish.reason == expected
    assert finish.HasField("stop_string") == (reason == "stop_string")
    assert finish.HasField("stop_token_id") == (reason == "stop_token")


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [
        ({"max_length": 40}, {"max_length": 40}),
        ({"max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"max_length": 40, "max_new_tokens": 9}, {"max_length": 40, "max_new_tokens": 9}),
    ],
)
async def test_get_model_loses_no_length(start: Any, defaults: dict[str, int], expected: dict[str, int]) -> None:
    service = await start(FakeEngine(model_info(defaults=GenerationOverrides(**defaults))))
    model = (await service.model.GetModel(model_service_pb2.GetModelRequest())).model
    named = {field.name: value for field, value in model.default_generation_config.ListFields()}
    assert {name: named[name] for name in ("max_length", "max_new_tokens") if name in named} == expected


@pytest.mark.parametrize(("logprobs", "expected"), [(None, ["processed_logprobs_without_effect"]), (0, [])])
async def test_processed_logprobs_without_logprobs_are_warned_about(
    service: Service, engine: FakeEngine, logprobs: int | None, expected: list[str]
) -> None:
    engine.script = say("x")
    request = generate_request("<|im_start|>")
    request.output.CopyFrom(generation_pb2.OutputOptions(processed_logprobs=True, logprobs=logprobs))
    start = (await service.generation.Generate(request)).start
    assert [warning.code for warning in start.warnings] == expected
