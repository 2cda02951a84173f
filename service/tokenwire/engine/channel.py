"""Frames over a socket pair: MessagePack behind a 4-byte little-endian length.

The engine's end blocks (a thread that reads, one for the heartbeat, and writes between two steps), the front's end is
an asyncio protocol.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import msgspec

from tokenwire.engine.protocol import Command, Event, Failure, StepOutputs

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Largest frame. The largest real ones are the log probabilities of a prompt, some 15 bytes for each likely token of
each place, then Ready with a tokenizer.json of some 35 MB, and a Submit of about 1.3 bytes per byte of
``max_message_bytes``."""

_HEADER_BYTES = 4
_RECEIVE_BYTES = 256 * 1024

MessageT = TypeVar("MessageT")


class FrameError(ValueError):
    """A frame is larger than MAX_FRAME_BYTES, or not a message of the protocol.

    Where it was received, the connection cannot go on; where it was to be sent, nothing of it was.
    """


class FrameWriter:
    """Encodes messages into one buffer that is used again; not for several threads."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    def frame(self, message: Command | Event) -> bytearray:
        """The frame of ``message``, valid until the next call. Raises FrameError where it would be too large."""
        buffer = self._buffer
        self._encoder.encode_into(message, buffer, _HEADER_BYTES)
        size = len(buffer) - _HEADER_BYTES
        if size > MAX_FRAME_BYTES:
            raise FrameError(f"a {type(message).__name__} of {size} bytes exceeds the {MAX_FRAME_BYTES} of a frame")
        buffer[:_HEADER_BYTES] = size.to_bytes(_HEADER_BYTES, "little")
        return buffer


class FrameReader(Generic[MessageT]):
    """Cuts received bytes into messages."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[MessageT]") -> None:
        self._decode = decoder.decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[MessageT]:
        """The messages that are complete with ``data``. Raises FrameError."""
        buffer = self._buffer
        buffer += data
        messages: list[MessageT] = []
        position = 0
        with memoryview(buffer) as view:
            while len(view) - position >= _HEADER_BYTES:
                start = position + _HEADER_BYTES
                size = int.from_bytes(view[position:start], "little")
                if size > MAX_FRAME_BYTES:
                    raise FrameError(f"a frame of {size} bytes exceeds the {MAX_FRAME_BYTES} of a frame")
                if len(view) - start < size:
                    break
                try:
                    messages.append(self._decode(view[start : start + size]))
                except msgspec.DecodeError as error:
                    raise FrameError(f"a frame of {size} bytes holds no message of the protocol: {error}") from None
                position = start + size
        del buffer[:position]
        return messages


class BlockingChannel:
    """The engine's end: ``receive`` in one thread, ``send`` in any."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader: FrameReader[Command] = FrameReader(msgspec.msgpack.Decoder(Command))
        self._writer = FrameWriter()
        self._sending = threading.Lock()

    def send(self, event: Event) -> None:
        """Write one event. Raises BrokenPipeError or ConnectionResetError once the front is gone.

        Raises FrameError for an event that is too large, before any of it is written.
        """
        with self._sending:
            self._socket.sendall(self._writer.frame(event))

    def send_outputs(self, outputs: StepOutputs) -> list[int]:
        """Write what a step gave, each request's own in a frame of its own where one does not hold all of it.

        A request of which even one delta is too large gets a Failure instead: returns those, which are to be aborted.
        """
        try:
            self.send(outputs)
        except FrameError:
            pass
        else:
            return []
        failed: dict[int, str] = {}
        for delta in outputs.deltas:
            try:
                self.send(StepOutputs([delta], []))
            except FrameError as error:
                failed[delta.request] = str(error)
        self.send(StepOutputs([], outputs.failures + [Failure(request, "step", failed[request]) for request in failed]))
        return list(failed)

    def receive(self) -> list[Command]:
        """Wait for commands; empty when the front is gone. Raises FrameError."""
        commands: list[Command] = []
        while not commands:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except ConnectionResetError:
                return []
            if not data:
                return []
            commands = self._reader.feed(data)
        return commands


class FrontProtocol(asyncio.Protocol):
    """The front's end: one callback per event, and one when the engine's end is closed."""

    def __init__(self, on_event: Callable[[Event], None], on_close: Callable[[FrameError | None], None]) -> None:
        self._on_event = on_event
        self._on_close = on_close
        self._reader: FrameReader[Event] = FrameReader(msgspec.msgpack.Decoder(Event))
        self._writer = FrameWriter()
        self._transport: asyncio.Transport | None = None
        self._error: FrameError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are of no asyncio class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand on every complete event; a broken frame closes the connection."""
        try:
            events = self._reader.feed(data)
        except FrameError as error:
            self._error = error
            self.close()
            return
        for event in events:
            self._on_event(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end, whoever closed."""
        self._transport = None
        self._on_close(self._error)

    def send(self, command: Command) -> None:
        """Write one command without waiting; nothing happens once the connection is closed. Raises FrameError."""
        frame = self._writer.frame(command)
        if self._transport is not None:
            # A copy: the transport keeps what the socket does not take at once.
            self._transport.write(bytes(frame))

    def close(self) -> None:
        """Close the socket, unsent commands included; the engine ends."""
        if self._transport is not None:
            self._transport.abort()
