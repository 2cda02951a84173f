"""Resumable streams over connections that break: nothing doubled, nothing missing, nothing left behind."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from chaos_service import PATIENCE_S, Chaos, answer_to, outcome, read_all, request, serving, until
from tcp_proxy import TcpProxy, tcp_proxy

from tokenwire.client import AsyncClient, Client, Delta, Generation, NotFound
from tokenwire.v1 import generation_service_pb2

WINDOW_S = 60.0
NUM_TOKENS = 150
SAMPLED: dict[str, Any] = {"do_sample": True, "seed": 5, "num_return_sequences": 3}
DETAILS: dict[str, Any] = {"logprobs": 2, "token_details": True, "prompt_logprobs": 1, "max_new_tokens": NUM_TOKENS}
OPTIONS: dict[str, Any] = {"step_s": 0.01, "num_blocks": 16_384}


def without_times(answer: Generation) -> list[Any]:
    """All of an answer that two calls with the same seed have in common."""
    return [
        answer.prompt_logprobs,
        *(
            (each.text, each.token_ids, each.logprobs, each.tokens, each.finish.reason, each.finish.usage)
            for each in answer.sequences
        ),
    ]


def num_kept(service: Chaos) -> int:
    return len(service.server.backend.retention)


class Cutter:
    """Resets all connections after every so many deltas that streams have got."""

    def __init__(self, proxy: TcpProxy, every: int) -> None:
        self._proxy = proxy
        self._every = every
        self._count = 0
        self.num_cuts = 0

    def count(self) -> None:
        self._count += 1
        if self._count % self._every == 0:
            self.num_cuts += 1
            self._proxy.cut()


async def test_streams_cut_again_and_again_give_the_uncut_answers(tmp_path: Path) -> None:
    """Twelve streams on four connections, of one sequence and of three, with every detail."""
    async with (
        serving(tmp_path, OPTIONS, resume_window=WINDOW_S) as service,
        tcp_proxy(service.address) as proxy,
    ):
        cutter = Cutter(proxy, every=200)

        async def read(client: AsyncClient, number: int, settings: dict[str, Any]) -> Generation:
            texts = [""] * settings.get("num_return_sequences", 1)
            async with client.stream(f"{number}", resumable=True, **DETAILS, **settings) as stream:
                async for delta in stream:
                    assert delta.text_range[0] == len(texts[delta.sequence_index].encode())
                    texts[delta.sequence_index] += delta.text
                    cutter.count()
                answer = await stream.result()
            assert texts == [each.text for each in answer.sequences]
            return answer

        clients = [AsyncClient(proxy.address) for _ in range(4)]
        kinds = [(number, SAMPLED if number % 3 == 0 else {}) for number in range(12)]
        answers = await asyncio.gather(*(read(clients[number % 4], number, settings) for number, settings in kinds))
        assert cutter.num_cuts >= 5
        for client in clients:
            await client.close()
        async with AsyncClient(service.address) as client:
            whole = await asyncio.gather(
                *(client.generate(f"{number}", **DETAILS, **settings) for number, settings in kinds)
            )
        for answer, uncut in zip(answers, whole, strict=True):
            assert without_times(answer) == without_times(uncut)
        # Leaving a stream tells the server that nobody will resume it.
        assert num_kept(service) == 0
        await service.until_nothing_is_held()


async def test_a_blocking_client_goes_on_as_well(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, OPTIONS, resume_window=WINDOW_S) as service,
        tcp_proxy(service.address) as proxy,
    ):
        loop = asyncio.get_running_loop()

        def read() -> tuple[list[Delta], Generation]:
            deltas = []
            with Client(proxy.address) as client, client.chat_stream("hi", resumable=True, **DETAILS) as stream:
                for delta in stream:
                    deltas.append(delta)
                    if len(deltas) % 40 == 0:
                        loop.call_soon_threadsafe(proxy.cut)
                return deltas, stream.result()

        deltas, answer = await asyncio.to_thread(read)
        async with AsyncClient(service.address) as client:
            uncut = await client.chat("hi", **DETAILS)
        assert answer.text == "".join(delta.text for delta in deltas) == uncut.text
        assert answer.token_ids == uncut.token_ids
        assert num_kept(service) == 0


async def test_another_process_goes_on_where_one_left(tmp_path: Path) -> None:
    """With the request id and the byte offset alone."""
    async with serving(tmp_path, OPTIONS, resume_window=WINDOW_S) as service:
        async with AsyncClient(service.address) as first, first.stream("a", resumable=True, **DETAILS) as stream:
            async for _ in stream:
                if len(stream.text_so_far) > 20:
                    break
            request_id, positions, text = stream.start.request_id, stream.positions, stream.text_so_far
            stream.detach()
        async with AsyncClient(service.address) as second:
            async with second.resume(request_id, positions) as rest:
                assert rest.start.request_id == request_id
                answer = await rest.result()
            uncut = await second.generate("a", **DETAILS)
            assert text + answer.text == uncut.text
            # It was read to its end and left.
            with pytest.raises(NotFound):
                async with second.resume(request_id):
                    pass


@pytest.mark.parametrize("how", ["stall", "black_hole"])
async def test_a_call_takes_over_from_one_whose_connection_hangs(tmp_path: Path, how: str) -> None:
    async with (
        serving(tmp_path, {"step_s": 0.01}, resume_window=WINDOW_S) as service,
        tcp_proxy(service.address) as proxy,
        grpc.aio.insecure_channel(proxy.address) as channel,
    ):
        message = request("a stream", NUM_TOKENS)
        message.resumable = True
        call = Chaos(channel, service.server, service.engine, tmp_path).generation.GenerateStream(message)
        request_id = (await call.read()).start.request_id
        tokens: list[int] = []
        while len(tokens) < 20:
            delta = (await call.read()).delta
            tokens += delta.token_ids
        getattr(proxy, how)()
        position = generation_service_pb2.StreamPosition(text_bytes=delta.text_range.end, token_count=len(tokens))
        resuming = generation_service_pb2.ResumeStreamRequest(request_id=request_id, positions=[position])
        rest = await read_all(service.generation.ResumeStream(resuming))
        assert rest.code is grpc.StatusCode.OK
        assert [*tokens, *rest.tokens] == answer_to("a stream", NUM_TOKENS)


async def test_the_slot_of_a_lost_client_is_free_after_the_window(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, {"step_s": 0.02}, resume_window=2.0) as service,
        tcp_proxy(service.address) as proxy,
        grpc.aio.insecure_channel(proxy.address) as channel,
    ):
        message = request("a stream", 4000)
        message.resumable = True
        call = Chaos(channel, service.server, service.engine, tmp_path).generation.GenerateStream(message)
        await call.read()
        proxy.cut()
        retention = service.server.backend.retention
        await until(lambda: retention.num_unread == 1)
        steps = (await service.engine.stats()).steps
        await service.until_steps(steps + 5)
        assert service.engine.num_open == 1
        await until(lambda: service.engine.num_open == 0, PATIENCE_S)
        await service.until_nothing_is_held()
        assert (len(retention), retention.num_bytes) == (0, 0)
        assert await service.tokens("after") == answer_to("after")


async def test_leaving_a_resumable_stream_frees_its_slot_at_once(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, {"step_s": 0.02}, resume_window=WINDOW_S) as service,
        AsyncClient(service.address) as client,
    ):
        async with client.stream("a stream", resumable=True, max_new_tokens=4000) as stream:
            await anext(stream)
        assert num_kept(service) == 0
        await service.until_nothing_is_held()


async def test_a_killed_engine_is_told_to_whoever_comes_back(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": 0.02}, resume_window=WINDOW_S) as service:
        async with AsyncClient(service.address) as client:
            async with client.stream("a stream", resumable=True, max_new_tokens=4000) as stream:
                await anext(stream)
                request_id = stream.start.request_id
                stream.detach()
            killing = await outcome(service.generation.Generate(request("Kill it"), timeout=PATIENCE_S))
            assert killing.code is grpc.StatusCode.UNAVAILABLE
        for _ in range(2):
            message = generation_service_pb2.ResumeStreamRequest(request_id=request_id)
            ended = await read_all(service.generation.ResumeStream(message))
            assert ended.code is grpc.StatusCode.UNAVAILABLE
            assert list(ended.tokens) == answer_to("a stream", len(ended.tokens))
            assert ended.tokens
