"""Every kind of bad request is INVALID_ARGUMENT that names the field, before the engine hears of it."""

import json
import math
from typing import Any

import grpc
import pytest
from fakes import VOCAB_SIZE, FakeEngine, model_info, say, tokenizer_json
from google.protobuf.json_format import ParseDict
from harness import service_config
from test_statuses import failure

from tokenwire.config import LimitsConfig
from tokenwire.v1 import generation_service_pb2 as pb

LIMITS = LimitsConfig(
    max_stop_strings=3,
    max_stop_string_bytes=8,
    max_token_ids=5,
    max_token_sequences=3,
    max_logit_bias=4,
    max_return_sequences=4,
    max_beams=3,
    max_messages=6,
    max_tools=2,
)
CONTEXT = 128
NAN, INF = math.nan, math.inf
USER = {"role": "user", "content": [{"text": "hi"}]}


def config(**fields: Any) -> dict[str, Any]:
    return {"prompt": {"text": "hi"}, "generation_config": fields}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"conversation": {"messages": list(messages), **fields}}


def calling(name: str = "f", **call: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"name": name, **call}]}


GC = "generation_config"
CONV = "conversation"
MESSAGE = "conversation.messages[0]"

GENERATE: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"prompt"}),
    ({"prompt": {}}, {"prompt"}),
    ({"prompt": {"text": ""}}, {"prompt.text"}),
    ({"prompt": {"text": "a", "token_ids": [1]}}, {"prompt"}),
    ({"prompt": {"text": "x" * CONTEXT}}, {"prompt.text"}),
    ({"prompt": {"text": "é" * (CONTEXT // 2)}}, {"prompt.text"}),
    ({"prompt": {"text": "x" * 100_000}}, {"prompt.text"}),
    ({"prompt": {"text": "🙂" * 100_000}}, {"prompt.text"}),
    ({"prompt": {"token_ids": [-1]}}, {"prompt.token_ids[0]"}),
    ({"prompt": {"token_ids": [5, VOCAB_SIZE]}}, {"prompt.token_ids[1]"}),
    ({"prompt": {"token_ids": [-5, 1, 2**31 - 1]}}, {"prompt.token_ids[0]", "prompt.token_ids[2]"}),
    ({"prompt": {"token_ids": [1] * CONTEXT}}, {"prompt.token_ids"}),
    ({"prompt": {"token_ids": [1], "add_special_tokens": True}}, {"prompt.add_special_tokens"}),
    ({"prompt": {"token_ids": [1], "parse_special_tokens": False}}, {"prompt.parse_special_tokens"}),
    (config(max_new_tokens=0), {f"{GC}.max_new_tokens"}),
    (config(max_new_tokens=-5), {f"{GC}.max_new_tokens"}),
    (config(max_new_tokens=CONTEXT), {f"{GC}.max_new_tokens"}),
    (config(max_new_tokens=CONTEXT - 1), {f"{GC}.max_new_tokens"}),
    (config(max_new_tokens=2**31 - 1), {f"{GC}.max_new_tokens"}),
    (config(max_length=0), {f"{GC}.max_length"}),
    (config(max_length=-1), {f"{GC}.max_length"}),
    (config(max_length=2), {f"{GC}.max_length"}),
    (config(max_length=CONTEXT + 1), {f"{GC}.max_length"}),
    (config(min_new_tokens=-1), {f"{GC}.min_new_tokens"}),
    (config(min_new_tokens=21), {f"{GC}.min_new_tokens"}),
    (config(min_new_tokens=6, max_new_tokens=5), {f"{GC}.min_new_tokens"}),
    *((config(temperature=value), {f"{GC}.temperature"}) for value in (0, -1, NAN, INF, -INF)),
    *((config(top_k=value), {f"{GC}.top_k"}) for value in (-1, -(2**31), VOCAB_SIZE + 1)),
    *((config(top_p=value), {f"{GC}.top_p"}) for value in (0, -0.1, 1.01, NAN, INF)),
    *((config(min_p=value), {f"{GC}.min_p"}) for value in (-0.1, 1.5, NAN)),
    *((config(typical_p=value), {f"{GC}.typical_p"}) for value in (0, 2, NAN)),
    *((config(repetition_penalty=value), {f"{GC}.repetition_penalty"}) for value in (0, -1, NAN, INF)),
    *((config(presence_penalty=value), {f"{GC}.presence_penalty"}) for value in (-2.5, 2.5, NAN, INF)),
    *((config(frequency_penalty=value), {f"{GC}.frequency_penalty"}) for value in (-2.5, 2.5, NAN, -INF)),
    *((config(logit_bias={1: value}), {f"{GC}.logit_bias[1]"}) for value in (NAN, INF, 101, -101)),
    *((config(logit_bias={key: 1}), {f"{GC}.logit_bias[{key}]"}) for key in (-1, VOCAB_SIZE)),
    (config(logit_bias=dict.fromkeys(range(5), 0)), {f"{GC}.logit_bias"}),
    (config(stop_strings={"values": ["a", "b", "c", "d"]}), {f"{GC}.stop_strings.values"}),
    (config(stop_strings={"values": ["a", ""]}), {f"{GC}.stop_strings.values[1]"}),
    (config(stop_strings={"values": ["123456789"]}), {f"{GC}.stop_strings.values[0]"}),
    (config(stop_strings={"values": ["éééé", "ééééé"]}), {f"{GC}.stop_strings.values[1]"}),
    (config(stop_token_ids=[1] * 6), {f"{GC}.stop_token_ids"}),
    (config(stop_token_ids=[-1]), {f"{GC}.stop_token_ids[0]"}),
    (config(stop_token_ids=[VOCAB_SIZE]), {f"{GC}.stop_token_ids[0]"}),
    (config(eos_token_id={"ids": [1] * 6}), {f"{GC}.eos_token_id.ids"}),
    (config(eos_token_id={"ids": [-1]}), {f"{GC}.eos_token_id.ids[0]"}),
    (config(eos_token_id={"ids": [VOCAB_SIZE]}), {f"{GC}.eos_token_id.ids[0]"}),
    (config(suppress_tokens={"ids": [1] * 6}), {f"{GC}.suppress_tokens.ids"}),
    (config(suppress_tokens={"ids": [VOCAB_SIZE]}), {f"{GC}.suppress_tokens.ids[0]"}),
    (config(do_sample=False, temperature=0.5), {f"{GC}.temperature"}),
    (config(do_sample=False, top_k=5, top_p=0.5), {f"{GC}.top_k", f"{GC}.top_p"}),
    *((config(max_time=value), {f"{GC}.max_time"}) for value in (0, -1, NAN, INF, -INF)),
    *((config(min_length=value), {f"{GC}.min_length"}) for value in (-1, CONTEXT + 1, 2**31 - 1)),
    *((config(guidance_scale=value), {f"{GC}.guidance_scale"}) for value in (-101, 101, NAN, INF)),
    *((config(num_return_sequences=n, do_sample=True), {f"{GC}.num_return_sequences"}) for n in (0, -1, 5, 2**31 - 1)),
    *((config(num_beams=n), {f"{GC}.num_beams"}) for n in (0, -1)),
    *((config(length_penalty=value), {f"{GC}.length_penalty"}) for value in (-11, 11, NAN, INF)),
    *((config(early_stopping=value), {f"{GC}.early_stopping"}) for value in (-1, 4, 99)),
    *((config(prompt_lookup_num_tokens=n), {f"{GC}.prompt_lookup_num_tokens"}) for n in (-1, 65)),
    *((config(max_matching_ngram_size=n), {f"{GC}.max_matching_ngram_size"}) for n in (0, -1, 17)),
    *((config(num_assistant_tokens=n), {f"{GC}.num_assistant_tokens"}) for n in (-1, 65)),
    *((config(no_repeat_ngram_size=n), {f"{GC}.no_repeat_ngram_size"}) for n in (-1, CONTEXT + 1)),
    *((config(encoder_no_repeat_ngram_size=n), {f"{GC}.encoder_no_repeat_ngram_size"}) for n in (-1, CONTEXT + 1)),
    *(
        (
            config(exponential_decay_length_penalty={"start_index": n, "decay_factor": 1.5}),
            {f"{GC}.exponential_decay_length_penalty.start_index"},
        )
        for n in (-1, CONTEXT + 1)
    ),
    (config(watermarking_config={}), {f"{GC}.watermarking_config"}),
    (
        config(watermarking_config={"green_list": {"seeding_scheme": 3}}),
        {f"{GC}.watermarking_config.green_list.seeding_scheme"},
    ),
    *(
        (config(**{name: {"ids": [1] * 6}}), {f"{GC}.{name}.ids"})
        for name in ("begin_suppress_tokens", "forced_eos_token_id", "allowed_token_ids")
    ),
    (config(allowed_token_ids={}), {f"{GC}.allowed_token_ids.ids"}),
    (config(bad_words_ids={"sequences": [{"ids": [1]}] * 4}), {f"{GC}.bad_words_ids.sequences"}),
    (config(bad_words_ids={"sequences": [{"ids": [1, 2, 3]}] * 2}), {f"{GC}.bad_words_ids.sequences"}),
    (config(sequence_bias={"entries": [{"ids": [n]} for n in range(4)]}), {f"{GC}.sequence_bias.entries"}),
    (config(num_return_sequences=2), {f"{GC}.num_return_sequences"}),
    (config(do_sample=False, top_h=0.5, eta_cutoff=0.1), {f"{GC}.top_h", f"{GC}.eta_cutoff"}),
    (config(do_sample=False, epsilon_cutoff=0.1), {f"{GC}.epsilon_cutoff"}),
    (config(prompt_lookup_num_tokens=3, guidance_scale=2), {f"{GC}.prompt_lookup_num_tokens"}),
    (config(prompt_lookup_num_tokens=3, num_assistant_tokens=3), {f"{GC}.num_assistant_tokens"}),
    (config(forced_bos_token_id=5, suppress_tokens={"ids": [5]}), {f"{GC}.forced_bos_token_id"}),
    (
        config(forced_eos_token_id={"ids": [5, 6]}, suppress_tokens={"ids": [5, 6]}),
        {f"{GC}.forced_eos_token_id.ids"},
    ),
    ({"prompt": {"token_ids": [1]}, GC: {"token_healing": True}}, {f"{GC}.token_healing"}),
    ({**config(), "negative_prompt": {"text": "x"}}, {"negative_prompt"}),
    ({**config(guidance_scale=2), "negative_prompt": {}}, {"negative_prompt"}),
    ({**config(), "output": {"prompt_logprobs": -1}}, {"output.prompt_logprobs"}),
    ({**config(), "output": {"prompt_logprobs": 21}}, {"output.prompt_logprobs"}),
    (
        {
            **config(max_time=0, length_penalty=NAN, early_stopping=7, watermarking_config={}, num_beams=0),
            "output": {"prompt_logprobs": 21},
        },
        {
            f"{GC}.max_time",
            f"{GC}.length_penalty",
            f"{GC}.early_stopping",
            f"{GC}.watermarking_config",
            f"{GC}.num_beams",
            "output.prompt_logprobs",
        },
    ),
    ({**config(), "output": {"logprobs": -1}}, {"output.logprobs"}),
    ({**config(), "output": {"logprobs": 21}}, {"output.logprobs"}),
    (
        {
            "prompt": {"text": ""},
            "generation_config": {"top_p": 7, "temperature": NAN, "stop_strings": {"values": [""]}, "top_k": -3},
            "output": {"logprobs": 99},
        },
        {
            "prompt.text",
            f"{GC}.top_p",
            f"{GC}.temperature",
            f"{GC}.stop_strings.values[0]",
            f"{GC}.top_k",
            "output.logprobs",
        },
    ),
]

CHAT: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {CONV}),
    (chat(), {f"{CONV}.messages"}),
    (chat(*[USER] * 7), {f"{CONV}.messages"}),
    (chat({"role": "user"}), {f"{MESSAGE}.content"}),
    (chat({"role": "user", "content": [{}]}), {f"{MESSAGE}.content[0]"}),
    *((chat({**USER, "role": role}), {f"{MESSAGE}.role"}) for role in ("", "User", "bot", "user ", "system\n", "役")),
    (chat(USER, {**USER, "role": "x"}, {**USER, "role": "y"}), {f"{CONV}.messages[{n}].role" for n in (1, 2)}),
    (chat({**USER, "tool_calls": [{"name": "f"}]}), {f"{MESSAGE}.tool_calls"}),
    (chat({**USER, "tool_call_id": "1"}), {f"{MESSAGE}.tool_call_id"}),
    (chat({**USER, "reasoning_content": "hm"}), {f"{MESSAGE}.reasoning_content"}),
    (chat(calling("")), {f"{MESSAGE}.tool_calls[0].name"}),
    *(
        (chat(calling(arguments_json=text)), {f"{MESSAGE}.tool_calls[0].arguments_json"})
        for text in ("{", "[]", "1", '"x"', "null", "{'a': 1}", '{"a": NaN}', '{"a": 1} x')
    ),
    (
        chat(calling(arguments_json="[" * 100_000)),
        {f"{CONV}.messages", f"{MESSAGE}.tool_calls[0].arguments_json"},
    ),
    (chat(USER, tools=[{"name": ""}]), {f"{CONV}.tools[0].name"}),
    (chat(USER, tools=[{"name": "f", "parameters_json": "[]"}]), {f"{CONV}.tools[0].parameters_json"}),
    (chat(USER, tools=[{"name": "f"}] * 3), {f"{CONV}.tools"}),
    (
        chat(USER, add_generation_prompt=True, continue_final_message=True),
        {f"{CONV}.continue_final_message"},
    ),
    (chat(calling(), continue_final_message=True), {f"{MESSAGE}.content"}),
    (chat({"role": "user", "content": [{"text": "x" * CONTEXT}]}), {CONV}),
    (chat({"role": "user", "content": [{"text": "x" * 10**6}]}), {f"{CONV}.messages"}),
    (chat({"role": "user", "content": [{"text": "refuse me"}]}), {CONV}),
    ({**chat({"role": "x"}), GC: {"top_p": 0}}, {f"{MESSAGE}.role", f"{MESSAGE}.content", f"{GC}.top_p"}),
    ({**chat(USER), GC: {"max_new_tokens": CONTEXT - 5}}, {f"{GC}.max_new_tokens"}),
    ({**chat(USER), "output": {"logprobs": 21}}, {"output.logprobs"}),
]

CASES = [
    (method, request, fields) for method, cases in (("Generate", GENERATE), ("Chat", CHAT)) for request, fields in cases
]


def parse(request: dict[str, Any], kind: Any) -> Any:
    # JSON spells them as strings.
    def spell(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): spell(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spell(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
        return value

    return ParseDict(spell(request), kind())


async def test_every_bad_request_names_its_fields(start: Any) -> None:
    service = await start(FakeEngine(script=say("x")), service_config(LIMITS))
    wrong = []
    for method, fields_given, expected in CASES:
        request = parse(fields_given, pb.GenerateRequest if method == "Generate" else pb.ChatRequest)
        for name in (method, f"{method}Stream"):
            failed = await failure(getattr(service.generation, name)(request))
            if failed.code is not grpc.StatusCode.INVALID_ARGUMENT or failed.fields != expected:
                found = failed.fields if "BadRequest" in failed.details else failed.message
                wrong.append(f"{name} {str(fields_given)[:120]}: {failed.code} {found}, expected {expected}")
    assert not wrong, "\n".join(wrong)
    assert not service.engine.streams


async def test_beams_beyond_the_limit(start: Any) -> None:
    service = await start(FakeEngine(script=say("x")), service_config(LIMITS))
    for number in (4, 2**31 - 1):
        failed = await failure(service.generation.Generate(parse(config(num_beams=number), pb.GenerateRequest)))
        assert failed.fields == {f"{GC}.num_beams"}
    await service.generation.Generate(parse(config(num_beams=3), pb.GenerateRequest))
    scored = {**config(num_beams=2), "output": {"logprobs": 0}}
    assert (await failure(service.generation.Generate(parse(scored, pb.GenerateRequest)))).fields == {"output.logprobs"}
    explained = {**config(num_beams=2), "output": {"logprobs": 0, "explain": True}}
    refused = {"output.logprobs", "output.explain"}
    assert (await failure(service.generation.Generate(parse(explained, pb.GenerateRequest)))).fields == refused
    more_sequences = config(num_return_sequences=3, num_beams=2, do_sample=True)
    failed = await failure(service.generation.Generate(parse(more_sequences, pb.GenerateRequest)))
    assert failed.fields == {f"{GC}.num_return_sequences"}


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 150


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"prompt": {"token_ids": [1] * 64}}, "prompt.token_ids"),
        ({"prompt": {"text": "x" * 64}}, "prompt.text"),
        ({"prompt": {"text": "x" * 60}, GC: {"max_new_tokens": 5}}, f"{GC}.max_new_tokens"),
    ],
)
async def test_what_the_kv_cache_can_never_hold(start: Any, request_: dict[str, Any], field: str) -> None:
    service = await start(FakeEngine(model_info(kv_token_capacity=64)))
    failed = await failure(service.generation.Generate(parse(request_, pb.GenerateRequest)))
    assert failed.fields == {field}


ACCEPTED: list[dict[str, Any]] = [
    {"prompt": {"text": "x" * (CONTEXT - 1)}},
    {"prompt": {"token_ids": [1] * (CONTEXT - 1)}},
    config(max_new_tokens=CONTEXT - 2),
    config(max_new_tokens=1, min_new_tokens=1),
    config(max_length=CONTEXT),
    config(max_length=3),
    config(temperature=0.001, top_k=0, top_p=1, min_p=0, typical_p=1),
    config(top_k=VOCAB_SIZE, min_p=1, repetition_penalty=1000, presence_penalty=-2, frequency_penalty=2),
    config(do_sample=False, seed=-(2**63)),
    config(logit_bias={0: -100, VOCAB_SIZE - 1: 100}),
    config(stop_strings={"values": ["12345678", "a", "b"]}, eos_token_id={}, suppress_tokens={"ids": [0]}),
    config(stop_strings={}),
    config(max_time=1e-9, min_length=CONTEXT, guidance_scale=-100, length_penalty=-10),
    config(min_length=0, guidance_scale=100, length_penalty=10, early_stopping=3, max_matching_ngram_size=16),
    config(num_return_sequences=4, do_sample=True, max_matching_ngram_size=1),
    config(prompt_lookup_num_tokens=64, num_assistant_tokens=0, no_repeat_ngram_size=CONTEXT),
    config(exponential_decay_length_penalty={"start_index": CONTEXT, "decay_factor": 1.5}),
    config(bad_words_ids={"sequences": [{"ids": [1]}] * 3}, sequence_bias={}, begin_suppress_tokens={}),
    config(forced_eos_token_id={}, encoder_no_repeat_ngram_size=0, watermarking_config={"green_list": {}}),
    {**config(guidance_scale=2), "negative_prompt": {"token_ids": [1]}},
    {**config(), "output": {"prompt_logprobs": 20, "echo": True, "token_details": True}},
    {**config(), "output": {"logprobs": 0}},
    {**config(), "output": {"explain": True}},
    {**config(num_beams=2), "output": {"explain": False}},
    {**config(), "output": {"logprobs": 20, "processed_logprobs": True}},
]

ACCEPTED_CHATS: list[dict[str, Any]] = [
    chat(USER),
    chat({**USER, "role": "developer", "name": "n"}),
    chat(USER, calling(arguments_json='{"a": [1, null]}', id="1"), {**USER, "role": "tool", "tool_call_id": "1"}),
    chat(USER, {**USER, "role": "assistant", "reasoning_content": "hm"}, continue_final_message=True),
    chat(USER, add_generation_prompt=False, tools=[{"name": "f", "parameters_json": "{}"}]),
]


async def test_values_at_the_edges_are_accepted(start: Any) -> None:
    service = await start(FakeEngine(script=say("x", "length")), service_config(LIMITS))
    for request in ACCEPTED:
        await service.generation.Generate(parse(request, pb.GenerateRequest))
    for request in ACCEPTED_CHATS:
        await service.generation.Chat(parse(request, pb.ChatRequest))


async def test_a_long_text_of_few_tokens_is_accepted(start: Any) -> None:
    collapse = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
    collapsing = json.dumps(json.loads(tokenizer_json()) | {"normalizer": collapse})
    service = await start(FakeEngine(model_info(tokenizer_json=collapsing), script=say("x")))
    await service.generation.Generate(parse({"prompt": {"text": "a" + " " * 60_000 + "b"}}, pb.GenerateRequest))
    assert [bytes(stream.prompt_ids) for stream in service.engine.streams] == [b"a b"]


@pytest.mark.parametrize(
    ("request_fields", "said"),
    [
        ({}, "prompt: must be set, got unset"),
        ({"prompt": {}}, "got neither"),
        ({"prompt": {"text": "x", "token_ids": [1]}}, "got both"),
        ({"prompt": {"token_ids": [1], "add_special_tokens": False}}, "must be unset with token_ids, got false"),
        (config(allowed_token_ids={"ids": [4, 5]}, suppress_tokens={"ids": [4, 5]}), "got [4, 5]"),
        (config(token_healing=True, num_beams=2), "got true"),
    ],
)
async def test_refusals_show_values_in_the_terms_of_the_protocol(
    service: Any, request_fields: dict[str, Any], said: str
) -> None:
    failed = await failure(service.generation.Generate(ParseDict(request_fields, pb.GenerateRequest())))
    assert said in failed.message
    for word in ("None", "True", "False", "(", "'"):
        assert word not in failed.message.partition("got ")[2]
