"""Serving of requests of several rows with a real runner and the Rust sampler, and transformers' beams to compare."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.parity.random_settings import generate_options


@dataclass
class Answers:
    """What one request got, by sequence index."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, Any] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)


@dataclass
class Job:
    """A request: settings are those of GenerationSettings."""

    prompt: list[int]
    settings: dict[str, Any]
    sequence_index: int = 0
    negative_prompt: list[int] | None = None


def serve(
    loaded: Any,
    runner: Any,
    jobs: Sequence[Job],
    *,
    max_running: int = 32,
    max_step_tokens: int = 512,
    draft_runner: Any = None,
) -> tuple[list[Answers], Any]:
    """All jobs at once; their answers, and the engine's counters at the end."""
    from tokenwire._native import Sampler, Tokenizer
    from tokenwire.engine.draft_model import DraftModel
    from tokenwire.engine.engine import Engine
    from tokenwire.engine.generations import beam_search_factory, generation_factory
    from tokenwire.engine.protocol import Submit
    from tokenwire.engine.settings import GenerationSettings

    tokenizer = Tokenizer.from_json(loaded.tokenizer_json)
    draft_model = None
    if draft_runner is not None:
        draft_model = DraftModel(draft_runner, vocab_size=loaded.vocab_size, max_step_tokens=max_step_tokens)
    engine: Any = Engine(
        runner,
        Sampler(),
        generation_factory(tokenizer, loaded.vocab_size),
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        make_beam_search=beam_search_factory(tokenizer, loaded.vocab_size),
        draft_model=draft_model,
    )
    answers = [Answers() for _ in jobs]
    open_sequences = 0
    for request, job in enumerate(jobs):
        settings = GenerationSettings(**job.settings)
        open_sequences += settings.num_return_sequences
        submit = Submit(request, list(job.prompt), settings, job.sequence_index, job.negative_prompt)
        engine.inbox.put((0.0, submit))
    while open_sequences:
        outputs = engine.step()
        assert not outputs.failures
        for delta in outputs.deltas:
            answer, index = answers[delta.request], delta.sequence_index
            answer.tokens.setdefault(index, []).extend(delta.token_ids)
            answer.logprobs.setdefault(index, []).extend(delta.logprobs)
            answer.texts[index] = answer.texts.get(index, "") + delta.text
            if delta.finish is not None:
                answer.finishes[index] = delta.finish
                open_sequences -= 1
    stats = engine.stats()
    assert stats.blocks_free == stats.blocks_total
    return answers, stats


def beams(model: Any, job: Job) -> tuple[list[list[int]], list[float]]:
    """Generated tokens and scores of transformers' own beam search for a job."""
    import torch

    ids = torch.tensor([job.prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        return_dict_in_generate=True,
        output_scores=True,
        **generate_options(job.settings),
    )
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    start = len(job.prompt)
    tokens = [row[start : start + length].tolist() for row, length in zip(output.sequences, lengths, strict=True)]
    return tokens, output.sequences_scores.tolist()
