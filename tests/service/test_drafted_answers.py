"""A server with a draft model: the answers of one without, faster, and what it says about the drafts."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import tiny_models
from tests.service import reference
from tests.serving import Server, running_server
from tokenwire.client import AsyncClient, Client

MAX_NEW_TOKENS = 24


def prompts(count: int) -> list[list[int]]:
    """Random prompts of mixed lengths, in which n-grams come again, without special tokens."""
    generator = random.Random(4)
    phrases = [
        [generator.randrange(4, tiny_models.TOKENIZER_VOCAB_SIZE) for _ in range(generator.randint(1, 20))]
        for _ in range(count)
    ]
    return [3 * phrase for phrase in phrases]


@pytest.fixture(scope="module")
def drafting_server(tiny_llama: Path) -> Iterator[Server]:
    """Its own weights draft for it, so what is drafted greedily comes true."""
    flags = ["--draft-model", str(tiny_llama), "--num-assistant-tokens", "4", "--max-step-tokens", "128"]
    with running_server(tiny_llama, [*flags, "--threads", "1", "--kv-cache-memory", "32MiB"]) as running:
        yield running


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> list[list[int]]:
    model = reference.load(tiny_llama)
    return [reference.greedy(model, prompt, MAX_NEW_TOKENS) for prompt in prompts(6)]


def test_the_model_is_named(drafting_server: Server, tiny_llama: Path) -> None:
    with Client(drafting_server.address) as client:
        assert client.model().draft_model == tiny_llama.name


async def test_every_kind_of_drafts_in_one_batch_equals_transformers(
    drafting_server: Server, expected: list[list[int]]
) -> None:
    kinds = [{}, {"num_assistant_tokens": 0}, {"num_assistant_tokens": 9}, {"prompt_lookup_num_tokens": 5}]
    async with AsyncClient(drafting_server.address) as client:
        answers = await asyncio.gather(
            *(
                client.generate(prompt, max_new_tokens=MAX_NEW_TOKENS, **kind)  # type: ignore[arg-type]
                for prompt in prompts(6)
                for kind in kinds
            )
        )
    for number, answer in enumerate(answers):
        prompt, kind = divmod(number, len(kinds))
        assert list(answer.token_ids) == expected[prompt]
        usage = answer.finish.usage
        if kind == 1:
            assert usage.draft_token_count == 0
        elif kind != 3:
            assert usage.draft_token_count == usage.accepted_draft_token_count
    # While prompts fill the passes there is no room for drafts, behind them there is.
    assert sum(answer.finish.usage.accepted_draft_token_count for answer in answers) > MAX_NEW_TOKENS


async def test_drawn_answers_are_those_without_drafts(drafting_server: Server) -> None:
    options = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0.6, "top_p": 0.95, "seed": 5}
    async with AsyncClient(drafting_server.address) as client:
        for prompt in prompts(4):
            plain = await client.generate(prompt, num_assistant_tokens=0, **options)  # type: ignore[arg-type]
            drafted = await client.generate(prompt, **options)  # type: ignore[arg-type]
            looked_up = await client.generate(prompt, prompt_lookup_num_tokens=6, **options)  # type: ignore[arg-type]
            assert plain.token_ids == drafted.token_ids == looked_up.token_ids
            assert plain.text == drafted.text == looked_up.text
            assert plain.finish.usage.draft_token_count == 0
            assert drafted.finish.usage.draft_token_count > 0 or len(drafted.token_ids) < 3


def test_prompt_log_probabilities_are_log_softmax(drafting_server: Server, tiny_llama: Path) -> None:
    model = reference.load(tiny_llama)
    with Client(drafting_server.address) as client:
        for prompt in prompts(4):
            answer = client.generate(prompt, max_new_tokens=2, prompt_logprobs=3)
            with torch.inference_mode():
                rows = torch.log_softmax(model(input_ids=torch.tensor([prompt])).logits[0, :-1], -1)
            assert len(answer.prompt_logprobs) == len(prompt) - 1
            for entry, row, token in zip(answer.prompt_logprobs, rows, prompt[1:], strict=True):
                assert entry.chosen.token_id == token
                assert entry.chosen.logprob == pytest.approx(float(row[token]), abs=1e-4)
                assert entry.chosen.rank == int((row > row[token]).sum()) + 1
                assert [top.token_id for top in entry.top] == row.topk(3).indices.tolist()
