"""The main job: SmolLM2-135M-Instruct, unquantized and in NF4, answers token by token as transformers does."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import reference
from tests.serving import ROOT, Server, running_server
from tokenwire.client import AsyncClient, Client
from tokenwire.model.gguf import converted

GGUF = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_NEW_TOKENS = 64
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain recursion to a child.",
    "List three uses of a paperclip.",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "What is 17 plus 25?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Summarize the plot of Cinderella in two sentences.",
    "What does HTTP stand for?",
    "Name four programming languages and one strength of each.",
    "How do plants make food?",
    "Write a polite email that declines an invitation to a meeting on Friday, because of a conflicting appointment.",
    "What is a prime number?",
    "Suggest a name for a cat.",
    "Describe the water cycle.",
    "What are the colours of the rainbow?",
    "Tell me a joke about computers.",
    "How many days are in a leap year, and why do leap years exist at all? Give the rule for century years, too.",
]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", params=["none", "nf4"])
def quantize(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The GGUF file's weights as a folder that transformers loads, bit for bit what the server loads."""
    return converted(GGUF, lambda _: None)


@pytest.fixture(scope="module")
def smollm(quantize: str) -> Iterator[Server]:
    # The cache's size is given, so that the context is whole also where other processes have much of the memory.
    flags = ["--quantize", quantize, "--max-step-tokens", "48", "--max-running", "16", "--kv-cache-memory", "1GiB"]
    with running_server(GGUF, flags) as running:
        yield running


@pytest.fixture(scope="module")
def prompts(smollm: Server) -> list[list[int]]:
    with Client(smollm.address) as client:
        return [list(client.render_chat(question).token_ids) for question in QUESTIONS]


@pytest.fixture(scope="module")
def expected(quantize: str, checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = reference.load(checkpoint, quantize)
    return reference.greedy_batch(model, prompts, MAX_NEW_TOKENS)


def test_model_says_what_it_runs(smollm: Server, quantize: str) -> None:
    with Client(smollm.address) as client:
        model = client.model()
    assert model.quantization == quantize
    assert model.forward_path == "paged"
    assert model.architecture == "LlamaForCausalLM"
    assert model.context_length == 8192
    assert 134_000_000 < model.parameter_count < 136_000_000


async def test_in_batches_of_eight(smollm: Server, prompts: list[list[int]], expected: list[list[int]]) -> None:
    """Eight at a time, as each one ends the next begins: mixed lengths, prompts cut into chunks of 48 tokens."""
    room = asyncio.Semaphore(8)
    async with AsyncClient(smollm.address) as client:

        async def answer(prompt: list[int]) -> list[int]:
            async with room:
                return list((await client.generate(prompt, max_new_tokens=MAX_NEW_TOKENS)).token_ids)

        answers = await asyncio.gather(*map(answer, prompts))
    assert answers == expected


def test_alone(smollm: Server, prompts: list[list[int]], expected: list[list[int]]) -> None:
    with Client(smollm.address) as client:
        answers = [list(client.generate(prompt, max_new_tokens=MAX_NEW_TOKENS).token_ids) for prompt in prompts]
    assert answers == expected


def test_a_real_answer(smollm: Server) -> None:
    with Client(smollm.address) as client, client.chat_stream(QUESTIONS[0], max_new_tokens=40) as stream:
        text = "".join(delta.text for delta in stream)
    assert "Paris" in text
    assert stream.finish.reason == "eos"
