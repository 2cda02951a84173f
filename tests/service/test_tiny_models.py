"""Greedy through the service equals `generate(do_sample=False)`, for every architecture, whatever shares the batch."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_models
from tests.serving import Server, running_server
from tests.service import reference
from tokenwire.client import AsyncClient, Client

FAMILIES = [*tiny_models.PAGED_FAMILIES, *tiny_models.PADDED_FAMILIES]
MAX_NEW_TOKENS = 24


def prompts(count: int, seed: int) -> list[list[int]]:
    """Random prompts of mixed lengths, without special tokens."""
    generator = random.Random(seed)
    return [
        [generator.randrange(4, tiny_models.TOKENIZER_VOCAB_SIZE) for _ in range(generator.randint(1, 70))]
        for _ in range(count)
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("models") / family, family)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> list[list[int]]:
    """transformers' answer to each of the 8 prompts, alone."""
    model = reference.load(checkpoint)
    return [reference.greedy(model, prompt, MAX_NEW_TOKENS) for prompt in prompts(8, 1)]


@pytest.fixture(scope="module")
def family_server(checkpoint: Path) -> Iterator[Server]:
    # A step of 37 tokens cuts the longer prompts into chunks at odd places.
    with running_server(
        checkpoint, ["--max-step-tokens", "37", "--threads", "1", "--kv-cache-memory", "32MiB"]
    ) as running:
        yield running


def test_path_is_the_one_that_fits(family: str, family_server: Server) -> None:
    with Client(family_server.address) as client:
        model = client.model()
    assert model.forward_path == ("paged" if family in tiny_models.PAGED_FAMILIES else "padded")
    assert model.forward_path_reason


def test_alone_equals_transformers(family_server: Server, expected: list[list[int]]) -> None:
    with Client(family_server.address) as client:
        answers = [client.generate(prompt, max_new_tokens=MAX_NEW_TOKENS) for prompt in prompts(8, 1)]
    assert [list(answer.token_ids) for answer in answers] == expected


async def test_in_a_batch_of_eight_equals_transformers(family_server: Server, expected: list[list[int]]) -> None:
    async with AsyncClient(family_server.address) as client:
        answers = await asyncio.gather(
            *(client.generate(prompt, max_new_tokens=MAX_NEW_TOKENS) for prompt in prompts(8, 1))
        )
    assert [list(answer.token_ids) for answer in answers] == expected


async def test_seeded_sampling_does_not_depend_on_the_batch(family_server: Server) -> None:
    options = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 1.3, "top_p": 0.95, "seed": 2**61 + 7}
    async with AsyncClient(family_server.address) as client:
        alone = await client.generate(prompts(1, 2)[0], **options)
        strangers = [client.generate(prompt, max_new_tokens=40, seed=1) for prompt in prompts(15, 3)]
        together, *_ = await asyncio.gather(client.generate(prompts(1, 2)[0], **options), *strangers)
    assert together.token_ids == alone.token_ids
