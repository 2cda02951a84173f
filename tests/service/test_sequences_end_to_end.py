"""Several sequences, beams and output details of the whole line, over real gRPC on a tiny model."""

import math
from typing import Any

import pytest

from tests import tiny_models
from tests.serving import Server
from tokenwire.client import Client, Generation

SAMPLED: dict[str, Any] = {"num_return_sequences": 3, "temperature": 1.5, "seed": 5, "max_new_tokens": 24}
PROMPT = "the quick brown fox"


def test_streams_of_several_sequences_join_to_the_unary_texts(server: Server) -> None:
    with Client(server.address) as client:
        unary = client.generate(PROMPT, token_details=True, logprobs=2, **SAMPLED)
        with client.stream(PROMPT, token_details=True, logprobs=2, **SAMPLED) as stream:
            streamed = stream.result()
        alone = client.generate(PROMPT, **(SAMPLED | {"num_return_sequences": 1}))
    assert [(each.text, each.token_ids, each.tokens) for each in streamed.sequences] == [
        (each.text, each.token_ids, each.tokens) for each in unary.sequences
    ]
    assert len(set(unary.texts)) > 1
    # The draws of a sequence depend on the seed and its index alone.
    assert alone.token_ids == unary.token_ids


def check_details(answer: Generation, offset: int) -> None:
    for sequence in answer.sequences:
        data = sequence.text.encode()
        ends = [offset, *(token.text_range[1] for token in sequence.tokens)]
        assert [token.text_range[0] for token in sequence.tokens] == ends[:-1]
        assert ends[-1] == len(data)
        assert [token.id for token in sequence.tokens] == list(sequence.token_ids)
        if "\ufffd" not in sequence.text and sequence.finish.stop_string is None:
            assert b"".join(token.bytes for token in sequence.tokens) == data[offset:]


@pytest.mark.parametrize(
    "options", [{}, {"eos_token_id": []}, {"stop_strings": ["e", "th"]}, {"skip_special_tokens": False}]
)
@pytest.mark.parametrize("echo", [False, True])
def test_token_ranges_tile_the_text(server: Server, options: dict[str, Any], echo: bool) -> None:
    with Client(server.address) as client:
        answer = client.generate(PROMPT, token_details=True, echo=echo, **SAMPLED, **options)
    check_details(answer, len(PROMPT) if echo else 0)
    if echo:
        assert all(text.startswith(PROMPT) for text in answer.texts)


def test_beams(server: Server) -> None:
    with Client(server.address) as client:
        answer = client.generate(PROMPT, num_beams=4, num_return_sequences=3, max_new_tokens=8, prompt_logprobs=0)
    scores = [finish.sequence_score for finish in answer.finishes]
    assert None not in scores
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert len({sequence.token_ids for sequence in answer.sequences}) == 3
    assert len(answer.prompt_logprobs) == answer.start.prompt_token_count - 1


def test_prompt_logprobs_and_ranks(server: Server) -> None:
    ids = [5, 9, 11, 6]
    with Client(server.address) as client:
        answer = client.generate(ids, max_new_tokens=4, prompt_logprobs=2, logprobs=2)
    assert [position.chosen.token_id for position in answer.prompt_logprobs] == ids[1:]
    for position in (*answer.prompt_logprobs, *answer.logprobs):
        assert 1 <= position.chosen.rank <= tiny_models.MODEL_VOCAB_SIZE
        assert -math.inf < position.chosen.logprob <= 0
        assert len(position.top) == 2
    # Greedy: the most likely token is the one chosen.
    assert all(position.chosen.rank == 1 for position in answer.logprobs)


def test_settings_in_force_sent_back_give_the_same_answer(server: Server) -> None:
    with Client(server.address) as client:
        first = client.generate(PROMPT, temperature=1.2, num_return_sequences=2, no_repeat_ngram_size=2)
        again = client.generate(PROMPT, **first.start.generation_config)
    assert again.sequences == tuple(
        each.__class__(each.text, each.token_ids, each.logprobs, other.finish, each.tokens)
        for each, other in zip(first.sequences, again.sequences, strict=True)
    )
    assert again.start.generation_config == first.start.generation_config


def test_guidance_and_lookup_are_taken(server: Server) -> None:
    with Client(server.address) as client:
        plain = client.generate(PROMPT, max_new_tokens=12)
        guided = client.generate(PROMPT, max_new_tokens=12, guidance_scale=3.0, negative_prompt="the lazy dog")
        lookup = client.generate(PROMPT, max_new_tokens=12, prompt_lookup_num_tokens=4)
    assert lookup.token_ids == plain.token_ids
    assert guided.text
