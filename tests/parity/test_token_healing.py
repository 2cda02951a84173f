"""Token healing: the healed token is the one that transformers' ``heal_tokens`` puts at the prompt's end."""

import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests import tiny_models
from tokenwire import _native
from tokenwire.engine.generations import generation_factory
from tokenwire.engine.protocol import Submit
from tokenwire.engine.settings import GenerationSettings
from tokenwire.servicers.healing import heal

WORDS = (
    "The quick",
    "stop",
    "stopp",
    "oper",
    "hello",
    " the",
    "ca",
    "Pari",
    "{",
    '"na',
    "Zw",
    "1",
    "10",
    "a",
    ".",
    "é",
    "数",
)


class NativeEntries:
    """What healing asks of the text side."""

    def __init__(self, tokenizer: _native.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def is_healable(self, token_id: int) -> bool:
        return self._tokenizer.is_healable(token_id)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    return tiny_models.build_tokenizer()


@pytest.fixture(scope="module")
def native(reference: PreTrainedTokenizerFast) -> _native.Tokenizer:
    return _native.Tokenizer.from_json(reference.backend_tokenizer.to_str())


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_models.build_model(request.param)


@torch.inference_mode()
def greedy(
    model: PreTrainedModel, native: _native.Tokenizer, prompt: list[int], settings: Any
) -> tuple[list[int], str]:
    """Tokens and text of the whole pipeline, without the engine."""
    make = generation_factory(native, tiny_models.MODEL_VOCAB_SIZE)
    generation = make(Submit(request=0, prompt_ids=prompt, settings=settings))
    sampler, ids, text = _native.Sampler(), list(prompt), ""
    while not generation.is_finished:
        logits = model(torch.tensor([ids])).logits[:, -1].float().numpy()
        (emission,) = sampler.step(np.ascontiguousarray(logits), [generation])
        ids.append(emission.token_id)
        text += emission.text
    return ids[len(prompt) :], text


def prompts() -> list[str]:
    generator = random.Random(5)
    return [
        "".join(word + generator.choice(("", " ", "-")) for word in generator.choices(WORDS, k=4)).strip()
        for _ in range(150)
    ]


async def test_the_healed_token_is_that_of_transformers(
    model: PreTrainedModel, reference: PreTrainedTokenizerFast, native: _native.Tokenizer
) -> None:
    # transformers tells a prompt from padding by the BOS and PAD ids; these prompts have neither.
    compared = 0
    for text in prompts():
        ids = reference(text).input_ids
        settings = GenerationSettings(max_new_tokens=4, token_healing=True)
        prompt, healed, given = heal(NativeEntries(native), ids, settings)  # type: ignore[arg-type]
        with torch.inference_mode():
            theirs = model.heal_tokens(torch.tensor([ids]), reference)[0].tolist()
        if healed.healed_token_id is None:
            assert prompt == theirs == ids
            continue
        new, answer = greedy(model, native, prompt, healed)
        # transformers looks for the token's text among the entries: " a" and "é" are written otherwise there.
        is_found = reference.decode(ids[-1]) == native.id_to_token(ids[-1])
        # Otherwise the model overruled transformers' bias, or a special token came out.
        if is_found and theirs[-1] in native.extensions(ids[-1]).tolist():
            compared += 1
            assert [*prompt, new[0]] == theirs
        assert text + answer == reference.decode([*prompt, *new], skip_special_tokens=True)
        # A token may begin inside a character.
        assert given == "\ufffd" or text.endswith(given)
        assert len(new) <= 5
        # What comes behind the healed token is what transformers gives behind it.
        with torch.inference_mode():
            wanted = model.generate(
                torch.tensor([[*prompt, new[0]]]), max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        assert [*prompt, *new] == wanted[0].tolist()
    assert compared > 40


def test_the_first_token_extends_the_dropped_one_whatever_the_model_wants(native: _native.Tokenizer) -> None:
    (dropped,) = native.encode("st")[-1:].tolist()
    allowed = native.extensions(dropped).tolist()
    assert dropped in allowed
    assert len(allowed) > 1
    make = generation_factory(native, tiny_models.MODEL_VOCAB_SIZE)
    # Whatever else is set: it acts on the tokens behind the healed one.
    settings = GenerationSettings(
        max_new_tokens=3,
        token_healing=True,
        healed_token_id=dropped,
        do_sample=True,
        temperature=9.0,
        suppress_tokens=tuple(allowed),
        begin_suppress_tokens=(1, 2),
        forced_bos_token_id=3,
        repetition_penalty=4.0,
    )
    generation = make(Submit(request=0, prompt_ids=[5], settings=settings))
    sampler = _native.Sampler()
    generator = np.random.default_rng(0)
    row = generator.normal(0, 30, tiny_models.MODEL_VOCAB_SIZE).astype(np.float32)
    processed = sampler.processed_logits(row, generation)
    expected = np.full_like(row, -np.inf)
    expected[allowed] = row[allowed]
    expected[dropped] += 1
    np.testing.assert_array_equal(processed, expected)
    (emission,) = sampler.step(row[None], [generation])
    assert emission.token_id == int(np.argmax(expected))
    assert generation.num_generated == 0
    # From then on, as behind a prompt that ends with that token.
    plain = make(
        Submit(
            request=0,
            prompt_ids=[5, emission.token_id],
            settings=msgspec.structs.replace(settings, token_healing=False, healed_token_id=None),
        )
    )
    for _ in range(3):
        np.testing.assert_array_equal(sampler.processed_logits(row, generation), sampler.processed_logits(row, plain))
        pair = sampler.step(np.stack([row, row]), [generation, plain])
        assert pair[0].token_id == pair[1].token_id
    assert generation.is_finished


def test_guidance_does_not_choose_the_healed_token(native: _native.Tokenizer) -> None:
    (dropped,) = native.encode("st")[-1:].tolist()
    allowed = native.extensions(dropped).tolist()
    settings = GenerationSettings(max_new_tokens=3, token_healing=True, healed_token_id=dropped, guidance_scale=5.0)
    generation = generation_factory(native, tiny_models.MODEL_VOCAB_SIZE)(
        Submit(request=0, prompt_ids=[5], settings=settings)
    )
    rows = np.zeros((2, tiny_models.MODEL_VOCAB_SIZE), dtype=np.float32)
    # Guided away from what the row itself prefers by far.
    wanted = next(token for token in allowed if token != dropped)
    rows[0, wanted], rows[1, wanted] = 9, 30
    (emission,) = _native.Sampler().step(rows, [generation], guidance=[1])
    assert emission.token_id == wanted
    (emission,) = _native.Sampler().step(rows, [generation], guidance=[1])
    assert emission.token_id != wanted


def test_extensions_are_those_of_a_search(native: _native.Tokenizer) -> None:
    entries = {token_id: native.id_to_token(token_id) or "" for token_id in range(native.vocab_size)}
    special = set(native.special_token_ids)
    for token_id, entry in entries.items():
        expected = {other for other, text in entries.items() if text.startswith(entry) and other not in special}
        expected = set() if token_id in special else expected
        assert set(native.extensions(token_id).tolist()) == expected
        assert native.is_healable(token_id) == bool(expected - {token_id})
    for unknown in (-1, native.vocab_size, 2**70):
        assert native.extensions(unknown).tolist() == []
        assert not native.is_healable(unknown)


@pytest.mark.parametrize("ids", [[], [9], [5, tiny_models.EOS_ID], [5, tiny_models.TOKENIZER_VOCAB_SIZE + 3]])
async def test_nothing_to_heal_changes_nothing(native: _native.Tokenizer, ids: list[int]) -> None:
    settings = GenerationSettings(max_new_tokens=4, token_healing=True)
    assert heal(NativeEntries(native), ids, settings) == (ids, settings, "")  # type: ignore[arg-type]


async def test_only_when_asked_for(native: _native.Tokenizer) -> None:
    ids = native.encode("a st").tolist()
    settings = GenerationSettings(max_new_tokens=4)
    assert heal(NativeEntries(native), ids, settings) == (ids, settings, "")  # type: ignore[arg-type]


async def test_the_healed_token_belongs_to_the_prompt(native: _native.Tokenizer) -> None:
    ids = native.encode("a st").tolist()
    settings = GenerationSettings(
        max_new_tokens=4, min_new_tokens=2, token_healing=True, exponential_decay_length_penalty=(3, 1.5)
    )
    prompt, healed, given = heal(NativeEntries(native), ids, settings)  # type: ignore[arg-type]
    assert given == native.decode(ids[-1:])
    assert prompt == ids[:-1]
    # Nothing else changes: the healed token takes the place of the one that was given.
    assert healed == msgspec.structs.replace(settings, healed_token_id=ids[-1])
