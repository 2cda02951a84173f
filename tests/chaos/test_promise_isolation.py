"""Isolation: what is wrong with one request ends that request alone, with the status of the table."""

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from chaos_service import Calls, Chaos, answer_to, outcome, read_all, request, serving, until
from fakes import VOCAB_SIZE
from faulty_engine import NAN, Fault
from test_bad_processors import BAD
from test_bad_requests import CASES, CONTEXT, LIMITS, config, parse

from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1 import tokenizer_service_pb2

SEVEN = [f"good {number}" for number in range(7)]

BAD_PARAMETERS = [*((method, fields) for method, fields, _ in CASES), *(("Generate", config(**bad)) for bad, _ in BAD)]


async def test_nan_logits_in_one_of_eight_rows_fail_only_that_row(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        # All eight are taken while a forward hangs, so that they share the steps behind it.
        hung = asyncio.ensure_future(service.tokens("Hang", 1))
        await service.until_begun("Hang")
        good = [asyncio.ensure_future(service.tokens(prompt, 40)) for prompt in SEVEN]
        bad = asyncio.ensure_future(outcome(service.generation.Generate(request(f"{NAN} not a number"))))
        await until(lambda: service.engine.num_open == 9)
        (tmp_path / "release").touch()
        failed = await bad
        assert failed.code is grpc.StatusCode.INTERNAL
        assert await asyncio.gather(*good) == [answer_to(prompt, 40) for prompt in SEVEN]
        await hung


async def test_a_panic_gives_internal_and_the_next_hundred_succeed(tmp_path: Path) -> None:
    """What the sampler does with a panic is shown in Rust (`a_panic_ends_the_sequence_of_its_own_row_alone`)."""
    async with serving(tmp_path) as service:
        stream = await service.begin("beside it", 2000)
        panicked = await outcome(service.generation.Generate(request(f"{Fault.PANIC.value} now")))
        assert panicked.code is grpc.StatusCode.INTERNAL
        assert "panic" not in panicked.details
        assert "secret" not in panicked.details
        for number in range(100):
            assert await service.tokens(f"next {number}", 2) == answer_to(f"next {number}", 2)
        assert (await read_all(stream)).code is grpc.StatusCode.OK


async def test_when_no_token_is_allowed_the_end_is_defined_and_the_neighbour_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        stream = await service.begin("beside it", 2000)
        # All but one are suppressed; having been generated, that one must not be repeated.
        others = {"ids": [token for token in range(VOCAB_SIZE) if token != 65]}
        bad = request("one token", 5, suppress_tokens=others, no_repeat_ngram_size=1)
        ended = await outcome(service.generation.Generate(bad))
        assert ended.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "generation_config" in ended.details
        assert (await read_all(stream)).code is grpc.StatusCode.OK


async def test_over_200_bad_parameters_beside_seven_good_requests_change_none_of_their_tokens(tmp_path: Path) -> None:
    assert len(BAD_PARAMETERS) > 200
    limits = {field.name: getattr(LIMITS, field.name) for field in dataclasses.fields(LIMITS)}
    is_over = asyncio.Event()

    async def ask_again_and_again(service: Chaos, prompt: str) -> int:
        num_tokens = CONTEXT - len(prompt)
        expected = answer_to(prompt, num_tokens)
        count = 0
        while not is_over.is_set():
            assert await service.tokens(prompt, num_tokens) == expected
            count += 1
        return count

    async with serving(tmp_path, {"context": CONTEXT}, **limits) as service, asyncio.TaskGroup() as group:
        good = [group.create_task(ask_again_and_again(service, prompt)) for prompt in SEVEN]
        for prompt in SEVEN:
            await service.until_begun(prompt)
        for method, fields in BAD_PARAMETERS:
            kind = pb.GenerateRequest if method == "Generate" else pb.ChatRequest
            failed = await outcome(getattr(service.generation, method)(parse(fields, kind)))
            assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        is_over.set()
        assert all([await each >= 1 for each in good])
        assert set(service.journal()) == set(SEVEN)


async def test_16_threads_of_tokenizer_calls_see_no_error(tmp_path: Path) -> None:
    text = "Tokenizers are shared between threads: ünïcode, 漢字, <|im_start|> and so on. " * 20
    message = tokenizer_service_pb2.TokenizeRequest(text=text, parse_special_tokens=False)
    start = threading.Barrier(16)

    def work(address: str) -> set[tuple[int, ...]]:
        with grpc.insecure_channel(address) as channel:
            calls = Calls(channel)
            start.wait()
            return {tuple(token.id for token in calls.tokenizer.Tokenize(message).tokens) for _ in range(10)}

    async with serving(tmp_path) as service:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(16) as pool:
            working = [loop.run_in_executor(pool, work, service.address) for _ in range(16)]
            # Waited for also where one failed: leaving the pool would block the loop that answers the others.
            await asyncio.wait(working)
        # The tokenizer of these tests has a token per byte, whose id is the byte.
        assert [await each for each in working] == [{tuple(text.encode())}] * 16
