"""Frames arrive whole and in order, however the bytes are cut."""

import asyncio
import itertools
import socket
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.engine import channel
from tokenwire.engine.channel import BlockingChannel, FrameError, FrameReader, FrameWriter, FrontProtocol
from tokenwire.engine.protocol import (
    Abort,
    Command,
    Delta,
    Event,
    Failure,
    Finish,
    GetStats,
    LoadFailed,
    Loading,
    Start,
    Stats,
    StepOutputs,
    Stop,
    Submit,
    TokenLogprobs,
)
from tokenwire.engine.settings import GenerationSettings

FINISH = Finish("stop_string", "END", None, 3, 4, 0.5, 1.5, 2.5)
COMMANDS: list[Command] = [
    Start(ModelConfig(model="folder", skip_modules=("lm_head",)), EngineConfig(kv_cache_memory="1GiB")),
    Submit(7, [1, 2, 3], GenerationSettings(max_new_tokens=4, logit_bias={5: -1.5}, seed=-(2**63)), 2),
    Abort([1, 2]),
    GetStats(),
    Stop(),
]
EVENTS: list[Event] = [
    Loading("importing"),
    LoadFailed("no"),
    StepOutputs(
        [
            Delta(1, [5], "é", [TokenLogprobs(-0.25, 1, [(5, -0.25), (6, float("-inf"))])], None),
            Delta(2, [6], "", [], FINISH),
        ],
        [Failure(3, "row", "NaN")],
    ),
    Stats(1, 2, 3, 4, 5, 6, 7),
]


def frames(messages: list[Command]) -> bytes:
    writer = FrameWriter()
    return b"".join(bytes(writer.frame(message)) for message in messages)


@given(st.lists(st.sampled_from(COMMANDS), max_size=8), st.lists(st.integers(0, 400), max_size=12))
def test_any_split_of_the_bytes_gives_the_same_messages(messages: list[Command], cuts: list[int]) -> None:
    data = frames(messages)
    reader: FrameReader[Command] = FrameReader(msgspec.msgpack.Decoder(Command))
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    received = [message for start, end in itertools.pairwise(edges) for message in reader.feed(data[start:end])]
    assert received == messages


def test_both_ends_understand_each_other() -> None:
    async def run() -> list[Event]:
        ours, theirs = socket.socketpair()
        received: list[Event] = []
        closed: asyncio.Future[FrameError | None] = asyncio.get_running_loop().create_future()
        ours.setblocking(False)
        _, front = await asyncio.get_running_loop().create_unix_connection(
            lambda: FrontProtocol(received.append, closed.set_result), sock=ours
        )
        commands: list[Command] = []

        def engine() -> None:
            end = BlockingChannel(theirs)
            while len(commands) < len(COMMANDS):
                commands.extend(end.receive())
            for event in EVENTS:
                end.send(event)
            theirs.close()

        thread = threading.Thread(target=engine)
        thread.start()
        for command in COMMANDS:
            front.send(command)
        assert await closed is None
        thread.join()
        assert commands == COMMANDS
        front.send(Stop())
        return received

    assert asyncio.run(run()) == EVENTS


def test_a_frame_larger_than_the_socket_buffer_arrives() -> None:
    left, right = socket.socketpair()
    with left, right:
        prompt = list(range(1_000_000))
        command = Submit(0, prompt, GenerationSettings(max_new_tokens=1))
        writing = threading.Thread(target=left.sendall, args=(frames([command]),))
        writing.start()
        assert BlockingChannel(right).receive() == [command]
        writing.join()


def test_a_frame_beyond_the_bound_is_refused_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    large = frames([Abort(list(range(1000)))])
    monkeypatch.setattr(channel, "MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match=r"a Abort of \d+ bytes exceeds the 100 of a frame"):
        frames([Abort(list(range(1000)))])
    with pytest.raises(FrameError, match=r"a frame of \d+ bytes exceeds the 100"):
        FrameReader(msgspec.msgpack.Decoder(Command)).feed(large)


@pytest.mark.parametrize("content", [b"\xc1", b"\x81\xa4type\xa3now", b"\xff"])
def test_what_is_no_message_is_refused(content: bytes) -> None:
    reader: FrameReader[Command] = FrameReader(msgspec.msgpack.Decoder(Command))
    with pytest.raises(FrameError, match="holds no message"):
        reader.feed(len(content).to_bytes(4, "little") + content)


def test_a_broken_frame_closes_the_front_with_its_error() -> None:
    async def run() -> FrameError | None:
        ours, theirs = socket.socketpair()
        closed: asyncio.Future[FrameError | None] = asyncio.get_running_loop().create_future()
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: FrontProtocol(lambda _: None, closed.set_result), sock=ours
        )
        with theirs:
            theirs.sendall(b"\x01\x00\x00\x00\xc1")
            return await closed

    assert "holds no message" in str(asyncio.run(run()))


def test_receive_ends_when_the_front_is_gone() -> None:
    left, right = socket.socketpair()
    left.sendall(frames([Stop()])[:-1])
    left.close()
    with right:
        assert BlockingChannel(right).receive() == []
