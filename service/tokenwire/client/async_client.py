"""The asyncio face of the client."""

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from tokenwire.client import calls, results, types
from tokenwire.client.calls import UnaryCall
from tokenwire.client.channel import DEFAULT_TARGET, Connection, ConnectionOptions
from tokenwire.client.errors import Cancelled, TokenwireError, from_rpc_error
from tokenwire.client.health import RETRY_S, ReadinessWait
from tokenwire.client.streams import StreamBase

T = TypeVar("T")

_EOF: Any = vars(grpc.aio)["EOF"]  # the stubs of grpc leave it out


class AsyncStream(StreamBase):
    """A running answer: ``async with client.stream(…) as stream: async for delta in stream: …``.

    Entering waits until the server has accepted the request and raises what it refused; iterating gives the deltas;
    leaving the context cancels the call if it is still running. One task reads a stream.
    """

    async def __aenter__(self) -> Self:
        self._open()
        try:
            self._begin(await self._read())
        except BaseException:
            # Whoever is interrupted here never leaves the context.
            self._call.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened().cancel()
        forgetting = self._forget()
        if forgetting is not None:
            with contextlib.suppress(grpc.RpcError):
                await forgetting

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> results.Delta:
        while (message := await self._read()) is not None:
            if (delta := self._take(message)) is not None:
                return delta
        self._check_finish()
        raise StopAsyncIteration

    async def _read(self) -> Any:
        while True:
            try:
                message = await self._opened().read()
                return None if message is _EOF else message
            except grpc.RpcError as error:
                pause_s = self._pause_before_resuming(self._error(error))
            except asyncio.CancelledError:
                # grpc.aio raises this for its own cancel as well as for a cancelled task; only the latter may pass.
                task = asyncio.current_task()
                if self._cancelled and not (task and task.cancelling()):
                    raise Cancelled("the answer was stopped") from None
                raise
            await asyncio.sleep(pause_s)
            self._reopen()

    async def text(self) -> str:
        """Read to the end; return the whole text, of several the first."""
        return (await self.result()).text

    async def result(self) -> results.Generation:
        """Read to the end; return the whole answer."""
        async for _ in self:
            pass
        return self._result()


class AsyncClient:
    """Calls a tokenwire server from asyncio.

    Use it as a context manager or ``close`` it. One client serves any number of concurrent calls on the event loop
    that first used it. Every method raises a subclass of TokenwireError when its call fails.

    Keyword arguments are those of ChannelSettings: timeout, metadata, api_key, tls, root_certificates,
    client_certificate, client_key, keepalive and retries.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **settings: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection(grpc.aio, target, settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls are cancelled. Idempotent."""
        if self._connection.opened:
            await self._connection.channel.close(None)

    async def _unary(self, call: UnaryCall[T]) -> T:
        attempts = self._connection.attempts(call)
        while True:
            try:
                reply = await self._connection.start(call, timeout=attempts.timeout)
            except grpc.RpcError as error:
                pause_s = attempts.pause_after(from_rpc_error(error, target=self._connection.target))
            else:
                return call.parse(reply)
            await asyncio.sleep(pause_s)

    async def generate(self, prompt: types.Prompt, **options: Unpack[types.PromptOptions]) -> results.Generation:
        """Continue a prompt: text, or token ids. Options have transformers' names; see PromptOptions."""
        return await self._unary(calls.generate(prompt, options))

    def stream(self, prompt: types.Prompt, **options: Unpack[types.PromptOptions]) -> AsyncStream:
        """Continue a prompt piece by piece."""
        return AsyncStream(self._connection, calls.stream(prompt, options))

    async def generate_batch(
        self, prompts: Sequence[types.Prompt], **options: Unpack[types.BatchOptions]
    ) -> list[results.Generation | TokenwireError]:
        """Continue many prompts. One outcome per prompt, in order: the answer, or the error it failed with."""
        return await self._unary(calls.generate_batch(prompts, options))

    async def chat(self, messages: types.Messages, **options: Unpack[types.ChatOptions]) -> results.ChatAnswer:
        """Answer a conversation: messages as dicts or ChatMessage, or one string of the user."""
        return await self._unary(calls.chat(messages, options))

    def chat_stream(self, messages: types.Messages, **options: Unpack[types.ChatOptions]) -> AsyncStream:
        """Answer a conversation piece by piece."""
        return AsyncStream(self._connection, calls.chat_stream(messages, options))

    def resume(
        self, request_id: str, positions: Sequence[types.StreamPosition] = (), **options: Unpack[types.ResumeOptions]
    ) -> AsyncStream:
        """Go on with a resumable stream behind ``positions``. Default: from its beginning.

        ``text_so_far`` and ``result`` lack what lies before them. Entering raises NotFound where it cannot be resumed.
        """
        return AsyncStream(self._connection, calls.resume(request_id, positions, options), tuple(positions))

    async def tokenize(self, text: str, **options: Unpack[types.TokenizeOptions]) -> list[types.Token]:
        """Split a text into tokens."""
        return await self._unary(calls.tokenize(text, options))

    async def detokenize(self, token_ids: Sequence[int], **options: Unpack[types.DetokenizeOptions]) -> str:
        """Join token ids to a text."""
        return await self._unary(calls.detokenize(token_ids, options))

    async def render_chat(self, messages: types.Messages, **options: Unpack[types.RenderOptions]) -> types.RenderedChat:
        """Render a conversation to the prompt that ``chat`` would use."""
        return await self._unary(calls.render_chat(messages, options))

    async def model(self, **options: Unpack[types.CallOptions]) -> types.Model:
        """Describe the served model."""
        return await self._unary(calls.model(options))

    async def wait_until_ready(self, timeout: float = 60.0) -> None:  # noqa: ASYNC109  the same name in both faces
        """Wait until the server's health is SERVING, at most ``timeout`` seconds; then raise DeadlineExceeded."""
        wait = ReadinessWait(self._connection, timeout)
        while True:
            error: grpc.RpcError | None = None
            watch = wait.open()
            try:
                async for response in watch:
                    if wait.serves(response):
                        return
            except grpc.RpcError as broken:
                error = broken
            finally:
                watch.cancel()
            wait.check(error)
            await asyncio.sleep(min(RETRY_S, wait.remaining()))
