"""The blocking face of the client: the same calls as `async_client`, over gRPC's blocking channel."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2_grpc

from tokenwire.client import calls
from tokenwire.client.calls import StreamCall, UnaryCall
from tokenwire.client.channel import DEFAULT_TARGET, ChannelSettings, ConnectionOptions, Stubs
from tokenwire.client.errors import TokenwireError, from_rpc_error
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


class Stream(StreamBase):
    """A running answer: ``with client.stream(…) as stream: for delta in stream: …``.

    Entering waits until the server has accepted the request and raises what it refused; iterating gives the deltas;
    leaving the context cancels the call if it is still running. ``cancel`` may be called from any thread.
    """

    def __enter__(self) -> Self:
        self._call = self._open()
        if self._cancelled:
            # By a signal handler or another thread, before there was a call.
            self._call.cancel()
        try:
            message = self._read()
            if message is not None:
                self._record.take(message)
            self._check_start()
        except BaseException:
            # Whoever is interrupted here never leaves the context.
            self._call.cancel()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened().cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        while (message := self._read()) is not None:
            if (delta := self._record.take(message)) is not None:
                return delta
        self._check_finish()
        raise StopIteration

    def _read(self) -> Any:
        try:
            return next(self._opened(), None)
        except grpc.RpcError as error:
            raise self._error(error) from None

    def text(self) -> str:
        """Read to the end; return the whole text."""
        return self.result().text

    def result(self) -> Generation:
        """Read to the end; return the whole answer."""
        for _ in self:
            pass
        return self._result()


class Client:
    """Calls a tokenwire server and waits for the answers.

    Use it as a context manager or ``close`` it. Threads may share one client. Every method raises a subclass of
    TokenwireError when its call fails.

    Keyword arguments are those of ChannelSettings: timeout, metadata, tls, root_certificates, keepalive and retries.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **settings: Unpack[ConnectionOptions]) -> None:
        self._settings = ChannelSettings(target=target, **settings)
        self._channel: grpc.Channel | None = None
        self._stubs: Stubs | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls are cancelled. Idempotent."""
        if self._channel is not None:
            self._channel.close()

    def _open_channel(self) -> grpc.Channel:
        if self._channel is None:
            credentials, options = self._settings.credentials(), self._settings.options()
            if credentials is None:
                self._channel = grpc.insecure_channel(self._settings.target, options)
            else:
                self._channel = grpc.secure_channel(self._settings.target, credentials, options)
        return self._channel

    def _method(self, name: str) -> Any:
        if self._stubs is None:
            self._stubs = Stubs(self._open_channel())
        return self._stubs[name]

    def _unary(self, call: UnaryCall[T]) -> T:
        try:
            reply = self._method(call.method)(call.request, **self._settings.call_arguments(call.options))
        except grpc.RpcError as error:
            raise from_rpc_error(error, target=self._settings.target) from None
        return call.parse(reply)

    def _stream(self, call: StreamCall) -> Stream:
        return Stream(
            self._settings.target,
            lambda: self._method(call.method)(call.request, **self._settings.call_arguments(call.options)),
        )

    def generate(
        self,
        prompt: Prompt,
        *,
        add_special_tokens: bool | None = None,
        parse_special_tokens: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Continue a prompt: text, or token ids. Options have transformers' names; see RequestOptions."""
        return self._unary(
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
    ) -> Stream:
        """Continue a prompt piece by piece."""
        return self._stream(
            calls.stream(
                prompt, options, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
            )
        )

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        add_special_tokens: bool | None = None,
        parse_special_tokens: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Generation | TokenwireError]:
        """Continue many prompts. One outcome per prompt, in order: the answer, or the error it failed with."""
        return self._unary(
            calls.generate_batch(
                prompts, options, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
            )
        )

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        **options: Unpack[RequestOptions],
    ) -> ChatAnswer:
        """Answer a conversation: messages as dicts or ChatMessage, or one string of the user."""
        return self._unary(
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
    ) -> Stream:
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

    def tokenize(
        self,
        text: str,
        *,
        add_special_tokens: bool | None = None,
        parse_special_tokens: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> list[Token]:
        """Split a text into tokens."""
        return self._unary(
            calls.tokenize(
                text, options, add_special_tokens=add_special_tokens, parse_special_tokens=parse_special_tokens
            )
        )

    def detokenize(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None, **options: Unpack[CallOptions]
    ) -> str:
        """Join token ids to a text."""
        return self._unary(calls.detokenize(token_ids, options, skip_special_tokens=skip_special_tokens))

    def render_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> RenderedChat:
        """Render a conversation to the prompt that ``chat`` would use."""
        return self._unary(
            calls.render_chat(
                messages,
                tools,
                options,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        )

    def model(self, **options: Unpack[CallOptions]) -> Model:
        """Describe the served model."""
        return self._unary(calls.model(options))

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server's health is SERVING, at most ``timeout`` seconds; then raise DeadlineExceeded."""
        wait = ReadinessWait(self._settings.target, timeout)
        stub = health_pb2_grpc.HealthStub(self._open_channel())
        while True:
            error: grpc.RpcError | None = None
            watch = stub.Watch(wait.request, timeout=wait.remaining(), wait_for_ready=True)
            try:
                for response in watch:
                    if wait.serves(response):
                        return
            except grpc.RpcError as broken:
                error = broken
            finally:
                watch.cancel()
            wait.check(error)
            time.sleep(min(RETRY_S, wait.remaining()))
