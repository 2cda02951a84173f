"""The asyncio face of the client."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2_grpc

from tokenwire.client import calls
from tokenwire.client.calls import StreamCall, UnaryCall
from tokenwire.client.channel import DEFAULT_TARGET, ChannelSettings, ConnectionOptions, Stubs
from tokenwire.client.errors import Cancelled, TokenwireError, from_rpc_error
from tokenwire.client.health import RETRY_S, ReadinessWait
from tokenwire.client.streams import StreamBase
from tokenwire.client.types import (
    CallOptions,
    ChatAnswer,
    Delta,
    Generation,
    Messages,
    Model,
    Prompt,
    RenderedChat,
    RequestOptions,
    Token,
)

T = TypeVar("T")

_EOF: Any = vars(grpc.aio)["EOF"]  # the stubs of grpc leave it out


class AsyncStream(StreamBase):
    """A running answer: ``async with client.stream(…) as stream: async for delta in stream: …``.

    Entering waits until the server has accepted the request and raises what it refused; iterating gives the deltas;
    leaving the context cancels the call if it is still running. One task reads a stream.
    """

    async def __aenter__(self) -> Self:
        self._call = self._open()
        if self._cancelled:
            self._call.cancel()
        try:
            message = await self._read()
            if message is not _EOF:
                self._record.take(message)
            self._check_start()
        except BaseException:
            # Whoever is interrupted here never leaves the context.
            self._call.cancel()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened().cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while (message := await self._read()) is not _EOF:
            if (delta := self._record.take(message)) is not None:
                return delta
        self._check_finish()
        raise StopAsyncIteration

    async def _read(self) -> Any:
        try:
            return await self._opened().read()
        except grpc.RpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError:
            # grpc.aio raises this for its own cancel as well as for a cancelled task; only the latter may pass.
            task = asyncio.current_task()
            if self._cancelled and not (task and task.cancelling()):
                raise Cancelled("the answer was stopped") from None
            raise

    async def text(self) -> str:
        """Read to the end; return the whole text."""
        return (await self.result()).text

    async def result(self) -> Generation:
        """Read to the end; return the whole answer."""
        async for _ in self:
            pass
        return self._result()


class AsyncClient:
    """Calls a tokenwire server from asyncio.

    Use it as a context manager or ``close`` it. One client serves any number of concurrent calls on the event loop
    that first used it. Every method raises a subclass of TokenwireError when its call fails.

    Keyword arguments are those of ChannelSettings: timeout, metadata, tls, root_certificates, keepalive and retries.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **settings: Unpack[ConnectionOptions]) -> None:
        self._settings = ChannelSettings(target=target, **settings)
        self._channel: grpc.aio.Channel | None = None
        self._stubs: Stubs | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls are cancelled. Idempotent."""
        if self._channel is not None:
            await self._channel.close(None)

    def _open_channel(self) -> grpc.aio.Channel:
        # Not in __init__: a grpc.aio channel belongs to the event loop that runs when it is made.
        if self._channel is None:
            credentials, options = self._settings.credentials(), self._settings.options()
            if credentials is None:
                self._channel = grpc.aio.insecure_channel(self._settings.target, options)
            else:
                self._channel = grpc.aio.secure_channel(self._settings.target, credentials, options)
        return self._channel

    def _method(self, name: str) -> Any:
        if self._stubs is None:
            self._stubs = Stubs(self._open_channel())
        return self._stubs[name]

    async def _unary(self, call: UnaryCall[T]) -> T:
        try:
            reply = await self._method(call.method)(call.request, **self._settings.call_arguments(call.options))
        except grpc.RpcError as error:
            raise from_rpc_error(error, target=self._settings.target) from None
        return call.parse(reply)

    def _stream(self, call: StreamCall) -> AsyncStream:
        return AsyncStream(
            self._settings.target,
            lambda: self._method(call.method)(call.request, **self._settings.call_arguments(call.options)),
        )

    async def generate(
        self,
        prompt: Prompt,
        *,
        add_special_tokens: bool | None = None,
        parse_special_tokens: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Continue a prompt: text, or token ids. Options have transformers' names; see RequestOptions."""
        return await self._unary(
            calls.generate(
                prompt, options, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
            )
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        add_special_tokens: bool | None = None,
        parse_special_tokens: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncStream:
        """Continue a prompt piece by piece."""
        return self._stream(
            calls.stream(
                prompt, options, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
            )
        )

    async def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        add_special_tokens: bool | None = None,
        parse_special_tokens: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Generation | TokenwireError]:
        """Continue many prompts. One outcome per prompt, in order: the answer, or the error it failed with."""
        return await self._unary(
            calls.generate_batch(
                prompts, options, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
            )
        )

    async def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatAnswer:
        """Answer a conversation: messages as dicts or ChatMessage, or one string of the user."""
        return await self._unary(
            calls.chat(
                messages,
                tools,
                options,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        )

    def chat_stream(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncStream:
        """Answer a conversation piece by piece."""
        return self._stream(
            calls.chat_stream(
                messages,
                tools,
                options,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        )

    async def tokenize(
        self,
        text: str,
        *,
        add_special_tokens: bool | None = None,
        parse_special_tokens: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Token]:
        """Split a text into tokens."""
        return await self._unary(
            calls.tokenize(
                text, options, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
            )
        )

    async def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None, **options: Unpack[CallOptions]
    ) -> str:
        """Join token ids to a text."""
        return await self._unary(calls.detokenize(token_ids, options, skip_special_tokens=skip_special_tokens))

    async def render_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> RenderedChat:
        """Render a conversation to the prompt that ``chat`` would use."""
        return await self._unary(
            calls.render_chat(
                messages,
                tools,
                options,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        )

    async def model(self, **options: Unpack[CallOptions]) -> Model:
        """Describe the served model."""
        return await self._unary(calls.model(options))

    async def wait_until_ready(self, timeout: float = 60.0) -> None:  # noqa: ASYNC109  the same name in both faces
        """Wait until the server's health is SERVING, at most ``timeout`` seconds; then raise DeadlineExceeded."""
        wait = ReadinessWait(self._settings.target, timeout)
        stub = health_pb2_grpc.HealthStub(self._open_channel())
        while True:
            error: grpc.RpcError | None = None
            watch = stub.Watch(wait.request, timeout=wait.remaining(), wait_for_ready=True)
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
