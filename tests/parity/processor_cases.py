"""One row of logits with its settings: what transformers makes of it, what we do, and whether that is the same."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import HealthCheck, assume, currently_in_test_context, event, settings
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process
from transformers.generation.utils import GenerationMixin

from tokenwire import _native

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
rows_profile = settings(
    max_examples=20_000 if DEEP else 2000,
    deadline=None,
    derandomize=not DEEP,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
each_profile = settings(rows_profile, max_examples=500 if DEEP else 40)

Row = NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Case:
    """One row, what came before it, and the settings; the names are those of SamplingParams and StoppingParams."""

    logits: Row
    prompt: tuple[int, ...] = (0,)
    generated: tuple[int, ...] = ()
    unconditional: Row | None = None
    """The row without the prompt, with a guidance_scale other than 1."""
    beams: bool = False
    """Whether the filters leave as much as beam search needs."""

    do_sample: bool = True
    temperature: float = 1.0
    top_h: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    renormalize_logits: bool = False
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    forced_bos_token_id: int | None = None
    remove_invalid_values: bool = False
    guidance_scale: float = 1.0

    eos_token_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    min_length: int = 0
    forced_eos_token_ids: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    max_new_tokens: int = 10**6

    def __repr__(self) -> str:
        """Only what is not as it always is."""
        values = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return f"Case({', '.join(f'{name}={value!r}' for name, value, default in values if value is not default)})"


_NAMES = [field.name for field in fields(Case)]
SAMPLING = _NAMES[_NAMES.index("do_sample") : _NAMES.index("eos_token_ids")]
STOPPING = _NAMES[_NAMES.index("eos_token_ids") :]
FILTERS = ("top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Those that may hang on the last bits of a sum."""


def require(condition: bool) -> None:
    """Rejects an example where the condition does not hold; a case that was written by hand must meet it."""
    if currently_in_test_context():
        assume(condition)
    assert condition


# ---- transformers ------------------------------------------------------------------------------------------------


class LogitBias(LogitsProcessor):  # type: ignore[misc]
    """A setting that transformers does not have, by the formula of generation.proto."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, bias in self.case.logit_bias:
            scores[:, token] += np.float32(bias)
        return scores


class PresenceAndFrequency(LogitsProcessor):  # type: ignore[misc]
    """Two more of them."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token in set(self.case.generated):
            times = np.float32(self.case.generated.count(token))
            scores[:, token] -= np.float32(self.case.presence_penalty) + np.float32(self.case.frequency_penalty) * times
        return scores


class Model(GenerationMixin):  # type: ignore[misc]
    """As much of a model as choosing the processors takes; as a function, the model without its prompt."""

    def __init__(self, case: Case) -> None:
        self.config = SimpleNamespace(
            is_encoder_decoder=False, get_text_config=lambda: SimpleNamespace(vocab_size=len(case.logits))
        )
        self.unconditional = case.unconditional

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        assert self.unconditional is not None
        logits = torch.from_numpy(self.unconditional.copy()).expand(len(input_ids), 1, -1)
        return SimpleNamespace(logits=logits, get=lambda *_: None)


class TopK(NamedTuple):
    values: torch.Tensor
    indices: torch.Tensor


_sort, _softmax_of = torch.sort, torch.softmax


def stable_sort(*arguments: Any, **options: Any) -> Any:
    """torch's default sort puts ties in any order; we promise the stable one."""
    return _sort(*arguments, **options, stable=True)


def stable_topk(scores: torch.Tensor, k: int, dim: int = -1, **_: Any) -> TopK:
    """The k largest, lower ids first among equals, where torch leaves the order open."""
    values, indices = _sort(scores, dim=dim, descending=True, stable=True)
    return TopK(values[..., :k], indices[..., :k])


def _softmax(scores: torch.Tensor, dim: int = -1, **_: Any) -> torch.Tensor:
    return _softmax_of(scores.double(), dim).to(scores.dtype)


def _log_softmax(scores: torch.Tensor, dim: int = -1, **_: Any) -> torch.Tensor:
    top = scores.amax(dim, keepdim=True)
    total = (scores - top).double().exp().sum(dim, keepdim=True)
    return scores - top - total.log().to(scores.dtype)


def _of_doubles(reduction: Any) -> Any:
    def reduced(values: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        result: torch.Tensor = reduction(values.double(), *arguments, **options)
        return result.to(values.dtype)

    return reduced


@contextmanager
def defined_rounding() -> Iterator[None]:
    """Makes torch's sorts stable and adds up its float32 sums in float64.

    How torch adds up a row depends on the processor's vectors and on the threads. Among near ties the last bit decides
    what a filter keeps, so that a case would pass on one machine and fail on the next.
    """
    with ExitStack() as patches:
        for target, replacement in {
            "torch.sort": stable_sort,
            "torch.topk": stable_topk,
            "torch.softmax": _softmax,
            "torch.nn.functional.softmax": _softmax,
            "torch.Tensor.softmax": _softmax,
            "torch.log_softmax": _log_softmax,
            "torch.nn.functional.log_softmax": _log_softmax,
            "torch.Tensor.log_softmax": _log_softmax,
            "torch.Tensor.logsumexp": _of_doubles(torch.Tensor.logsumexp),
            "torch.Tensor.nansum": _of_doubles(torch.Tensor.nansum),
        }.items():
            patches.enter_context(patch(target, replacement))
        yield


def processors_of(case: Case) -> LogitsProcessorList:
    """What ``generate`` would run, in its order."""
    config = GenerationConfig()
    # Not by its constructor, which looks for settings that do not go together.
    config.__dict__.update(
        do_sample=case.do_sample,
        num_beams=2 if case.beams else 1,
        temperature=case.temperature,
        top_h=case.top_h,
        top_k=case.top_k,
        top_p=case.top_p,
        min_p=case.min_p or None,
        typical_p=case.typical_p,
        epsilon_cutoff=case.epsilon_cutoff,
        eta_cutoff=case.eta_cutoff,
        renormalize_logits=case.renormalize_logits,
        repetition_penalty=case.repetition_penalty,
        encoder_repetition_penalty=case.encoder_repetition_penalty,
        no_repeat_ngram_size=case.no_repeat_ngram_size,
        encoder_no_repeat_ngram_size=case.encoder_no_repeat_ngram_size,
        sequence_bias=dict(case.sequence_bias) or None,
        bad_words_ids=[list(ids) for ids in case.bad_words_ids] or None,
        suppress_tokens=list(case.suppress_tokens) or None,
        begin_suppress_tokens=list(case.begin_suppress_tokens) or None,
        forced_bos_token_id=case.forced_bos_token_id,
        remove_invalid_values=case.remove_invalid_values,
        guidance_scale=case.guidance_scale,
        min_new_tokens=case.min_new_tokens,
        min_length=case.min_length,
        max_length=len(case.prompt) + case.max_new_tokens,
        forced_eos_token_id=list(case.forced_eos_token_ids) or None,
        exponential_decay_length_penalty=case.exponential_decay_length_penalty if case.eos_token_ids else None,
    )
    config._eos_token_tensor = torch.tensor(case.eos_token_ids) if case.eos_token_ids else None
    allowed = case.allowed_token_ids
    return Model(case)._get_logits_processor(
        config,
        input_ids_seq_length=len(case.prompt),
        encoder_input_ids=torch.tensor([case.prompt]),
        prefix_allowed_tokens_fn=None if allowed is None else lambda *_: list(allowed),
        device="cpu",
        logits_processor=LogitsProcessorList([LogitBias(case), PresenceAndFrequency(case)]),
    )


class Stage(NamedTuple):
    """One step of transformers' list, and the tokens whose fate the last bits of a float32 decide in it."""

    name: str
    scores: Row
    doubtful: NDArray[np.bool_]


def stages(case: Case, *, with_doubt: bool = True) -> list[Stage]:
    """What transformers makes of a case, step by step. Rejects the example where that is no distribution."""
    copies = 2 if case.beams else 1
    input_ids = torch.tensor([case.prompt + case.generated] * copies)
    scores = torch.from_numpy(case.logits.copy()).repeat(copies, 1)
    found: list[Stage] = []
    is_mended = not case.remove_invalid_values
    if case.unconditional is not None:
        # transformers makes NaN of a token that both rows forbid, and mending then makes it likely: here it stays
        # forbidden.
        require(is_mended or not bool(np.isneginf(case.logits)[np.isneginf(case.unconditional)].any()))
    with defined_rounding():
        for processor in processors_of(case):
            before, scores = scores, processor(input_ids, scores)
            is_mended |= isinstance(processor, logits_process.InfNanRemoveLogitsProcessor)
            # Where transformers has no distribution it fails; what we do then is for other tests.
            require(not is_mended or bool(scores.isfinite().any() and (scores < torch.inf).all()))
            doubtful = _doubtful(case, processor, input_ids, before, scores) if with_doubt else scores[0] != scores[0]
            found.append(Stage(type(processor).__name__, scores[0].numpy().copy(), doubtful.numpy()))
    return found


def reference(case: Case) -> Row:
    return stages(case, with_doubt=False)[-1].scores


THRESHOLDS: dict[type, tuple[str, float]] = {
    logits_process.TopPLogitsWarper: ("top_p", 0.0),
    logits_process.TypicalLogitsWarper: ("mass", 0.0),
    logits_process.TopHLogitsWarper: ("top_h", 2e-5),
    logits_process.MinPLogitsWarper: ("min_p", -2e-5),
    logits_process.EpsilonLogitsWarper: ("epsilon", -2e-5),
    logits_process.EtaLogitsWarper: ("epsilon", -5e-5),
}
"""Attribute with the threshold, and by how much of itself to move it to keep more; 0: by as much as a sum of
float32 probabilities is off."""


def _doubtful(
    case: Case, processor: LogitsProcessor, input_ids: torch.Tensor, before: torch.Tensor, after: torch.Tensor
) -> torch.Tensor:
    kept = torch.isfinite(after[0])
    if isinstance(processor, logits_process.TopKLogitsWarper) and case.guidance_scale != 1 and kept.any():
        # The other steps before it are exact; guidance is off by some bits of the log probabilities that it combines.
        row = before[0].double()
        size = row.where(row > -1e30, 0.0).abs().max() * case.temperature
        tolerance = 5e-7 * max(1.0, abs(case.guidance_scale)) * (1 + size) / case.temperature
        return torch.isfinite(row) & ((row - row[kept].min()).abs() <= tolerance)
    if type(processor) not in THRESHOLDS:
        return torch.zeros_like(kept)
    name, share = THRESHOLDS[type(processor)]
    row = before[0]
    normalized = row.log_softmax(dim=-1)
    p = normalized.exp()
    distance = (-normalized + (normalized * p).nansum()).abs()
    if isinstance(processor, logits_process.TopHLogitsWarper):
        # The term of a token whose probability is almost 1 is off by as much as float32 rounds that probability, and
        # the logarithm of the sum that its logit is subtracted from.
        off = 3e-7 + 2.4e-7 * float(row[kept].abs().max())
        most = row.topk(min(processor.top_n, len(row))).values.log_softmax(dim=-1)
        share += min(off / max(-float((most * most.exp()).nansum()), 1e-30), 1.0)
    # What torch's float32 makes of a sum of probabilities, in the orders that the filters sort them into, beside what
    # ours are off by: at 50,000 tokens with ties that is more than 4e-5.
    orders = [row, row.sort().values, row[distance.argsort(stable=True)]]
    slack = 2e-6 + max(float((order.softmax(dim=-1) - order.double().softmax(dim=-1)).abs().sum()) for order in orders)
    nudged = []
    for sign in (1, -1):
        variant = deepcopy(processor)
        value = getattr(processor, name)
        # Above 1 as well: a float32 sum may be 1 too early, and what is behind it goes.
        moved = value * (1 + sign * share) if share else max(value + sign * slack, 1e-9)
        setattr(variant, name, moved)
        nudged.append(torch.isfinite(variant(input_ids, before)[0]))
    doubtful = nudged[0] ^ nudged[1]
    if isinstance(processor, logits_process.MinPLogitsWarper):
        # Which of the tokens whose probability is 0 in float32 are the most likely ones is chance.
        doubtful |= before[0].softmax(dim=-1) < 1e-37
    if isinstance(processor, logits_process.TypicalLogitsWarper):
        # ... or as far from the entropy as the last one kept, give or take what float32 does to logits of this size and
        # to their entropy.
        logits = row.double()
        log_p = logits - torch.logsumexp(logits, dim=-1)
        exact = log_p.exp()
        entropy = -(exact * log_p)[exact > 0].sum()
        off = (distance - (-log_p - entropy).abs())[torch.isfinite(distance)].abs().max()
        distance = (-log_p - entropy).abs()
        size = logits.where(logits > -1e30, 0.0).abs().max()
        tolerance = 2e-6 * (1 + size + entropy) + off
        borders = [distance[which & torch.isfinite(distance)].max() for which in (kept, *nudged)]
        doubtful |= (distance > min(borders) - tolerance) & (distance < max(borders) + tolerance)
    return doubtful


# ---- ours --------------------------------------------------------------------------------------------------------


def _tokenizer() -> _native.Tokenizer:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    return _native.Tokenizer.from_json(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


TOKENIZER = _tokenizer()
SAMPLER = _native.Sampler()


def make_sampling(case: Case, *, seed: int = 0, **options: Any) -> _native.SamplingParams:
    chosen: dict[str, Any] = {name: getattr(case, name) for name in SAMPLING}
    return _native.SamplingParams(
        vocab_size=len(case.logits),
        seed=seed,
        min_tokens_to_keep=max(len(case.eos_token_ids), 1) + 1 if case.beams else 1,
        **{**chosen, "logit_bias": dict(case.logit_bias)},
        **options,
    )


def make_generation(
    case: Case, sampling: _native.SamplingParams | None = None, *, sequence_index: int = 0
) -> tuple[Case, _native.Generation]:
    """A generation with a history, and the case with the history that it is.

    Each token of ``case.generated`` is made so likely that nothing but a processor that forbids it can prevent it; then
    another one comes instead. Rejects the example where that ends the sequence.
    """
    size = len(case.logits)
    stopping = _native.StoppingParams(vocab_size=size, **{name: getattr(case, name) for name in STOPPING})
    generation = _native.Generation(
        TOKENIZER, case.prompt, sampling or make_sampling(case), stopping, sequence_index=sequence_index
    )
    generated = []
    for token in case.generated:
        logits = np.zeros((1, size), dtype=np.float32)
        logits[0, token] = 1e30
        emission = SAMPLER.step(logits, [generation]) if case.guidance_scale == 1 else guided_step(logits, generation)
        require(emission[0].error is None and emission[0].finish_reason is None)
        generated.append(emission[0].token_id)
    return replace(case, generated=tuple(generated)), generation


def guided_step(logits: Row, generation: _native.Generation) -> list[_native.Emission]:
    """A step whose unconditional row says the same as the row itself, so that guidance changes nothing."""
    return SAMPLER.step(np.concatenate([logits, logits]), [generation], guidance=[1])


def ours(case: Case) -> Row:
    _, generation = make_generation(case)
    return SAMPLER.processed_logits(case.logits, generation, unconditional=case.unconditional)


def assert_equal_to_transformers(case: Case) -> None:
    """The same set of -infinity, other values within 1e-5, unless the last bits of a float32 decide."""
    case, generation = make_generation(case)
    steps = stages(case)
    want = steps[-1].scores
    got = SAMPLER.processed_logits(case.logits, generation, unconditional=case.unconditional)
    kept, expected = np.isfinite(got), np.isfinite(want)
    if not np.array_equal(kept, expected):
        in_doubt = [step for step in steps if step.doubtful.any()]
        if currently_in_test_context():
            event("within rounding of a threshold")
        assert in_doubt, (case, np.flatnonzero(kept != expected)[:10])
        narrowing = [step for step in steps if step.name.endswith("Warper") and step.name != "TemperatureLogitsWarper"]
        # What an earlier filter leaves changes the probabilities for those behind it.
        if in_doubt[0] is narrowing[-1]:
            assert not np.any((kept != expected) & ~in_doubt[0].doubtful), case
        return
    atol = 1e-5 * max(1.0, abs(case.guidance_scale))
    np.testing.assert_allclose(got[expected], want[expected], rtol=1e-5, atol=atol, err_msg=repr(case))
