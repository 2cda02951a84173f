"""Conversations that remember: what was said goes along with every turn."""

from collections.abc import Mapping
from typing import Any, Unpack

from tokenwire.client import results, types
from tokenwire.client.async_client import AsyncClient, AsyncStream
from tokenwire.client.streams import StreamBase
from tokenwire.client.sync_client import Client, Stream


class _Conversation:
    """The part of a session that needs no I/O."""

    def __init__(self, messages: types.Messages, options: Mapping[str, Any]) -> None:
        if isinstance(messages, str):
            raise TypeError(
                "messages of a session are a list, for example of the system's; `say` takes what the user says"
            )
        self._messages = list(messages)
        self._options = dict(options)

    @property
    def messages(self) -> tuple[types.Message, ...]:
        """The conversation so far, oldest message first."""
        return tuple(self._messages)

    def _turn(self, text: str, options: Mapping[str, Any]) -> tuple[types.ChatMessage, list[types.Message], Any]:
        question = types.ChatMessage("user", text)
        return question, [*self._messages, question], {**self._options, **options}

    def _remember_when_complete(self, stream: StreamBase, question: types.ChatMessage) -> None:
        def remember() -> None:
            self._messages += [question, types.ChatMessage("assistant", stream.text_so_far)]

        stream.completed = remember


class ChatSession(_Conversation):
    """A conversation that remembers.

    A question and its answer join it when the answer is complete: a turn that fails or is given up leaves it as it
    was. ``messages`` begin it, such as the system's; ``options`` are for every turn, and a turn's own win. One turn at
    a time.
    """

    def __init__(self, client: Client, messages: types.Messages = (), **options: Unpack[types.ChatOptions]) -> None:
        super().__init__(messages, options)
        self._client = client

    def say(self, text: str, **options: Unpack[types.ChatOptions]) -> results.ChatAnswer:
        """Send a message of the user and wait for the answer."""
        question, messages, settings = self._turn(text, options)
        answer = self._client.chat(messages, **settings)
        self._messages += [question, answer.message]
        return answer

    def stream(self, text: str, **options: Unpack[types.ChatOptions]) -> Stream:
        """Send a message of the user and read the answer piece by piece."""
        question, messages, settings = self._turn(text, options)
        stream = self._client.chat_stream(messages, **settings)
        self._remember_when_complete(stream, question)
        return stream


class AsyncChatSession(_Conversation):
    """`ChatSession` for asyncio."""

    def __init__(
        self, client: AsyncClient, messages: types.Messages = (), **options: Unpack[types.ChatOptions]
    ) -> None:
        super().__init__(messages, options)
        self._client = client

    async def say(self, text: str, **options: Unpack[types.ChatOptions]) -> results.ChatAnswer:
        """Send a message of the user and wait for the answer."""
        question, messages, settings = self._turn(text, options)
        answer = await self._client.chat(messages, **settings)
        self._messages += [question, answer.message]
        return answer

    def stream(self, text: str, **options: Unpack[types.ChatOptions]) -> AsyncStream:
        """Send a message of the user and read the answer piece by piece."""
        question, messages, settings = self._turn(text, options)
        stream = self._client.chat_stream(messages, **settings)
        self._remember_when_complete(stream, question)
        return stream
