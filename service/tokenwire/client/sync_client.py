"""The blocking face of the client: the same calls as `async_client`, over gRPC's blocking channel."""

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from tokenwire.client import calls, results, types
from tokenwire.client.calls import UnaryCall
from tokenwire.client.channel import DEFAULT_TARGET, Connection, ConnectionOptions
from tokenwire.client.errors import TokenwireError, from_rpc_error
from tokenwire.client.health import RETRY_S, ReadinessWait
from tokenwire.client.streams import StreamBase

T = TypeVar("T")


class Stream(StreamBase):
    """A running answer: ``with client.stream(…) as stream: for delta in stream: …``.

    Entering waits until the server has accepted the request and raises what it refused; iterating gives the deltas;
    leaving the context cancels the call if it is still running. ``cancel`` may be called from any thread.
    """

    def __enter__(self) -> Self:
        self._open()
        try:
            self._begin(self._read())
        except BaseException:
            # Whoever is interrupted here never leaves the context.
            self._call.cancel()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened().cancel()
        forgetting = self._forget()
        if forgetting is not None:
            with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
                forgetting.result()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> results.Delta:
        while (message := self._read()) is not None:
            if (delta := self._take(message)) is not None:
                return delta
        self._check_finish()
        raise StopIteration

    def _read(self) -> Any:
        while True:
            try:
                return next(self._opened(), None)
            except grpc.RpcError as error:
                pause_s = self._pause_before_resuming(self._error(error))
            time.sleep(pause_s)
            self._reopen()

    def text(self) -> str:
        """Read to the end; return the whole text, of several the first."""
        return self.result().text

    def result(self) -> results.Generation:
        """Read to the end; return the whole answer."""
        for _ in self:
            pass
        return self._result()


class Client:
    """Calls a tokenwire server and waits for the answers.

    Use it as a context manager or ``close`` it. Threads may share one client. Every method raises a subclass of
    TokenwireError when its call fails.

    Keyword arguments are those of ChannelSettings: timeout, metadata, api_key, tls, root_certificates,
    client_certificate, client_key, keepalive and retries.
    """

    def __init__(self, target: str = DEFAULT_TARGET, **settings: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection(grpc, target, settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls are cancelled. Idempotent."""
        if self._connection.opened:
            self._connection.channel.close()

    def _unary(self, call: UnaryCall[T]) -> T:
        attempts = self._connection.attempts(call)
        while True:
            try:
                reply = self._connection.start(call, timeout=attempts.timeout)
            except grpc.RpcError as error:
                pause_s = attempts.pause_after(from_rpc_error(error, target=self._connection.target))
            else:
                return call.parse(reply)
            time.sleep(pause_s)

    def generate(self, prompt: types.Prompt, **options: Unpack[types.PromptOptions]) -> results.Generation:
        """Continue a prompt: text, or token ids. Options have transformers' names; see PromptOptions."""
        return self._unary(calls.generate(prompt, options))

    def stream(self, prompt: types.Prompt, **options: Unpack[types.PromptOptions]) -> Stream:
        """Continue a prompt piece by piece."""
        return Stream(self._connection, calls.stream(prompt, options))

    def generate_batch(
        self, prompts: Sequence[types.Prompt], **options: Unpack[types.BatchOptions]
    ) -> list[results.Generation | TokenwireError]:
        """Continue many prompts. One outcome per prompt, in order: the answer, or the error it failed with."""
        return self._unary(calls.generate_batch(prompts, options))

    def chat(self, messages: types.Messages, **options: Unpack[types.ChatOptions]) -> results.ChatAnswer:
        """Answer a conversation: messages as dicts or ChatMessage, or one string of the user."""
        return self._unary(calls.chat(messages, options))

    def chat_stream(self, messages: types.Messages, **options: Unpack[types.ChatOptions]) -> Stream:
        """Answer a conversation piece by piece."""
        return Stream(self._connection, calls.chat_stream(messages, options))

    def resume(
        self, request_id: str, positions: Sequence[types.StreamPosition] = (), **options: Unpack[types.ResumeOptions]
    ) -> Stream:
        """Go on with a resumable stream behind ``positions``. Default: from its beginning.

        ``text_so_far`` and ``result`` lack what lies before them. Entering raises NotFound where it cannot be resumed.
        """
        return Stream(self._connection, calls.resume(request_id, positions, options), tuple(positions))

    def tokenize(self, text: str, **options: Unpack[types.TokenizeOptions]) -> list[types.Token]:
        """Split a text into tokens."""
        return self._unary(calls.tokenize(text, options))

    def detokenize(self, token_ids: Sequence[int], **options: Unpack[types.DetokenizeOptions]) -> str:
        """Join token ids to a text."""
        return self._unary(calls.detokenize(token_ids, options))

    def render_chat(self, messages: types.Messages, **options: Unpack[types.RenderOptions]) -> types.RenderedChat:
        """Render a conversation to the prompt that ``chat`` would use."""
        return self._unary(calls.render_chat(messages, options))

    def model(self, **options: Unpack[types.CallOptions]) -> types.Model:
        """Describe the served model."""
        return self._unary(calls.model(options))

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server's health is SERVING, at most ``timeout`` seconds; then raise DeadlineExceeded."""
        wait = ReadinessWait(self._connection, timeout)
        while True:
            error: grpc.RpcError | None = None
            watch = wait.open()
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
