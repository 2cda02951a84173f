"""Several sequences, and what an answer carries beside its text, through both faces of the client."""

import asyncio
from typing import Any

import pytest
from fake_server import FakeServer

from tokenwire import cli
from tokenwire.client import AsyncClient, Client, Generation, InternalError, TokenDetail, TokenwireError
from tokenwire.v1 import generation_pb2, generation_service_pb2

SAMPLED = {"num_return_sequences": 3, "do_sample": True}
TEXTS = ("echo: a b", "echo: a b #1", "echo: a b #2")


@pytest.mark.parametrize("is_async", [False, True])
def test_every_sequence_comes_back(server: FakeServer, is_async: bool) -> None:
    async def ask() -> tuple[Generation, Generation]:
        async with AsyncClient(server.target) as client:
            unary = await client.generate("a b", **SAMPLED)
            async with client.stream("a b", **SAMPLED) as stream:
                return unary, await stream.result()

    def ask_blocking() -> tuple[Generation, Generation]:
        with Client(server.target) as client:
            unary = client.generate("a b", **SAMPLED)
            with client.stream("a b", **SAMPLED) as stream:
                return unary, stream.result()

    unary, streamed = asyncio.run(ask()) if is_async else ask_blocking()
    assert unary == streamed
    assert unary.texts == TEXTS
    assert (unary.text, unary.token_ids) == (TEXTS[0], unary.sequences[0].token_ids)
    assert [finish.sequence_index for finish in unary.finishes] == [0, 1, 2]
    # The same warning of each of three endings is one.
    assert [warning.code for warning in unary.warnings] == ["raw_prompt", "default_length_cut"]


def test_a_stream_is_finished_when_its_last_sequence_is(server: FakeServer) -> None:
    with Client(server.target) as client, client.stream("a b", **SAMPLED) as stream:
        indices = [next(stream).sequence_index for _ in range(3)]
        assert indices == [0, 1, 2]
        assert not stream.finished
        assert stream.text_so_far == "echo:"
        with pytest.raises(RuntimeError, match="not ended"):
            _ = stream.finish
        stream.text()
        assert stream.finished
        assert len(stream.finishes) == 3


def test_a_stream_without_the_finish_of_a_sequence_is_an_error(server: FakeServer) -> None:
    def stream(self: FakeServer, request: Any, context: Any, response: Any) -> Any:
        self._receive(request, context)
        yield response(start=self._start(request))
        yield response(finish=self._finish(0, 1))

    server._stream = stream.__get__(server)  # type: ignore[method-assign]
    with (
        Client(server.target) as client,
        client.stream("a", **SAMPLED) as running,
        pytest.raises(InternalError, match="finish event for each sequence"),
    ):
        running.result()


def test_an_event_of_a_sequence_that_nobody_asked_for_is_an_error(server: FakeServer) -> None:
    def stream(self: FakeServer, request: Any, context: Any, response: Any) -> Any:
        self._receive(request, context)
        yield response(start=self._start(request))
        yield response(delta=generation_pb2.GenerationDelta(sequence_index=1, text="x"))

    server._stream = stream.__get__(server)  # type: ignore[method-assign]
    with (
        Client(server.target) as client,
        client.stream("a") as running,
        pytest.raises(InternalError, match="sequence 1"),
    ):
        running.result()


def test_chat_gives_a_message_per_sequence(server: FakeServer) -> None:
    with Client(server.target) as client:
        answer = client.chat("a b", **SAMPLED)
    assert [message.content for message in answer.messages] == [f"you said: a b{end}" for end in ("", " #1", " #2")]
    assert answer.message == answer.messages[0]
    assert answer.texts == tuple(message.content for message in answer.messages)


def test_batch_gives_the_sequences_of_each_item(server: FakeServer) -> None:
    with Client(server.target) as client:
        first, failed = client.generate_batch(["a b", ""], **SAMPLED)
    assert isinstance(first, Generation)
    assert first.texts == TEXTS
    assert isinstance(failed, TokenwireError)


def test_beams_have_scores(server: FakeServer) -> None:
    with Client(server.target) as client:
        answer = client.generate("a", num_beams=4, num_return_sequences=2)
        assert [finish.sequence_score for finish in answer.finishes] == [-0.5, -1.5]
        assert client.generate("a").finish.sequence_score is None


def test_details(server: FakeServer) -> None:
    options = {"token_details": True, "logprobs": 1, "prompt_logprobs": 1, **SAMPLED}
    with Client(server.target) as client:
        unary = client.generate("a", **options)
        with client.stream("a", **options) as stream:
            assert stream.result() == unary
        plain = client.generate("a")
    assert unary.tokens == (
        TokenDetail(100, "echo:", b"echo:", (0, 5)),
        TokenDetail(101, " a", b" a", (5, 7)),
    )
    assert [position.chosen.rank for position in unary.logprobs] == [3, 3]
    assert len(unary.prompt_logprobs) == 1
    assert (plain.tokens, plain.prompt_logprobs) == ((), ())
    usage = unary.usage
    assert (usage.cached_token_count, usage.draft_token_count, usage.accepted_draft_token_count) == (2, 6, 4)


def test_negative_prompts(server: FakeServer) -> None:
    with Client(server.target) as client:
        client.generate("a", guidance_scale=2.0, negative_prompt="bad", parse_special_tokens=False)
        client.chat("a", guidance_scale=2.0, negative_prompt=[1, 2])
        client.generate("a")
        with pytest.raises(TypeError, match="unknown option negative_prompt"):
            client.generate_batch(["a"], negative_prompt="bad")  # type: ignore[call-arg]
        client.generate_batch(["a", "b"], guidance_scale=2.0, negative_prompts=["bad", [3]], parse_special_tokens=False)
    text, ids, without, batch = server.requests
    assert text.negative_prompt == generation_service_pb2.Prompt(text="bad", parse_special_tokens=False)
    assert list(ids.negative_prompt.token_ids) == [1, 2]
    assert not without.HasField("negative_prompt")
    assert list(batch.negative_prompts) == [
        generation_service_pb2.Prompt(text="bad", parse_special_tokens=False),
        generation_service_pb2.Prompt(token_ids=[3]),
    ]


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENWIRE_ADDRESS", server.target)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run_command


@pytest.mark.parametrize("beams", [(), ("--num-beams", "4")])
def test_the_command_prints_every_sequence(run: Any, server: FakeServer, beams: tuple[str, ...]) -> None:
    code, out, err = run("generate", "a b", "--num-return-sequences", "2", "--do-sample", "--stats", *beams)
    assert (code, out) == (0, "echo: a b\n--- 2 of 2 ---\necho: a b #1\n")
    assert err.startswith("warning: no chat markers\nwarning: cut at 20\ntime to first token ")
    assert "3 prompt + 7 new tokens | finish reason stop_string" in err


def test_the_command_s_flags_reach_the_server(run: Any, server: FakeServer) -> None:
    flags = {
        "--min-length": "3", "--max-time": "2.5", "--top-h": "0.5", "--epsilon-cutoff": "0.25", "--eta-cutoff": "0.125",
        "--no-repeat-ngram-size": "2", "--guidance-scale": "1.5", "--length-penalty": "2", "--early-stopping": "never",
        "--prompt-lookup-num-tokens": "4", "--num-assistant-tokens": "0", "--negative-prompt": "bad",
    }  # fmt: skip
    assert run("generate", "a", "--token-healing", *(word for pair in flags.items() for word in pair))[0] == 0
    request = server.requests[0]
    config = request.generation_config
    assert request.negative_prompt.text == "bad"
    assert (config.min_length, config.max_time, config.token_healing) == (3, 2.5, True)
    assert config.early_stopping == generation_pb2.EARLY_STOPPING_NEVER
    for flag, value in flags.items():
        name = flag.removeprefix("--").replace("-", "_")
        if name not in ("early_stopping", "negative_prompt"):
            assert getattr(config, name) == float(value), name
    assert run("generate", "a", "--early-stopping", "sometimes")[0] == 2
