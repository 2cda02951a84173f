"""Explanations of the whole line, over real gRPC on a tiny model: they change no answer, and they are true."""

import asyncio
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Server, running_server
from tokenwire._native import MAX_EXPLAINED_TOKENS
from tokenwire.client import (
    AsyncClient,
    Client,
    Generation,
    GreenListWatermark,
    InvalidArgument,
    SynthIdTextWatermark,
    TokenExplanation,
)

PROMPT = "the quick brown fox the quick brown"
STRATEGIES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 6]},
    {"temperature": 1.5, "top_k": 20},
    {"do_sample": True, "top_p": 0.8, "min_p": 0.01, "num_return_sequences": 3},
    {"guidance_scale": 2.0, "negative_prompt": "lazy dog"},
    {"guidance_scale": 1.5, "temperature": 2.0, "num_return_sequences": 2},
    {"prompt_lookup_num_tokens": 6},
    {"prompt_lookup_num_tokens": 3, "temperature": 0.7, "presence_penalty": 1.0},
    {"num_assistant_tokens": 4},
    {"num_assistant_tokens": 5, "temperature": 1.2, "typical_p": 0.9},
    {"watermarking_config": GreenListWatermark(), "temperature": 1.0},
    {"watermarking_config": SynthIdTextWatermark(ngram_len=3, keys=(1, 2)), "temperature": 1.0, "top_k": 30},
    {"token_healing": True, "min_new_tokens": 5, "forced_eos_token_id": [2]},
    {"remove_invalid_values": True, "renormalize_logits": True, "logit_bias": {300: 3.0}},
]


@pytest.fixture(scope="module")
def explaining_server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a draft model, which drafts for those that ask for it, and room for more tokens than are explained."""
    folder = tmp_path_factory.mktemp("models") / "longer"
    shutil.copytree(tiny_llama, folder)
    # Rotary positions have no weights: nothing else knows how long the context is.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    flags = ["--draft-model", str(folder), "--num-assistant-tokens", "0", "--kv-cache-memory", "32MiB"]
    with running_server(folder, [*flags, "--threads", "1"]) as running:
        yield running


async def answer(client: AsyncClient, options: dict[str, Any], seed: int, **output: Any) -> Generation:
    negative = {} if "negative_prompt" not in options else {"negative_prompt": options["negative_prompt"]}
    config = {name: value for name, value in options.items() if name != "negative_prompt"}
    drawn = {"seed": seed} if set(config) & {"temperature", "do_sample"} else {}
    return await client.generate(PROMPT, max_new_tokens=24, **negative, **config, **drawn, **output)


async def test_explaining_changes_no_answer(explaining_server: Server) -> None:
    """Every strategy with several seeds, with and without explanations, in one batch for each kind of rows."""
    answers = []
    async with AsyncClient(explaining_server.address) as client:
        # Beside rows that are chosen together nothing is drafted.
        for is_guided in (False, True):
            chosen = [options for options in STRATEGIES if ("guidance_scale" in options) == is_guided]
            cases = [(options, seed, explain) for options in chosen for seed in range(4) for explain in (False, True)]
            answers += await asyncio.gather(
                *(answer(client, options, seed, explain=explain) for options, seed, explain in cases)
            )
    for plain, explained in zip(answers[::2], answers[1::2], strict=True):
        assert [each.token_ids for each in explained.sequences] == [each.token_ids for each in plain.sequences]
        assert explained.texts == plain.texts
        for sequence in plain.sequences:
            assert sequence.explanations == ()
        for sequence in explained.sequences:
            assert [explanation.token_id for explanation in sequence.explanations] == list(sequence.token_ids)
    assert any(finish.usage.accepted_draft_token_count for each in answers[1::2] for finish in each.finishes)


async def test_probabilities_are_those_that_logprobs_tell(explaining_server: Server) -> None:
    async with AsyncClient(explaining_server.address) as client:
        for options in STRATEGIES:
            for processed in (False, True):
                explained = await answer(client, options, 5, explain=True, logprobs=0, processed_logprobs=processed)
                for sequence in explained.sequences:
                    for explanation, position in zip(sequence.explanations, sequence.logprobs, strict=True):
                        standing = explanation.outcome if processed else explanation.model
                        assert standing is not None
                        assert standing.probability == pytest.approx(
                            math.exp(position.chosen.logprob), rel=1e-3, abs=1e-30
                        )
                        assert standing.rank == position.chosen.rank


async def test_drafted_tokens_have_their_own_explanations(explaining_server: Server) -> None:
    """Those of the same tokens without drafts, but for the rounding of other batches."""
    options = {"repetition_penalty": 1.1, "temperature": 1.3}
    async with AsyncClient(explaining_server.address) as client:
        plain = await answer(client, options, 2, explain=True)
        for drafts in ({"num_assistant_tokens": 6}, {"prompt_lookup_num_tokens": 4}):
            drafted = await answer(client, {**options, **drafts}, 2, explain=True)
            assert drafted.token_ids == plain.token_ids
            assert names_of(drafted.explanations) == names_of(plain.explanations)
            for own, wanted in zip(drafted.explanations, plain.explanations, strict=True):
                assert own.outcome is not None
                assert wanted.outcome is not None
                assert own.outcome.probability == pytest.approx(wanted.outcome.probability, rel=1e-2)
                assert own.outcome.entropy == pytest.approx(wanted.outcome.entropy, rel=1e-2)


def names_of(explanations: tuple[TokenExplanation, ...]) -> list[list[str]]:
    return [[effect.name for effect in explanation.effects] for explanation in explanations]


def test_the_steps_are_named_in_their_order(explaining_server: Server) -> None:
    with Client(explaining_server.address) as client:
        explained = client.generate(
            PROMPT,
            max_new_tokens=6,
            explain=True,
            seed=1,
            repetition_penalty=1.2,
            presence_penalty=0.5,
            temperature=0.8,
            top_k=12,
            begin_suppress_tokens=[7],
            negative_prompt="lazy",
            guidance_scale=1.5,
        )
        greedy = client.generate(PROMPT, max_new_tokens=4, explain=True)
    first, *others = names_of(explained.explanations)
    assert first == ["guidance_scale", "repetition_penalty", "begin_suppress_tokens", "temperature", "top_k"]
    for later in others:
        expected = ["guidance_scale", "repetition_penalty", "presence_and_frequency_penalty", "temperature", "top_k"]
        assert later == expected
    for explanation in explained.explanations:
        assert explanation.outcome is not None
        assert explanation.outcome.token_count == 12
    assert names_of(greedy.explanations) == [[]] * 4
    for explanation in greedy.explanations:
        assert explanation.model == explanation.outcome
        assert explanation.outcome is not None
        assert explanation.outcome.rank == 1


async def test_the_first_tokens_of_each_sequence(explaining_server: Server) -> None:
    length = MAX_EXPLAINED_TOKENS + 44
    options: dict[str, Any] = {"max_new_tokens": length, "eos_token_id": [], "seed": 3, "temperature": 1.5}
    async with AsyncClient(explaining_server.address) as client:
        unary = await client.generate(PROMPT, explain=True, num_return_sequences=2, **options)
        async with client.stream(PROMPT, explain=True, token_details=True, **options) as stream:
            streamed = await stream.result()
        drafted = await client.generate(
            PROMPT, explain=True, max_new_tokens=length, eos_token_id=[], num_assistant_tokens=7
        )
    for sequence in (*unary.sequences, *streamed.sequences, *drafted.sequences):
        assert len(sequence.token_ids) == length
        assert len(sequence.explanations) == MAX_EXPLAINED_TOKENS
        assert [explanation.token_id for explanation in sequence.explanations] == list(
            sequence.token_ids[:MAX_EXPLAINED_TOKENS]
        )
    assert names_of(streamed.explanations) == names_of(unary.explanations)
    for own, wanted in zip(streamed.explanations, unary.explanations, strict=True):
        assert own.outcome is not None
        assert wanted.outcome is not None
        # Alone and beside another row: within the rounding of other batches.
        assert own.outcome.probability == pytest.approx(wanted.outcome.probability, rel=1e-2)


def test_chats_and_batches(explaining_server: Server) -> None:
    with Client(explaining_server.address) as client:
        chat = client.chat("hello", explain=True, max_new_tokens=5, top_k=3, seed=1)
        items = client.generate_batch([PROMPT, "hello"], explain=True, max_new_tokens=5)
    assert len(chat.explanations) == len(chat.token_ids)
    for item in items:
        assert isinstance(item, Generation)
        assert len(item.explanations) == len(item.token_ids)


def test_beams_are_refused_by_name(explaining_server: Server) -> None:
    with Client(explaining_server.address) as client, pytest.raises(InvalidArgument) as refusal:
        client.generate(PROMPT, explain=True, num_beams=2)
    (violation,) = refusal.value.details.violations
    assert (violation.field, violation.description) == (
        "output.explain",
        "must be false with num_beams above 1, got true",
    )
