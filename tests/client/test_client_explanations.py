"""Explanations through both faces of the client, and the command that prints them."""

import asyncio

import pytest
from fake_server import FakeServer

from tokenwire import cli
from tokenwire.client import AsyncClient, Client, ProcessorEffect, TokenExplanation, TokenStanding

BEFORE, AFTER = TokenStanding(0.5, 2, 1.5, 40), TokenStanding(0.625, 2, 0.25, 2)
EFFECTS = (ProcessorEffect("remove_invalid_values", 0, None, BEFORE), ProcessorEffect("top_k", 38, BEFORE, AFTER))
FIRST = TokenExplanation(100, "echo:", None, EFFECTS, AFTER)

TABLES = """\
1. 'echo:' (100)
   processor              removed  left  probability  rank  entropy
   model                              -            -     -        -
   remove_invalid_values        0    40          0.5     2    1.500
   top_k                       38     2        0.625     2    0.250
2. ' a\\n' (101)
   processor              removed  left  probability  rank  entropy
   model                              -            -     -        -
   remove_invalid_values        0    40          0.5     2    1.500
   top_k                       38     2        0.625     2    0.250
"""


def test_explanations_come_with_each_call(server: FakeServer) -> None:
    with Client(server.target) as client:
        unary = client.generate("a", explain=True, do_sample=True, num_return_sequences=2)
        with client.stream("a", explain=True, do_sample=True, num_return_sequences=2) as stream:
            deltas = list(stream)
        assert stream.result() == unary
        chat = client.chat("a", explain=True)
        (batched,) = client.generate_batch(["a"], explain=True)
        plain = client.generate("a")
    assert unary.explanations[0] == FIRST
    assert chat.explanations[0].effects == EFFECTS
    assert [explanation.text for explanation in unary.explanations] == ["echo:", " a"]
    assert [len(sequence.explanations) for sequence in unary.sequences] == [2, 2]
    assert deltas[0].explanations == (FIRST,)
    assert not isinstance(batched, Exception)
    assert batched.explanations == unary.explanations
    assert plain.explanations == ()


def test_explanations_come_with_each_asynchronous_call(server: FakeServer) -> None:
    async def ask() -> None:
        async with AsyncClient(server.target) as client:
            unary = await client.generate("a", explain=True)
            async with client.chat_stream("a", explain=True) as stream:
                assert (await stream.result()).explanations[0].effects == EFFECTS
            assert unary.explanations[0] == FIRST

    asyncio.run(ask())


@pytest.mark.parametrize("flags", [[], ["--num-beams", "2"]])
def test_the_command_prints_a_table_per_token(
    server: FakeServer, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    # The fake server explains the first two tokens of a sequence, beams included.
    assert cli.main(["generate", "a\n b", "--explain", "--address", server.target, *flags]) == 0
    shown = capsys.readouterr().out
    assert shown == f"echo: a\n b\n\n{TABLES}(1 more token: only the first 2 are explained)\n"
    assert server.requests[-1].output.explain


def test_the_command_asks_for_none_unless_told_to(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a", "--address", server.target]) == 0
    assert capsys.readouterr().out == "echo: a\n"
    assert not server.requests[-1].output.HasField("explain")


def test_several_sequences_are_explained_one_after_the_other(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "a", "--explain", "--num-return-sequences", "2", "--do-sample"]
    assert cli.main([*arguments, "--address", server.target]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if line.startswith("---")]
    assert headings == ["--- 2 of 2 ---", "--- 1 of 2, explained ---", "--- 2 of 2, explained ---"]
    assert lines.count("1. 'echo:' (100)") == 2
