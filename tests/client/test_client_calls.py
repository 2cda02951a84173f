"""Every method of both faces of the client, over a real connection to the fake server."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from fake_server import MODEL, REQUEST_ID, FakeServer, words
from google.protobuf.json_format import MessageToDict

from tokenwire.client import (
    AsyncClient,
    ChatMessage,
    Client,
    DeadlineExceeded,
    FinishReason,
    GreenListWatermark,
    InvalidArgument,
    SynthIdTextWatermark,
    ToolCall,
    requests,
    responses,
)

Call = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["sync", "async"])
async def call(request: pytest.FixtureRequest, server: FakeServer) -> AsyncIterator[Call]:
    """``await call("chat", …)`` on either face."""
    if request.param == "async":
        async with AsyncClient(server.target) as client:
            yield lambda name, *args, **options: getattr(client, name)(*args, **options)
    else:
        with Client(server.target) as blocking:
            yield lambda name, *args, **options: asyncio.to_thread(getattr(blocking, name), *args, **options)


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


async def test_generate_returns_the_whole_answer(call: Call, server: FakeServer) -> None:
    answer = await call("generate", "hello big world", max_new_tokens=5, logprobs=1)
    assert answer.text == "echo: hello big world"
    assert answer.token_ids == (100, 101, 102, 103)
    assert answer.finish_reason is FinishReason.STOP_STRING
    assert answer.finish.stop_string == "END"
    assert answer.finish.stop_token_id is None
    assert (answer.usage.prompt_token_count, answer.usage.completion_token_count) == (3, 4)
    assert (answer.timings.queue_ms, answer.timings.prefill_ms, answer.timings.decode_ms) == (1, 2, 4)
    assert [each.code for each in answer.warnings] == ["raw_prompt", "default_length_cut"]
    assert answer.request_id == REQUEST_ID
    assert answer.start.generation_config == {"max_new_tokens": 5, "seed": 11}
    assert [position.chosen.text for position in answer.logprobs] == words(answer.text)
    assert answer.logprobs[0].top[0].logprob == -0.5
    (request,) = server.requests
    assert MessageToDict(request.prompt) == {"text": "hello big world"}


async def test_token_ids_are_sent_as_they_are(call: Call, server: FakeServer) -> None:
    assert (await call("generate", [1, 2, 3])).text == "echo: [1, 2, 3]"
    assert not server.requests[0].prompt.HasField("text")


async def test_a_batch_has_one_outcome_per_prompt(call: Call) -> None:
    first, second, third = await call("generate_batch", ["one", "", [4]], max_new_tokens=5)
    assert (first.text, third.text) == ("echo: one", "echo: [4]")
    assert isinstance(second, InvalidArgument)
    assert "must not be empty" in str(second)


async def test_chat_returns_a_message_for_the_next_turn(call: Call, server: FakeServer) -> None:
    answer = await call("chat", [{"role": "system", "content": "Be brief."}, ChatMessage("user", "hello")])
    assert answer.text == "you said: hello"
    assert answer.message == ChatMessage("assistant", "you said: hello")
    await call("chat", [ChatMessage("user", "hello"), answer.message, ChatMessage("user", "again")])
    assert [each.role for each in server.requests[1].conversation.messages] == ["user", "assistant", "user"]


async def test_a_string_is_a_message_of_the_user(call: Call, server: FakeServer) -> None:
    await call("chat", "hello")
    assert MessageToDict(server.requests[0].conversation) == {
        "messages": [{"role": "user", "content": [{"text": "hello"}]}]
    }


async def test_the_tokenizer_calls(call: Call) -> None:
    tokens = await call("tokenize", "größe zählt", add_special_tokens=False)
    assert [(each.piece, each.range) for each in tokens] == [("größe", (0, 7)), (" zählt", (7, 14))]
    assert await call("detokenize", [5, 6]) == "5-6"
    rendered = await call("render_chat", [{"role": "user", "content": "hi"}])
    assert (rendered.text, rendered.token_ids) == ("<user>hi", (1, 2))


async def test_model_describes_what_is_served(call: Call) -> None:
    model = await call("model")
    assert (model.id, model.quantization, model.device, model.forward_path) == ("tiny", "nf4", "cpu", "paged")
    assert model.limits.max_logprobs == MODEL.limits.max_logprobs
    assert model.default_generation_config == {"temperature": 0.5}
    assert model.special_tokens[0].text == "</s>"
    assert model.unapplied_defaults == ("num_beams=2",)


async def test_call_options_reach_the_server(call: Call, server: FakeServer) -> None:
    await call("generate", "x", request_id="mine", metadata={"tenant": "a"}, timeout=60, model="tiny")
    assert server.metadata[0]["x-request-id"] == "mine"
    assert server.metadata[0]["tenant"] == "a"
    assert server.requests[0].model == "tiny"
    time_left = server.time_left[0]
    assert time_left is not None
    assert 50 < time_left < 61  # gRPC rounds it up on the wire


def test_settings_of_the_client_hold_for_every_call(server: FakeServer) -> None:
    with Client(server.target, timeout=60, metadata={"authorization": "Bearer x", "tenant": "a"}) as client:
        client.model(metadata={"tenant": "b"})
        client.model(timeout=None)
    assert [(each["authorization"], each["tenant"]) for each in server.metadata] == [
        ("Bearer x", "b"),
        ("Bearer x", "a"),
    ]
    assert server.time_left[0] is not None
    # gRPC reports an absent deadline as a time no call will see.
    assert server.time_left[1] is None or server.time_left[1] > 10**6


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"max_new_tokens": 3, "max_length": 9, "min_new_tokens": 0},
        {"maxNewTokens": 3, "maxLength": 9, "minNewTokens": 0},
    ),
    ({"do_sample": False}, {"doSample": False}),
    ({"temperature": 0.5, "top_k": 0, "top_p": 0.25}, {"temperature": 0.5, "topK": 0, "topP": 0.25}),
    ({"min_p": 0.0, "typical_p": 0.5}, {"minP": 0.0, "typicalP": 0.5}),
    ({"seed": -(2**63)}, {"seed": str(-(2**63))}),
    ({"stop_strings": "END"}, {"stopStrings": {"values": ["END"]}}),
    ({"stop_strings": ["a", "b"]}, {"stopStrings": {"values": ["a", "b"]}}),
    ({"stop_strings": []}, {"stopStrings": {}}),
    ({"eos_token_id": 2}, {"eosTokenId": {"ids": [2]}}),
    ({"eos_token_id": []}, {"eosTokenId": {}}),
    ({"stop_token_ids": [1, 2], "suppress_tokens": [3]}, {"stopTokenIds": [1, 2], "suppressTokens": {"ids": [3]}}),
    ({"include_stop_string": True}, {"includeStopString": True}),
    ({"repetition_penalty": 1.5, "presence_penalty": -1}, {"repetitionPenalty": 1.5, "presencePenalty": -1}),
    ({"frequency_penalty": 2, "logit_bias": {5: -1.5}}, {"frequencyPenalty": 2, "logitBias": {"5": -1.5}}),
    ({"temperature": None, "stop_strings": None}, {}),
    (
        {"min_length": 0, "max_time": 0.5, "deadline_aware": True},
        {"minLength": 0, "maxTime": 0.5, "deadlineAware": True},
    ),
    ({"top_h": 0.5, "epsilon_cutoff": 0.0, "eta_cutoff": 0.25}, {"topH": 0.5, "epsilonCutoff": 0.0, "etaCutoff": 0.25}),
    (
        {"renormalize_logits": False, "remove_invalid_values": True},
        {"renormalizeLogits": False, "removeInvalidValues": True},
    ),
    (
        {"no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 2},
        {"noRepeatNgramSize": 3, "encoderNoRepeatNgramSize": 2},
    ),
    ({"encoder_repetition_penalty": 1.5, "guidance_scale": -2}, {"encoderRepetitionPenalty": 1.5, "guidanceScale": -2}),
    (
        {"begin_suppress_tokens": [3], "allowed_token_ids": []},
        {"beginSuppressTokens": {"ids": [3]}, "allowedTokenIds": {}},
    ),
    ({"forced_bos_token_id": 0, "forced_eos_token_id": 2}, {"forcedBosTokenId": 0, "forcedEosTokenId": {"ids": [2]}}),
    ({"bad_words_ids": [[1], (2, 3)]}, {"badWordsIds": {"sequences": [{"ids": [1]}, {"ids": [2, 3]}]}}),
    ({"bad_words_ids": []}, {"badWordsIds": {}}),
    ({"sequence_bias": {(1, 2): -1.5}}, {"sequenceBias": {"entries": [{"ids": [1, 2], "bias": -1.5}]}}),
    ({"sequence_bias": [([1, 2], -1.5)]}, {"sequenceBias": {"entries": [{"ids": [1, 2], "bias": -1.5}]}}),
    (
        {"exponential_decay_length_penalty": (5, 1.5)},
        {"exponentialDecayLengthPenalty": {"startIndex": 5, "decayFactor": 1.5}},
    ),
    (
        {"num_return_sequences": 2, "num_beams": 4, "length_penalty": 0},
        {"numReturnSequences": 2, "numBeams": 4, "lengthPenalty": 0},
    ),
    ({"early_stopping": False}, {"earlyStopping": "EARLY_STOPPING_FALSE"}),
    ({"early_stopping": True}, {"earlyStopping": "EARLY_STOPPING_TRUE"}),
    ({"early_stopping": "never"}, {"earlyStopping": "EARLY_STOPPING_NEVER"}),
    (
        {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 3},
        {"promptLookupNumTokens": 4, "maxMatchingNgramSize": 3},
    ),
    ({"num_assistant_tokens": 0, "token_healing": True}, {"numAssistantTokens": 0, "tokenHealing": True}),
    (
        {"watermarking_config": GreenListWatermark(bias=1.5, seeding_scheme="selfhash")},
        {
            "watermarkingConfig": {
                "greenList": {
                    "greenlistRatio": 0.25,
                    "bias": 1.5,
                    "hashingKey": "15485863",
                    "seedingScheme": "SEEDING_SCHEME_SELF_HASH",
                    "contextWidth": 1,
                }
            }
        },
    ),
    (
        {"watermarking_config": SynthIdTextWatermark(ngram_len=5, keys=(1, 2))},
        {
            "watermarkingConfig": {
                "synthIdText": {
                    "ngramLen": 5,
                    "keys": ["1", "2"],
                    "contextHistorySize": 1024,
                    "samplingTableSeed": "0",
                    "samplingTableSize": 65536,
                    "skipFirstNgramCalls": False,
                    "debugMode": False,
                }
            }
        },
    ),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS)
def test_options_have_the_names_of_transformers(options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert MessageToDict(requests.generation_config(options)) == expected


@pytest.mark.parametrize("options", [options for options, _ in OPTIONS])
def test_settings_in_force_come_back_as_they_can_be_sent(options: dict[str, Any]) -> None:
    sent = requests.generation_config(options)
    assert requests.generation_config(dict(responses.generation_options(sent))) == sent


def test_every_field_of_the_protocol_is_an_option() -> None:
    message = requests.generation_config({})
    assert {field.name for field in message.DESCRIPTOR.fields} == requests._GENERATION
    assert {field.name for field in requests.output_options({}).DESCRIPTOR.fields} == requests._OUTPUT


async def test_priority(call: Call, server: FakeServer) -> None:
    for value, sent in ((None, 0), ("low", 1), ("normal", 2), ("high", 3)):
        await call("generate", "x", priority=value)
        await call("chat", "x", priority=value)
        await call("generate_batch", ["x"], priority=value)
        assert [request.priority for request in server.requests[-3:]] == [sent] * 3
    with pytest.raises(InvalidArgument, match="priority: must be low, normal or high, got 'urgent'"):
        await call("generate", "x", priority="urgent")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_new_tokens": 2**31}, "generation_config.max_new_tokens"),
        ({"max_new_tokens": "three"}, "generation_config.max_new_tokens"),
        ({"seed": 2**63}, "generation_config.seed"),
        ({"stop_strings": [1]}, "generation_config.stop_strings"),
        ({"logit_bias": {"x": 1}}, "generation_config.logit_bias"),
        ({"logprobs": 1.5}, "output.logprobs"),
        ({"early_stopping": "sometimes"}, "generation_config.early_stopping"),
        ({"watermarking_config": {"bias": 1.0}}, "generation_config.watermarking_config"),
        ({"watermarking_config": GreenListWatermark(bias="x")}, "generation_config.watermarking_config"),  # type: ignore[arg-type]
        ({"bad_words_ids": [1]}, "generation_config.bad_words_ids"),
        ({"sequence_bias": [1]}, "generation_config.sequence_bias"),
        ({"exponential_decay_length_penalty": (1, 2, 3)}, "generation_config.exponential_decay_length_penalty"),
    ],
)
def test_a_value_that_cannot_be_sent_names_its_field(client: Client, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        client.generate("x", **options)
    assert [each.field for each in raised.value.violations] == [field]
    assert str(raised.value).startswith(f"{field}: cannot be ")


@pytest.mark.parametrize(
    ("name", "arguments", "option", "known"),
    [
        ("generate", ("x",), "max_tokens", "max_new_tokens"),
        ("stream", ("x",), "tools", "parse_special_tokens"),
        ("generate_batch", (["x"],), "tools", "parse_special_tokens"),
        ("chat", ("x",), "add_special_tokens", "continue_final_message"),
        ("chat_stream", ("x",), "add_special_tokens", "continue_final_message"),
        ("tokenize", ("x",), "skip_special_tokens", "add_special_tokens"),
        ("detokenize", ([1],), "add_special_tokens", "skip_special_tokens"),
        ("render_chat", ("x",), "max_new_tokens", "add_generation_prompt"),
        ("model", (), "revision", "timeout"),
    ],
)
async def test_an_unknown_option_is_a_type_error(
    call: Call, server: FakeServer, name: str, arguments: tuple[Any, ...], option: str, known: str
) -> None:
    with pytest.raises(TypeError, match=rf"unknown option {option}; .*known are .*{known}"):
        await call(name, *arguments, **{option: 3})
    assert server.requests == []


async def test_a_mistyped_option_is_told_the_likely_ones(call: Call) -> None:
    with pytest.raises(TypeError, match=r"did you mean max_new_tokens"):
        await call("generate", "x", max_new_token=3)


async def test_groups_of_options_reach_the_server(call: Call, server: FakeServer) -> None:
    await call("generate", "x", add_special_tokens=False, parse_special_tokens=False)
    await call("generate_batch", ["x"], add_special_tokens=True)
    await call("tokenize", "x", parse_special_tokens=False)
    await call("detokenize", [1], skip_special_tokens=False)
    rendering = {
        "documents": ["plain", {"title": "T", "text": "titled"}],
        "template_variables": {"yes": True, "effort": "low", "whole": 3, "part": 0.5},
        "template_name": "tool_use",
    }
    await call("chat", "x", tools=[TOOL], add_generation_prompt=False, **rendering)
    await call("render_chat", "x", tools=None, continue_final_message=True, model="tiny", template_variables=None)
    generate, batch, tokenize, detokenize, chat, render_chat = map(MessageToDict, server.requests)
    assert generate["prompt"] == {"text": "x", "addSpecialTokens": False, "parseSpecialTokens": False}
    assert batch["prompts"] == [{"text": "x", "addSpecialTokens": True}]
    assert tokenize == {"text": "x", "parseSpecialTokens": False}
    assert detokenize == {"tokenIds": {"ids": [1]}, "skipSpecialTokens": False}
    assert chat["conversation"]["addGenerationPrompt"] is False
    assert [tool["name"] for tool in chat["conversation"]["tools"]] == ["weather"]
    assert chat["conversation"]["documents"] == [{"text": "plain"}, {"title": "T", "text": "titled"}]
    assert chat["conversation"]["templateVariables"] == {
        "yes": {"boolValue": True},
        "effort": {"stringValue": "low"},
        "whole": {"numberValue": 3.0},
        "part": {"numberValue": 0.5},
    }
    assert chat["conversation"]["templateName"] == "tool_use"
    assert render_chat["model"] == "tiny"
    assert render_chat["conversation"].keys() == {"messages", "continueFinalMessage"}


def test_threads_that_share_a_client_share_its_channel(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    both_here = threading.Barrier(2)

    def open_channel(*arguments: Any) -> grpc.Channel:
        # Holds the first opener until a second one, which must not come, would have had its chance.
        with contextlib.suppress(threading.BrokenBarrierError):
            both_here.wait(0.2)
        opened.append(grpc_insecure_channel(*arguments))
        return opened[-1]

    grpc_insecure_channel = grpc.insecure_channel
    monkeypatch.setattr(grpc, "insecure_channel", open_channel)
    with Client(server.target) as client, ThreadPoolExecutor(2) as pool:
        assert [answer.id for answer in pool.map(lambda _: client.model(), range(2))] == ["tiny", "tiny"]
    assert len(opened) == 1


TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": {"type": "object"}}}


def test_tools_and_their_results_are_sent_in_both_forms() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    as_dicts = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "I look."},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ]
    as_messages = [
        ChatMessage("user", "Weather?"),
        ChatMessage(
            "assistant", tool_calls=(ToolCall("weather", {"city": "Köln"}, "c1"),), reasoning_content="I look."
        ),
        ChatMessage("tool", "rain", name="weather", tool_call_id="c1"),
    ]
    sent = requests.conversation(as_dicts, [TOOL])
    assert sent == requests.conversation(as_messages, [TOOL["function"]])
    assert sent.messages[1].tool_calls[0].arguments_json == '{"city": "Köln"}'
    assert sent.tools[0].parameters_json == '{"type": "object"}'


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "contents": "x"}, "conversation.messages[0].contents"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "conversation.messages[0].content[0]"),
        ({"role": 5, "content": "x"}, "conversation.messages[0]"),
    ],
)
def test_a_message_that_cannot_be_sent_names_its_field(message: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        requests.conversation([message])
    assert raised.value.violations[0].field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"documents": [{"title": "T", "body": "x"}]}, "conversation.documents[0].body"),
        ({"documents": ["x", 3]}, "conversation.documents[1]"),
        ({"template_variables": {"x": None}}, "conversation.template_variables[x]"),
        ({"template_variables": {"x": [1]}}, "conversation.template_variables[x]"),
        ({"template_variables": {"x": 10**400}}, "conversation.template_variables[x]"),
        ({"template_variables": {3: "x"}}, "conversation"),
        ({"template_name": 3}, "conversation"),
    ],
)
def test_what_a_template_cannot_be_given_names_its_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        requests.conversation("x", **options)
    assert raised.value.violations[0].field == field


async def test_waiting_for_a_server_that_is_loading(server: FakeServer, call: Call) -> None:
    server.serve(status=2)  # NOT_SERVING
    waiting = asyncio.ensure_future(call("wait_until_ready", 30))
    with pytest.raises(DeadlineExceeded, match=r"is still loading after 0.2 s"):
        await call("wait_until_ready", 0.2)
    assert not waiting.done()
    server.serve()
    await waiting


async def test_waiting_for_a_server_that_is_not_there() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(DeadlineExceeded, match=r"no tokenwire server answers at 127.0.0.1:1 within 0.2 s"):
            await client.wait_until_ready(0.2)


def test_importing_the_client_is_light() -> None:
    heavy = ("torch", "transformers", "cyclopts", "tokenwire.config", "tokenwire.engine", "numpy")
    code = f"import sys, tokenwire.client; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"
