"""A row with any settings gives in a batch what it gives alone."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_cases import DEEP, STOPPING, TOKENIZER, Case, Row, make_sampling, rows_profile
from processor_strategies import combinations

from tokenwire import _native
from tokenwire.engine.settings import GreenListWatermark, SynthIdTextWatermark, Watermark

WATERMARKS: list[Watermark | None] = [
    None,
    None,
    GreenListWatermark(),
    GreenListWatermark(seeding_scheme="selfhash", context_width=2),
    SynthIdTextWatermark(ngram_len=3, keys=(1, 2, 3)),
]


class Sequence(NamedTuple):
    """A generation without a history, and what its rows are made of."""

    case: Case
    watermark: Watermark | None
    seed: int

    def make(self) -> _native.Generation:
        size = len(self.case.logits)
        options: dict[str, Any] = {"logprobs": 3, "processed_logprobs": self.seed % 2 == 0}
        sampling = make_sampling(self.case, seed=self.seed, watermark=self.watermark, **options)
        stopping = _native.StoppingParams(vocab_size=size, **{name: getattr(self.case, name) for name in STOPPING})
        return _native.Generation(TOKENIZER, self.case.prompt, sampling, stopping)

    def row(self, step: int) -> Row:
        return np.roll(self.case.logits, 3 * step)[None]


@st.composite
def batches(draw: st.DrawFn) -> list[Sequence]:
    size = draw(st.sampled_from([8, 70, 1500]))
    one = st.builds(Sequence, combinations(size=size), st.sampled_from(WATERMARKS), st.integers(0, 99))
    return draw(st.lists(one, min_size=2, max_size=5))


def step(sequences: list[Sequence], generations: list[_native.Generation], index: int) -> list[_native.Emission]:
    twins = [sequence.case.unconditional[None] for sequence in sequences if sequence.case.unconditional is not None]
    places = iter(range(len(sequences), len(sequences) + len(twins)))
    guidance = [-1 if sequence.case.unconditional is None else next(places) for sequence in sequences]
    logits = np.concatenate([*(sequence.row(index) for sequence in sequences), *twins])
    return SAMPLER.step(logits, generations, guidance=guidance)


SAMPLER = _native.Sampler()


def told(emission: _native.Emission) -> tuple[Any, ...]:
    return (
        emission.token_id,
        emission.logprob,
        emission.rank,
        emission.top_logprobs,
        emission.finish_reason,
        emission.error,
    )


@settings(rows_profile, max_examples=2000 if DEEP else 200)
@given(batches())
def test_a_row_in_a_batch_equals_itself_alone(batch: list[Sequence]) -> None:
    together, alone = [sequence.make() for sequence in batch], [sequence.make() for sequence in batch]
    going = list(range(len(batch)))
    for index in range(4):
        emissions = step([batch[i] for i in going], [together[i] for i in going], index)
        for place, emission in zip(going, emissions, strict=True):
            (expected,) = step([batch[place]], [alone[place]], index)
            assert told(emission) == told(expected)
            assert together[place].eos_probability_max == alone[place].eos_probability_max
        going = [i for i in going if not together[i].is_finished]
        if not going:
            return
