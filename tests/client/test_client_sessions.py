"""Conversations that remember what was said, and forget what was not answered."""

import pytest
from fake_server import FakeServer, item_status

import tokenwire.client as tw
from tokenwire.client import AsyncChatSession, AsyncClient, ChatMessage, ChatSession, Client

SYSTEM = {"role": "system", "content": "Be brief."}


def said(request: object) -> list[str]:
    return [each.content[0].text for each in request.conversation.messages]  # type: ignore[attr-defined]


def test_every_turn_has_what_was_said_before(server: FakeServer) -> None:
    with Client(server.target) as client:
        session = ChatSession(client, [SYSTEM], max_new_tokens=5)
        assert session.say("one").text == "you said: one"
        with session.stream("two", max_new_tokens=6) as stream:
            assert stream.text() == "you said: two"
            stream.result()  # what was read to its end already joins once
        session.say("three")
    assert [said(request) for request in server.requests] == [
        ["Be brief.", "one"],
        ["Be brief.", "one", "you said: one", "two"],
        ["Be brief.", "one", "you said: one", "two", "you said: two", "three"],
    ]
    assert [request.generation_config.max_new_tokens for request in server.requests] == [5, 6, 5]
    assert session.messages[:3] == (SYSTEM, ChatMessage("user", "one"), ChatMessage("assistant", "you said: one"))


async def test_the_asynchronous_one_does_the_same(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        session = AsyncChatSession(client)
        await session.say("one")
        async with session.stream("two") as stream:
            assert await stream.text() == "you said: two"
    assert [each.content for each in session.messages if isinstance(each, ChatMessage)] == [
        "one",
        "you said: one",
        "two",
        "you said: two",
    ]


def test_a_turn_without_an_answer_is_forgotten(server: FakeServer) -> None:
    with Client(server.target, retries=0) as client:
        session = ChatSession(client)
        server.failure, server.failures_left = item_status("UNAVAILABLE", "loading"), 1
        with pytest.raises(tw.Unavailable):
            session.say("one")
        server.hold(after=1)
        with session.stream("two") as stream:
            next(stream)
        assert session.messages == ()


def test_a_string_is_no_beginning_of_a_session(server: FakeServer) -> None:
    with Client(server.target) as client, pytest.raises(TypeError, match="messages of a session"):
        ChatSession(client, "hello")
