"""Several sequences of one request, and everything that an answer carries beside its text."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from fakes import IM_END, FakeEngine, FakeStream, model_info, say, tokenizer_json
from harness import Service, running, service_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_calls import conversation, generate_request
from test_statuses import failure

from tokenwire import convert
from tokenwire.config import LimitsConfig
from tokenwire.engine.protocol import ModelInfo
from tokenwire.v1 import generation_pb2, generation_service_pb2, model_service_pb2

TEXTS = ["Grüße", "世界 🙂", "plain"]
OutputOptions = generation_pb2.OutputOptions


def request_of(text: str = "hi", output: OutputOptions | None = None, **config: Any) -> Any:
    request = generate_request(text, **config)
    if output is not None:
        request.output.CopyFrom(output)
    return request


def chat_request(output: OutputOptions | None = None, **config: Any) -> Any:
    return generation_service_pb2.ChatRequest(
        conversation=conversation(("user", "hi")),
        generation_config=generation_pb2.GenerationConfig(**config),
        output=output,
    )


def pieces_of(text: str) -> list[tuple[str, list[int]]]:
    """One token per byte; a character comes with its last."""
    data, sent, pieces = text.encode(), 0, []
    for count in range(1, len(data) + 1):
        known = data[:count].decode(errors="ignore")
        pieces.append((known[sent:], [data[count - 1]]))
        sent = len(known)
    return pieces


def interleaved(order: list[int], finish: str = "eos") -> Any:
    """A script that gives sequence i the text TEXTS[i]; ``order`` says whose token comes next."""

    def script(stream: FakeStream) -> None:
        left = [pieces_of(text) for text in TEXTS]
        for index in [*order, *(index for index in range(3) for _ in range(99))]:
            if left[index]:
                text, ids = left[index].pop(0)
                stream.push(text, ids, index=index)
                if not left[index]:
                    stream.push("", [IM_END], finish, index=index)

    return script


async def streamed(service: Service, request: Any) -> tuple[Any, dict[int, list[Any]], dict[int, Any]]:
    """Start, deltas and finishes by sequence; checks the order of events."""
    events = [event async for event in service.generation.GenerateStream(request)]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "start"
    assert kinds.count("start") == 1
    assert kinds[-1] == "finish"
    deltas: dict[int, list[Any]] = {}
    finishes: dict[int, Any] = {}
    for event in events[1:]:
        if event.HasField("delta"):
            assert event.delta.sequence_index not in finishes
            deltas.setdefault(event.delta.sequence_index, []).append(event.delta)
        else:
            assert event.finish.sequence_index not in finishes
            finishes[event.finish.sequence_index] = event.finish
    return events[0].start, deltas, finishes


def texts_of(deltas: dict[int, list[Any]]) -> dict[int, str]:
    return {index: "".join(delta.text for delta in own) for index, own in deltas.items()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(order=st.lists(st.integers(0, 2), max_size=40))
async def test_streams_in_any_interleaving_join_to_the_unary_texts(
    service: Service, engine: FakeEngine, order: list[int]
) -> None:
    engine.script = interleaved(order)
    request = request_of(do_sample=True, num_return_sequences=3, max_new_tokens=64)
    unary = await service.generation.Generate(request)
    assert [sequence.text for sequence in unary.sequences] == TEXTS
    start, deltas, finishes = await streamed(service, request)
    assert texts_of(deltas) == dict(enumerate(TEXTS))
    assert start.generation_config.num_return_sequences == 3
    assert sorted(finishes) == [0, 1, 2]
    for index, sequence in enumerate(unary.sequences):
        assert sequence.finish == finishes[index]
        assert [token for delta in deltas[index] for token in delta.token_ids] == list(sequence.token_ids)
        ends = [0, *(delta.text_range.end for delta in deltas[index])]
        assert [delta.text_range.start for delta in deltas[index]] == ends[:-1]
        assert ends[-1] == len(TEXTS[index].encode())


async def test_chat_gives_one_choice_per_sequence(service: Service, engine: FakeEngine) -> None:
    engine.script = interleaved([2, 0, 1])
    answer = await service.generation.Chat(chat_request(do_sample=True, num_return_sequences=3, max_new_tokens=64))
    assert [choice.message.content[0].text for choice in answer.choices] == TEXTS
    assert [choice.sequence.text for choice in answer.choices] == TEXTS
    assert [choice.sequence.finish.sequence_index for choice in answer.choices] == [0, 1, 2]


async def test_beams_come_by_unary_calls_alone(service: Service, engine: FakeEngine) -> None:
    def script(stream: FakeStream) -> None:
        for index, score in enumerate((-0.5, -0.75)):
            stream.finish_changes = {"sequence_score": score}
            stream.push(f"beam {index}", [97], "length", index=index)

    engine.script = script
    config = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5}
    config["early_stopping"] = generation_pb2.EARLY_STOPPING_NEVER
    answer = await service.generation.Generate(request_of(**config))
    assert [sequence.text for sequence in answer.sequences] == ["beam 0", "beam 1"]
    assert [sequence.finish.sequence_score for sequence in answer.sequences] == [-0.5, -0.75]
    (stream,) = engine.streams
    assert (stream.settings.num_beams, stream.settings.early_stopping) == (4, "never")
    for call in (
        service.generation.GenerateStream(request_of(**config)),
        service.generation.ChatStream(chat_request(**config)),
    ):
        failed = await failure(call)
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"generation_config.num_beams"})


async def test_more_sequences_than_allowed(start: Any) -> None:
    limits = LimitsConfig(max_return_sequences=2, max_beams=8)
    service = await start(FakeEngine(script=say("x")), service_config(limits, max_running=3))
    for config, field in (
        ({"num_return_sequences": 3, "do_sample": True}, "num_return_sequences"),
        ({"num_beams": 4}, "num_beams"),
    ):
        failed = await failure(service.generation.Generate(request_of(**config)))
        assert failed.fields == {f"generation_config.{field}"}
    await service.generation.Generate(request_of(num_beams=3, num_return_sequences=2))
    model = (await service.model.GetModel(model_service_pb2.GetModelRequest())).model
    assert (model.limits.max_return_sequences, model.limits.max_beams) == (2, 3)


async def test_a_sequence_without_a_finish_is_a_fault(service: Service, engine: FakeEngine) -> None:
    def script(stream: FakeStream) -> None:
        stream.push("x", [120], "eos", index=1)
        stream.finished = True
        stream._end()

    engine.script = script
    request = request_of(do_sample=True, num_return_sequences=2)
    assert (await failure(service.generation.Generate(request))).code is grpc.StatusCode.INTERNAL
    assert (await failure(service.generation.GenerateStream(request))).code is grpc.StatusCode.INTERNAL


# ---- what a request carries to the engine ---------------------------------------------------------------------------


async def test_negative_prompts(service: Service, engine: FakeEngine) -> None:
    engine.script = say("x")
    for negative, expected in (({"text": "bad"}, list(b"bad")), ({"token_ids": [7, 8]}, [7, 8])):
        request = request_of(guidance_scale=1.5)
        request.negative_prompt.CopyFrom(generation_service_pb2.Prompt(**negative))
        await service.generation.Generate(request)
        assert engine.streams[-1].negative_prompt_ids == expected
    chat = chat_request(guidance_scale=1.5)
    chat.negative_prompt.text = "bad"
    await service.generation.Chat(chat)
    assert engine.streams[-1].negative_prompt_ids == list(b"bad")
    await service.generation.Generate(request_of(guidance_scale=1.5))
    assert engine.streams[-1].negative_prompt_ids is None


@pytest.mark.parametrize(
    ("negative", "config", "field"),
    [
        ({"text": "bad"}, {}, "negative_prompt"),
        ({"text": "bad"}, {"guidance_scale": 1.0}, "negative_prompt"),
        ({}, {"guidance_scale": 2.0}, "negative_prompt"),
        ({"text": ""}, {"guidance_scale": 2.0}, "negative_prompt.text"),
        ({"token_ids": [-1]}, {"guidance_scale": 2.0}, "negative_prompt.token_ids[0]"),
        ({"text": "x" * 128}, {"guidance_scale": 2.0}, "negative_prompt.text"),
        ({"token_ids": [1] * 119}, {"guidance_scale": 2.0, "max_new_tokens": 10}, "negative_prompt"),
    ],
)
async def test_bad_negative_prompts(
    service: Service, engine: FakeEngine, negative: Any, config: Any, field: str
) -> None:
    request = request_of(**config)
    request.negative_prompt.CopyFrom(generation_service_pb2.Prompt(**negative))
    assert (await failure(service.generation.Generate(request))).fields == {field}
    chat = chat_request(**config)
    chat.negative_prompt.CopyFrom(generation_service_pb2.Prompt(**negative))
    assert (await failure(service.generation.Chat(chat))).fields == {field}
    assert not engine.streams


async def test_the_deadline_reaches_the_engine_when_asked_for(service: Service, engine: FakeEngine) -> None:
    engine.script = say("x")
    await service.generation.Generate(request_of(deadline_aware=True), timeout=50)
    await service.generation.Generate(request_of(), timeout=50)
    answer = await service.generation.Generate(request_of("<|im_start|>", deadline_aware=True))
    with_deadline, without, endless = engine.streams
    assert with_deadline.deadline is not None
    assert 40 < with_deadline.deadline - time.monotonic() < 51
    assert (without.deadline, endless.deadline) == (None, None)
    assert [warning.code for warning in answer.start.warnings] == ["deadline_aware_without_effect"]


async def test_a_draft_model_is_needed_for_its_tokens(start: Any) -> None:
    without = await start(FakeEngine(script=say("x")))
    failed = await failure(without.generation.Generate(request_of(num_assistant_tokens=4)))
    assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.details["ErrorInfo"].reason == "NO_DRAFT_MODEL"
    batch = generation_service_pb2.GenerateBatchRequest(
        prompts=[generation_service_pb2.Prompt(text="a")], generation_config={"num_assistant_tokens": 4}
    )
    assert (await failure(without.generation.GenerateBatch(batch))).code is grpc.StatusCode.FAILED_PRECONDITION
    await without.generation.Generate(request_of(num_assistant_tokens=0))
    with_draft = await start(FakeEngine(model_info(draft_model="small", num_assistant_tokens=5), script=say("x")))
    for config, expected in (({}, 5), ({"num_assistant_tokens": 3}, 3), ({"num_beams": 2}, 0)):
        answer = await with_draft.generation.Generate(request_of(**config))
        assert with_draft.engine.streams[-1].settings.num_assistant_tokens == expected
        assert answer.start.generation_config.num_assistant_tokens == expected


# ---- what an answer carries -----------------------------------------------------------------------------------------


async def test_logprobs_have_ranks(service: Service, engine: FakeEngine) -> None:
    engine.script = say("ab")
    answer = await service.generation.Generate(request_of(output=OutputOptions(logprobs=2)))
    for position in answer.sequences[0].logprobs:
        assert position.chosen.rank == 2
        assert [top.rank for top in position.top] == [1, 2]


async def test_prompt_logprobs_come_once(service: Service, engine: FakeEngine) -> None:
    engine.script = say("xy")
    output = OutputOptions(prompt_logprobs=0)
    request = request_of("abc", output, do_sample=True, num_return_sequences=2)
    answer = await service.generation.Generate(request)
    first, second = answer.sequences
    assert [position.chosen.token_id for position in first.prompt_logprobs] == list(b"bc")
    assert [position.chosen.logprob for position in first.prompt_logprobs] == [-1.0, -2.0]
    assert not second.prompt_logprobs
    _, deltas, _ = await streamed(service, request)
    assert deltas[0][0].prompt_logprobs == first.prompt_logprobs
    assert not any(delta.prompt_logprobs for own in (deltas[0][1:], deltas[1]) for delta in own)


@pytest.mark.parametrize("length", [8, 9])
async def test_a_prompt_that_is_too_long_to_be_scored_in_one_pass_is_refused(length: int) -> None:
    engine = FakeEngine(model_info(max_scored_prompt_tokens=8), script=say("x"))
    async with running(engine) as served:
        for output, is_refused in ((OutputOptions(prompt_logprobs=0), length > 8), (OutputOptions(), False)):
            call = served.generation.Generate(request_of("a" * length, output))
            if is_refused:
                failed = await failure(call)
                assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"output.prompt_logprobs"})
            else:
                assert len((await call).sequences) == 1


async def test_an_answer_without_text_still_has_its_prompt_logprobs(service: Service, engine: FakeEngine) -> None:
    engine.script = lambda stream: stream.push("", [], "stop_string")
    _, deltas, _ = await streamed(service, request_of("abc", OutputOptions(prompt_logprobs=0)))
    assert len(deltas[0][0].prompt_logprobs) == 2


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_long_scored_prompt_leaves_turns_to_other_calls(
    monkeypatch: pytest.MonkeyPatch, is_streaming: bool
) -> None:
    """Its log probabilities become messages over many turns of the event loop, none of which does much."""
    length, turn = 8192, 0
    done_in: Counter[int] = Counter()
    original = convert.position_logprobs_of

    def position_logprobs_of(token_ids: Any, logprobs: Any, text_of: Any) -> Any:
        done_in[turn] += len(token_ids)
        return original(token_ids, logprobs, text_of)

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(convert, "position_logprobs_of", position_logprobs_of)
    engine = FakeEngine(model_info(context_length=2 * length, kv_token_capacity=2 * length), script=say("x"))
    request = request_of(output=OutputOptions(prompt_logprobs=0))
    request.prompt.CopyFrom(generation_service_pb2.Prompt(token_ids=[97] * length))
    async with running(engine) as served:
        counting = asyncio.create_task(count_turns())
        if is_streaming:
            _, deltas, _ = await streamed(served, request)
            scored = deltas[0][0].prompt_logprobs
        else:
            scored = (await served.generation.Generate(request)).sequences[0].prompt_logprobs
        counting.cancel()
    assert [position.chosen.rank for position in scored] == list(range(1, length))
    assert max(done_in.values()) <= 1024


@pytest.mark.parametrize("prompt", [{"text": "prömpt "}, {"token_ids": list("prömpt ".encode())}])
async def test_echo(service: Service, engine: FakeEngine, prompt: Any) -> None:
    engine.script = interleaved([2, 1, 0])
    request = request_of(output=OutputOptions(echo=True), do_sample=True, num_return_sequences=3, max_new_tokens=64)
    request.prompt.CopyFrom(generation_service_pb2.Prompt(**prompt))
    answer = await service.generation.Generate(request)
    assert [sequence.text for sequence in answer.sequences] == [f"prömpt {text}" for text in TEXTS]
    _, deltas, _ = await streamed(service, request)
    for index, own in deltas.items():
        assert own[0].text.startswith("prömpt ")
        assert (own[0].text_range.start, own[-1].text_range.end) == (0, len(f"prömpt {TEXTS[index]}".encode()))
        assert "".join(delta.text for delta in own) == f"prömpt {TEXTS[index]}"


async def test_echo_of_an_empty_answer(service: Service, engine: FakeEngine) -> None:
    engine.script = lambda stream: stream.push("", [], "stop_string")
    _, deltas, _ = await streamed(service, request_of("abc", OutputOptions(echo=True)))
    assert texts_of(deltas) == {0: "abc"}


async def test_an_echoed_conversation_is_no_part_of_the_message(service: Service, engine: FakeEngine) -> None:
    engine.script = say("hello")
    answer = await service.generation.Chat(chat_request(OutputOptions(echo=True)))
    (choice,) = answer.choices
    assert choice.message.content[0].text == "hello"
    assert choice.sequence.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello"


def check_details(tokens: Any, token_ids: Any, text: str, offset: int) -> None:
    """The ranges tile the answer, and the bytes are its bytes."""
    assert [token.id for token in tokens] == list(token_ids)
    ends = [offset, *(token.text_range.end for token in tokens)]
    assert [token.text_range.start for token in tokens] == ends[:-1]
    assert ends[-1] == len(text.encode())
    data = text.encode()
    for token in tokens:
        assert data[token.text_range.start : token.text_range.end] == token.bytes


@pytest.mark.parametrize("echo", [False, True])
async def test_token_details(service: Service, engine: FakeEngine, echo: bool) -> None:
    engine.script = interleaved([0, 1, 1, 0, 2])
    output = OutputOptions(token_details=True, echo=echo)
    request = request_of("é", output, do_sample=True, num_return_sequences=3, max_new_tokens=64)
    offset = len("é".encode()) if echo else 0
    answer = await service.generation.Generate(request)
    for sequence in answer.sequences:
        check_details(sequence.tokens, sequence.token_ids, sequence.text, offset)
    assert answer.sequences[2].tokens[0].piece == "p"
    assert answer.sequences[0].tokens[2].piece == "Ã"
    _, deltas, _ = await streamed(service, request)
    for index, own in deltas.items():
        joined = [token for delta in own for token in delta.tokens]
        assert joined == list(answer.sequences[index].tokens)
        for delta in own:
            assert [token.id for token in delta.tokens] == list(delta.token_ids)


async def test_details_of_a_token_that_a_stop_string_cut(service: Service, engine: FakeEngine) -> None:
    # What a stop string may begin is held back; the token waits with it, and is cut where the text is.
    def script(stream: FakeStream) -> None:
        stream.push("a", [97])
        stream.push("b", [98])
        stream.push("", [69])
        stream.push("", [78])
        stream.push("", [68], "stop_string")

    engine.script = script
    _, deltas, _ = await streamed(service, request_of(output=OutputOptions(token_details=True, logprobs=0)))
    tokens = [token for delta in deltas[0] for token in delta.tokens]
    assert [(token.id, token.text_range.start, token.text_range.end) for token in tokens] == [
        (97, 0, 1),
        (98, 1, 2),
        (69, 2, 2),
        (78, 2, 2),
        (68, 2, 2),
    ]
    assert [token.bytes for token in tokens] == [b"a", b"b", b"E", b"N", b"D"]
    assert [len(delta.logprobs) for delta in deltas[0]] == [len(delta.token_ids) for delta in deltas[0]]


@pytest.mark.parametrize(("skip", "text", "end"), [(True, "x", 1), (False, "x<|im_end|>", 11)])
async def test_details_of_special_tokens(service: Service, engine: FakeEngine, skip: bool, text: str, end: int) -> None:
    def script(stream: FakeStream) -> None:
        stream.push("x", [120])
        stream.push(text[1:], [IM_END], "eos")

    engine.script = script
    output = OutputOptions(token_details=True, skip_special_tokens=skip)
    (sequence,) = (await service.generation.Generate(request_of(output=output))).sequences
    last = sequence.tokens[-1]
    assert (last.piece, last.bytes.decode(), last.text_range.end) == ("<|im_end|>", text[1:], end)


# ---- warnings -------------------------------------------------------------------------------------------------------


def warned(start: Any) -> list[str]:
    return [warning.code for warning in start.warnings]


@pytest.mark.parametrize(
    ("prompt", "codes"),
    [
        ({"text": "Once upon a time"}, ["raw_prompt"]),
        ({"text": "<|im_start|>user\nhi<|im_end|>\n"}, []),
        ({"text": "hi", "parse_special_tokens": False}, ["raw_prompt"]),
        ({"text": "<|im_start|>", "parse_special_tokens": False}, ["raw_prompt"]),
        ({"token_ids": [104, 105]}, ["raw_prompt"]),
        ({"token_ids": [256, 105]}, []),
    ],
)
async def test_a_raw_prompt_to_a_chat_model(service: Service, engine: FakeEngine, prompt: Any, codes: Any) -> None:
    engine.script = say("x")
    request = request_of()
    request.prompt.CopyFrom(generation_service_pb2.Prompt(**prompt))
    assert warned((await service.generation.Generate(request)).start) == codes
    batch = generation_service_pb2.GenerateBatchRequest(prompts=[request.prompt])
    assert warned((await service.generation.GenerateBatch(batch)).items[0].response.start) == codes
    start, _, _ = await streamed(service, request)
    assert warned(start) == codes


PLAIN_TEMPLATE = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}"
BOS_TEMPLATE = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


@pytest.mark.parametrize(
    ("changes", "text", "codes"),
    [
        ({"chat_templates": {}}, "hi", []),
        ({"chat_templates": {"default": "{{ raise_exception('never') }}"}}, "hi", []),
        ({"chat_templates": {"default": "{{ messages[0].content }}"}}, "hi", []),
        ({"chat_templates": {"default": PLAIN_TEMPLATE}}, "hi", ["raw_prompt"]),
        ({"chat_templates": {"default": PLAIN_TEMPLATE}}, "### user:\nhi", []),
        (
            {
                "chat_templates": {"default": BOS_TEMPLATE},
                "special_tokens": {"bos_token": "<|im_start|>"},
                "bos_token_id": 256,
            },
            "<|im_start|>hi",
            ["raw_prompt"],
        ),
        (
            {
                "chat_templates": {"default": BOS_TEMPLATE},
                "special_tokens": {"bos_token": "<|im_start|>"},
                "bos_token_id": 256,
            },
            "<|im_start|>[INST] hi [/INST]",
            [],
        ),
    ],
)
async def test_markers_are_the_template_s_own(start: Any, changes: Any, text: str, codes: list[str]) -> None:
    service = await start(FakeEngine(model_info(**changes), script=say("x")))
    assert warned((await service.generation.Generate(request_of(text))).start) == codes


async def test_chat_is_never_raw(service: Service, engine: FakeEngine) -> None:
    engine.script = say("x")
    assert warned((await service.generation.Chat(chat_request())).start) == []


def info_of_words(**changes: Any) -> ModelInfo:
    """A tokenizer that joins a space with the word behind it, as most do."""
    file = json.loads(tokenizer_json())
    file["model"]["vocab"] |= {"Ġt": 258, "th": 259}
    file["model"]["merges"] = [["Ġ", "t"], ["t", "h"]]
    return model_info(tokenizer_json=json.dumps(file), chat_templates={}, **changes)


@pytest.mark.parametrize(
    ("prompt", "config", "codes"),
    [
        ({"text": "Hello "}, {}, ["prompt_ends_in_whitespace"]),
        ({"text": "Hello"}, {}, []),
        ({"text": "Hello\n"}, {}, []),
        ({"token_ids": list(b"Hello ")}, {}, []),
        ({"text": "Hello "}, {"token_healing": True}, []),
    ],
)
async def test_whitespace_that_belongs_to_the_next_word(
    start: Any, prompt: Any, config: dict[str, Any], codes: list[str]
) -> None:
    service = await start(FakeEngine(info_of_words(), script=say("x")))
    request = request_of(**config)
    request.prompt.CopyFrom(generation_service_pb2.Prompt(**prompt))
    assert warned((await service.generation.Generate(request)).start) == codes


async def test_whitespace_that_is_a_token_of_its_own(start: Any) -> None:
    service = await start(FakeEngine(model_info(chat_templates={}), script=say("x")))
    assert warned((await service.generation.Generate(request_of("Hello "))).start) == []


@pytest.mark.parametrize(
    ("reason", "probability", "codes"),
    [
        ("length", 1e-7, ["eos_never_likely"]),
        ("length", 1e-5, []),
        ("length", None, []),
        ("eos", 1e-7, []),
    ],
)
async def test_an_end_that_was_never_likely(
    service: Service, engine: FakeEngine, reason: str, probability: float | None, codes: list[str]
) -> None:
    def script(stream: FakeStream) -> None:
        stream.finish_changes = {"eos_probability_max": probability}
        stream.answer("x", reason)

    engine.script = script
    request = request_of(max_new_tokens=5)
    finish = (await service.generation.Generate(request)).sequences[0].finish
    assert [warning.code for warning in finish.warnings] == codes
    _, _, finishes = await streamed(service, request)
    assert finishes[0].warnings == finish.warnings


async def test_guidance_on_a_server_with_one_row_is_refused_by_name(start: Any) -> None:
    service: Service = await start(FakeEngine(script=say("x")), service_config(max_running=1))
    for call in (service.generation.Generate, service.generation.GenerateStream):
        failed = await failure(call(request_of(guidance_scale=2.0)))
        (violation,) = failed.details["BadRequest"].field_violations
        assert violation.field == "generation_config.guidance_scale"
        assert "max_running is 1" in violation.description
    await service.generation.Generate(request_of(guidance_scale=1.0))
