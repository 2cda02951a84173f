"""Rows made to be difficult, and settings at random, for the tests of processors."""

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from processor_cases import SAMPLING, STOPPING, Case, Row

TUNABLE = [name for name in (*SAMPLING, *STOPPING) if name not in {"do_sample", "eos_token_ids", "max_new_tokens"}]
"""Settings that do something by themselves."""

NEED_EOS = {"min_new_tokens", "min_length", "exponential_decay_length_penalty"}


@st.composite
def rows(draw: st.DrawFn, *, size: int | None = None, invalid: bool = False) -> Row:
    """Random logits: normal at any scale, ties in all amounts, bfloat16 values, one peak, some tokens forbidden."""
    if size is None:
        size = draw(st.one_of(st.integers(8, 64), st.integers(65, 3000), st.sampled_from([300, 50_000])))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-6, 1e-2, 1.0, 3.0, 10.0, 100.0, 1e4]))
    logits = generator.standard_normal(size) * scale
    match draw(st.sampled_from(["plain", "rounded", "two values", "constant", "bfloat16", "peak", "offset"])):
        case "rounded":
            logits = np.round(logits / scale * 4) * scale / 4
        case "two values":
            logits = np.where(logits > 0, scale, -scale / 2)
        case "constant":
            logits = np.full(size, scale)
        case "bfloat16":
            logits = (logits.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
        case "peak":
            logits[generator.integers(size)] = 20 * scale
        case "offset":
            logits = logits + 50 * scale
    forbidden = draw(st.sampled_from([0.0, 0.0, 0.1, 0.9]))
    logits = np.where(generator.random(size) < forbidden, -np.inf, logits)
    if invalid:
        for value in (np.nan, np.inf, -np.inf):
            logits = np.where(generator.random(size) < draw(st.sampled_from([0.0, 0.02, 0.3])), value, logits)
    logits[generator.integers(size)] = draw(st.sampled_from([0.0, scale]))
    return logits.astype(np.float32)


def token_lists(size: int, **limits: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, size - 1), **limits).map(tuple)


def sequences(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Of the few ids that histories are made of, so that they match."""
    few = st.integers(0, min(size, 6) - 1)
    return st.lists(st.one_of(few, few, st.integers(0, size - 1)), min_size=1, max_size=4).map(tuple)


def setting(name: str, size: int) -> st.SearchStrategy[Any]:
    """Values of one setting, the edges of its range included."""
    small = st.floats(-2.0, 2.0)
    share = st.one_of(st.sampled_from([1e-6, 0.5, 0.9, 0.999999]), st.floats(1e-6, 1 - 1e-6))
    cutoff = st.one_of(st.sampled_from([1e-6, 3e-4, 0.1, 0.999]), st.floats(1e-6, 0.999))
    bias = st.floats(-100.0, 100.0)
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "do_sample": st.booleans(),
        "temperature": st.one_of(st.sampled_from([0.5, 2.0, 1e-3, 1e3]), st.floats(0.05, 10.0)),
        "top_h": st.one_of(st.just(1.0), share),
        "top_k": st.one_of(st.just(1), st.just(size), st.integers(1, size)),
        "top_p": share,
        "min_p": st.one_of(st.sampled_from([1e-6, 0.5, 1.0]), st.floats(1e-6, 1.0)),
        "typical_p": share,
        "epsilon_cutoff": cutoff,
        "eta_cutoff": cutoff,
        "renormalize_logits": st.just(True),
        "repetition_penalty": st.floats(0.1, 5.0),
        "encoder_repetition_penalty": st.floats(0.1, 5.0),
        "presence_penalty": small,
        "frequency_penalty": small,
        "no_repeat_ngram_size": st.integers(1, 5),
        "encoder_no_repeat_ngram_size": st.integers(1, 5),
        "logit_bias": st.dictionaries(st.integers(0, size - 1), bias, max_size=8).map(
            lambda biases: tuple(biases.items())
        ),
        "sequence_bias": st.dictionaries(sequences(size), bias, min_size=1, max_size=8).map(
            lambda biases: tuple(biases.items())
        ),
        "bad_words_ids": st.lists(sequences(size), min_size=1, max_size=8).map(tuple),
        "suppress_tokens": token_lists(size, max_size=min(6, size - 2)),
        "begin_suppress_tokens": token_lists(size, min_size=1, max_size=min(6, size - 2)),
        "allowed_token_ids": token_lists(size, min_size=1, max_size=20),
        "forced_bos_token_id": st.integers(0, size - 1),
        "remove_invalid_values": st.just(True),
        "guidance_scale": st.one_of(st.sampled_from([0.0, -1.5, 1.5]), st.floats(0.1, 10.0)),
        "eos_token_ids": token_lists(size, min_size=1, max_size=3),
        "min_new_tokens": st.integers(0, 6),
        "min_length": st.integers(0, 25),
        "forced_eos_token_ids": token_lists(size, min_size=1, max_size=3),
        "exponential_decay_length_penalty": st.tuples(st.integers(0, 6), st.floats(0.5, 3.0)),
    }
    return strategies[name]


def with_settings(draw: st.DrawFn, names: list[str], *, size: int | None = None) -> Case:
    """A case with these settings at random, and with what they need to act."""
    invalid = "remove_invalid_values" in names
    case = Case(draw(rows(size=size, invalid=invalid)))
    size = len(case.logits)
    for name in names:
        case = replace(case, **{name: draw(setting(name, size))})
    if NEED_EOS & set(names) and not case.eos_token_ids:
        case = replace(case, eos_token_ids=draw(setting("eos_token_ids", size)))
    if case.guidance_scale != 1:
        case = replace(case, unconditional=draw(rows(size=size, invalid=invalid)))
    return _with_history(draw, case)


def _with_history(draw: st.DrawFn, case: Case) -> Case:
    size = len(case.logits)
    few = st.integers(0, min(size, 6) - 1)
    tokens = st.one_of(few, few, st.integers(0, size - 1))
    prompt = draw(st.lists(tokens, min_size=1, max_size=draw(st.sampled_from([1, 3, 20]))))
    generated = draw(st.lists(tokens, max_size=8))
    never = {*case.eos_token_ids, *case.suppress_tokens}
    kept = tuple(token for token in generated if token not in never)
    if case.min_new_tokens or case.forced_eos_token_ids:
        # Where the end is may be where this step is, or not.
        case = replace(case, max_new_tokens=max(len(kept) + draw(st.integers(1, 3)), case.min_new_tokens))
    return replace(case, prompt=tuple(prompt), generated=kept)


@st.composite
def cases(draw: st.DrawFn, *names: str) -> Case:
    """One row with these settings."""
    return with_settings(draw, list(names))


@st.composite
def combinations(draw: st.DrawFn, *, size: int | None = None) -> Case:
    """One row with any settings together."""
    everything = ["do_sample", "eos_token_ids", *TUNABLE]
    names = draw(st.lists(st.sampled_from(everything), min_size=2, max_size=len(everything), unique=True))
    return replace(with_settings(draw, names, size=size), beams=draw(st.sampled_from([False, False, True])))
