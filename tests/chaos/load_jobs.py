"""What the load of the soak asks for: requests of every kind, drawn from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2

NUM_PROMPTS = 40
LONGEST_PROMPT = 120
LONGEST_ANSWER = 60
FIRST_ID, LAST_ID = 4, 499
"""Ids of plain tokens of `tiny_models`."""


@dataclass(frozen=True)
class Job:
    """A greedy request, by which the answers of a busy server are compared with those of an idle one."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int

    def request(self, **output: Any) -> generation_service_pb2.GenerateRequest:
        return request(self.prompt_ids, output=output, max_new_tokens=self.max_new_tokens, do_sample=False)


def request(prompt_ids: Sequence[int], *, output: Any = None, **config: Any) -> generation_service_pb2.GenerateRequest:
    return generation_service_pb2.GenerateRequest(
        prompt=generation_service_pb2.Prompt(token_ids=prompt_ids),
        generation_config=generation_pb2.GenerationConfig(**config),
        output=generation_pb2.OutputOptions(**(output or {})),
    )


def jobs(seed: int) -> list[Job]:
    generator = random.Random(seed)
    return [
        Job(
            tuple(generator.randint(FIRST_ID, LAST_ID) for _ in range(generator.randint(1, LONGEST_PROMPT))),
            generator.randint(1, LONGEST_ANSWER),
        )
        for _ in range(NUM_PROMPTS)
    ]


def chat(generator: random.Random) -> generation_service_pb2.ChatRequest:
    text = "What is the capital of France? " * generator.randint(1, 3)
    message = chat_pb2.ChatMessage(role="user", content=[chat_pb2.ContentPart(text=text)])
    return generation_service_pb2.ChatRequest(
        conversation=chat_pb2.Conversation(messages=[message]),
        generation_config=generation_pb2.GenerationConfig(max_new_tokens=generator.randint(1, 20)),
    )


def sampled(generator: random.Random) -> generation_service_pb2.GenerateRequest:
    """Two sequences, drawn, with what can be told of them."""
    prompt = [generator.randint(FIRST_ID, LAST_ID) for _ in range(10)]
    output = {"logprobs": 5, "explain": True}
    return request(prompt, output=output, max_new_tokens=20, do_sample=True, num_return_sequences=2, top_k=20)


def beams(generator: random.Random) -> generation_service_pb2.GenerateRequest:
    prompt = [generator.randint(FIRST_ID, LAST_ID) for _ in range(10)]
    return request(prompt, max_new_tokens=10, num_beams=3, do_sample=False)


def large() -> generation_service_pb2.GenerateRequest:
    """An answer that no window of 64 KiB takes in."""
    return request(
        [FIRST_ID], output={"logprobs": 20}, max_new_tokens=240, min_new_tokens=240, do_sample=True,
        num_return_sequences=4,
    )  # fmt: skip


def bad(generator: random.Random) -> generation_service_pb2.GenerateRequest:
    """One of the many ways to ask for what cannot be had; the status is INVALID_ARGUMENT."""
    return generator.choice(
        (
            request([FIRST_ID], temperature=-1.0),
            request([FIRST_ID], do_sample=True, top_p=2.0),
            request([], max_new_tokens=1),
            request([10**6], max_new_tokens=1),
            request([FIRST_ID], max_new_tokens=10**6),
            request([FIRST_ID], num_beams=10**6),
            request([FIRST_ID], output={"logprobs": 10**6}),
            request(
                [FIRST_ID], bad_words_ids=generation_pb2.TokenSequences(sequences=[generation_pb2.TokenIds(ids=[])])
            ),
        )
    )
