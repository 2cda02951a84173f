"""Isolation: whatever bytes a message is, its call ends with a status of the table, and the service goes on."""

import asyncio
import contextlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from chaos_service import Calls, read_all, request
from google.rpc import status_pb2
from message_fuzz import Method, damaged, methods, random_message

from tests import tiny_models
from tests.serving import running_server
from tokenwire.v1 import generation_service_pb2

OF_KEPT_STREAMS = {
    # There is one of this id.
    grpc.StatusCode.ALREADY_EXISTS,
    # A place that it has not come to.
    grpc.StatusCode.OUT_OF_RANGE,
    # Taken over by another call.
    grpc.StatusCode.ABORTED,
    # By another call, CancelStream.
    grpc.StatusCode.CANCELLED,
}
ALLOWED = {
    *OF_KEPT_STREAMS,
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    # Of a priority above the caller's own.
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
INTERNALS = (
    *("Traceback", "Error(", "Exception", "Error:", "site-packages", ".py", ".rs", "object at 0x", "panicked"),
    *("/tmp/", "/usr/", "/home/", "/root/", "torch", "grpc.", "_pb2", "msgspec", "serde", "<class"),
)
"""What gives an exception or a path away. None of the fuzz's own texts has one."""

NUM_CALLERS = 16
CALL_TIMEOUT_S = 60.0
RESUME_WINDOW_S = 2
KEEP_EVERY = 20
"""Messages of one caller between two streams that it leaves to be resumed."""
REQUEST_IDS = ("mine", "yours", "x" * 128)
"""Few, so that calls meet streams of others; half of the messages come with one of them."""
MAX_GROWTH_BYTES = 20 << 20
NORMAL = "Once upon a time"


class Fuzzer:
    """Sends messages from several callers at once, and judges how each call ends."""

    def __init__(self, channel: grpc.aio.Channel, seed: int) -> None:
        self._channel = channel
        self._rng = random.Random(seed)
        # Apart, so that the messages do not depend on when calls end.
        self._ids_rng = random.Random(seed)
        self._methods = methods()
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.num_resumed = 0
        """Messages that resumed a stream."""

    def valid(self) -> tuple[Method, bytes]:
        method = self._rng.choice(self._methods)
        return method, random_message(method.request, self._rng).SerializeToString()

    def mutated(self) -> tuple[Method, bytes]:
        # Sparse originals are mostly accepted, so that damage to them is met behind validation too.
        method, data = self.valid()
        return method, damaged(data, self._rng)

    async def send(self, messages: list[tuple[Method, bytes]]) -> None:
        """Send all of ``messages``, some at the same time."""
        rest = iter(messages)

        async def call_one_by_one() -> None:
            for number, (method, data) in enumerate(rest):
                if number % KEEP_EVERY == 0:
                    await self._keep_a_stream()
                await self._call(method, data)

        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_CALLERS):
                group.create_task(call_one_by_one())

    async def _keep_a_stream(self) -> None:
        """That a message may resume or cancel, under one of a few ids."""
        message = request(NORMAL)
        message.resumable = True
        metadata = (("x-request-id", self._ids_rng.choice(REQUEST_IDS)),)
        call = Calls(self._channel).generation.GenerateStream(message, metadata=metadata, timeout=CALL_TIMEOUT_S)
        assert (await read_all(call)).code in {grpc.StatusCode.OK, *OF_KEPT_STREAMS}

    async def _call(self, method: Method, data: bytes) -> None:
        metadata = [("x-request-id", self._ids_rng.choice(REQUEST_IDS))] if self._ids_rng.random() < 0.5 else []
        call: Any = self._channel.unary_stream(method.path, None, None)(data, timeout=CALL_TIMEOUT_S, metadata=metadata)
        answers: list[bytes] = []
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (answer := await call.read()) is not grpc.aio.EOF:
                answers.append(answer)
        code = await call.code()
        self.codes[code] += 1
        self.num_resumed += code is grpc.StatusCode.OK and method.path.endswith("/ResumeStream")
        details = await call.details() or ""
        assert code in ALLOWED, (method.path, data, code, details)
        trailing = dict(await call.trailing_metadata() or ())
        check_clean(method, data, details)
        check_status(method, data, trailing.get("grpc-status-details-bin", b""))
        if method.path.endswith("/GenerateBatch") and answers:
            for item in generation_service_pb2.GenerateBatchResponse.FromString(answers[0]).items:
                assert item.error.code != grpc.StatusCode.UNKNOWN.value[0], (method.path, data)
                assert item.error.code != grpc.StatusCode.INTERNAL.value[0], (method.path, data)
                check_clean(method, data, str(item.error))


def check_status(method: Method, data: bytes, details: bytes) -> None:
    status = status_pb2.Status.FromString(details)
    check_clean(method, data, status.message)
    for detail in status.details:
        check_clean(method, data, detail.value.decode(errors="replace"))


def check_clean(method: Method, data: bytes, shown: str) -> None:
    assert not any(word in shown for word in INTERNALS), (method.path, data, shown)


def resident_bytes(pid: int) -> list[int]:
    """Of the front and of its engine."""
    front = psutil.Process(pid)
    (engine,) = front.children()
    return [process.memory_info().rss for process in (front, engine)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("num_mutated", "num_valid"), [(2_500, 500), pytest.param(100_000, 20_000, marks=pytest.mark.chaos)]
)
async def test_no_message_gives_unknown_or_shows_what_is_inside(
    tmp_path: Path, num_mutated: int, num_valid: int
) -> None:
    """Memory is measured behind a warm-up of a sixth of the messages, front and engine together.

    In the short form it says nothing yet.
    """
    thousands = (num_mutated + num_valid) // 1000
    checkpoint = tiny_models.save(tmp_path / "tiny", "llama")
    flags = ["--model-id", "tiny", "--threads", "1", "--kv-cache-memory", "32MiB", "--max-context", "128"]
    # oneDNN compiles a kernel for every number of rows that a matrix product meets, and keeps 256 of them: with few
    # numbers of rows the warm-up meets them all, and what grows behind it is a leak.
    flags += ["--max-running", "16", "--max-step-tokens", "32", "--resume-window", str(RESUME_WINDOW_S)]
    with running_server(checkpoint, flags) as server:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            fuzzer = Fuzzer(channel, seed=20261124)

            async def answer() -> list[int]:
                answer = await Calls(channel).generation.Generate(request(NORMAL), timeout=CALL_TIMEOUT_S)
                return list(answer.sequences[0].token_ids)

            expected = await answer()
            resident: list[list[int]] = []
            for _ in range(thousands):
                count = 1000 * num_mutated // (num_mutated + num_valid)
                messages = [fuzzer.mutated() for _ in range(count)] + [fuzzer.valid() for _ in range(1000 - count)]
                await fuzzer.send(messages)
                assert await answer() == expected
                resident.append(resident_bytes(server.pid))
                print(*(f"{size / 2**20:.1f}" for size in resident[-1]), flush=True)  # noqa: T201
        growth = sum(resident[-1]) - sum(resident[thousands // 6])
        codes = {code.name: count for code, count in fuzzer.codes.items()}
        print(f"{codes}, memory of front and engine grown by {growth / 2**20:.1f} MiB")  # noqa: T201
        assert fuzzer.codes.total() == 1000 * thousands
        assert fuzzer.codes[grpc.StatusCode.OK] > fuzzer.codes.total() // 15
        assert fuzzer.num_resumed
        if num_mutated > 10_000:
            assert growth < MAX_GROWTH_BYTES
        faults = [entry for entry in server.log if entry.get("level") == "error" or entry["event"] == "not json"]
        assert not faults
        assert server.terminate() == 0
