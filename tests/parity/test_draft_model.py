"""The draft model by itself: what it proposes, what it catches up with, and which models cannot be one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_models
from tests.parity.runner_loop import generate, load_runner, prompts
from tokenwire.config import EngineConfig, ModelConfig
from tokenwire.errors import ModelLoadError

CONTEXT = tiny_models.CONTEXT_LENGTH


@pytest.fixture(scope="module")
def llama(checkpoint: Callable[[str], Path]) -> tuple[Any, Any]:
    """A transformers model, and a runner of the same checkpoint."""
    _loaded, runner = load_runner(checkpoint("llama"))
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval(), runner


def make_draft_model(runner: Any, **settings: Any) -> Any:
    from tokenwire.engine.draft_model import DraftModel

    return DraftModel(runner, **{"vocab_size": runner.vocab_size, "max_step_tokens": 64, **settings})


def ask(sequence: int, tokens: list[int], count: int, ends: tuple[int, ...] = ()) -> Any:
    from tokenwire.engine.drafts import Ask

    return Ask(sequence, tokens, count, ends)


def test_it_proposes_its_own_greedy_tokens_for_all_rows_at_once(llama: tuple[Any, Any]) -> None:
    """Again and again, as tokens are accepted or replaced, and rows come and go, or go on without being asked for."""
    model, runner = llama
    draft = make_draft_model(runner, max_step_tokens=200)
    generator = np.random.default_rng(0)
    sequences = dict(enumerate(prompts([1, 5, 9, 30])))
    for turn in range(8):
        asks = [
            ask(number, list(tokens), 1 + (number + turn) % 5)
            for number, tokens in sequences.items()
            if (number + turn) % 4
        ]
        for asked, proposed in zip(asks, draft.propose(asks), strict=True):
            assert proposed == generate(model, asked.tokens, asked.num_tokens)
            # Some are accepted, then the served model has one of its own.
            accepted = proposed[: int(generator.integers(0, len(proposed) + 1))]
            sequences[asked.sequence] += [*accepted, int(generator.integers(8, 400))]
        for number in sequences.keys() - {asked.sequence for asked in asks}:
            sequences[number] += generator.integers(8, 400, turn % 3).tolist()
    draft.release(list(sequences))
    assert draft._blocks.num_free == runner.num_blocks


def test_nothing_is_proposed_behind_an_end(llama: tuple[Any, Any]) -> None:
    model, runner = llama
    (prompt,) = prompts([6])
    answer = generate(model, prompt, 6)
    draft = make_draft_model(runner)
    assert draft.propose([ask(0, prompt, 6, (answer[2],))]) == [answer[: answer.index(answer[2]) + 1]]
    draft.release([0])


def test_a_long_prompt_is_caught_up_with_over_several_calls(llama: tuple[Any, Any]) -> None:
    model, runner = llama
    long, short = prompts([50, 4])
    draft = make_draft_model(runner, max_step_tokens=20)
    asks = [ask(0, long, 3), ask(1, short, 2)]
    nothing: list[int] = []
    expected = [generate(model, long, 3), generate(model, short, 2)]
    assert draft.propose(asks) == [nothing, nothing]
    assert draft.propose(asks) == [nothing, nothing]
    assert draft.propose(asks) == expected
    draft.reset()
    assert draft._cached == {}


def test_a_sequence_that_it_cannot_take_gets_nothing(llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, runner = llama
    inside, unknown, late, last = prompts([6, 6, CONTEXT, CONTEXT - 2])
    unknown[3] = runner.vocab_size
    draft = make_draft_model(runner, max_step_tokens=1000)
    # The last position's token can be proposed, but not one behind it.
    proposals = draft.propose([ask(0, inside, 2), ask(1, unknown, 2), ask(2, late, 5), ask(3, last, 5)])
    expected = [generate(model, tokens, count) for tokens, count in ((inside, 2), (late, 1), (last, 3))]
    assert proposals == [expected[0], [], expected[1], expected[2]]
    draft.reset()
    # A cache of 5 blocks: the first sequence leaves one.
    monkeypatch.setattr(runner, "num_blocks", 5)
    draft = make_draft_model(runner, max_step_tokens=1000)
    first, second = prompts([13, 5])
    assert draft.propose([ask(0, first, 4), ask(1, second, 1)]) == [generate(model, first, 4), []]
    draft.release([0])
    assert draft.propose([ask(1, second, 1)]) == [generate(model, second, 1)]


def test_nothing_is_proposed_above_the_served_vocabulary(llama: tuple[Any, Any]) -> None:
    _, runner = llama
    draft = make_draft_model(runner, vocab_size=20)
    (proposed,) = draft.propose([ask(0, [8, 9, 10], 6)])
    assert len(proposed) == 6
    assert max(proposed) < 20


def test_bfloat16_logits_are_compared_as_numbers() -> None:
    from tokenwire.engine.draft_model import _largest

    values = np.array([[-3.0, -1.0, -2.0], [0.5, 2.0, 7.0]], np.float32)
    assert _largest((values.view(np.uint32) >> 16).astype(np.uint16)) == _largest(values) == [1, 2]


# ---- loading -------------------------------------------------------------------------------------------------


def build(model: Path, draft: Path, **engine: Any) -> Any:
    from tokenwire.engine.build import build
    from tokenwire.engine.protocol import Start

    config = EngineConfig(**{"block_size": 4, "threads": 1, "kv_cache_memory": "1MiB"} | engine)
    return build(Start(ModelConfig(model=str(model), device="cpu", draft_model=str(draft)), config), lambda _: None)


def test_both_caches_share_the_memory(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """As many tokens in each, together no more than kv_cache_memory."""
    folder = tiny_models.save(tmp_path / "tiny-draft", "qwen3", seed=3)
    built = build(checkpoint("llama"), folder, num_assistant_tokens=7)
    assert (built.info.draft_model, built.info.num_assistant_tokens) == ("tiny-draft", 7)
    draft = built.draft_model._runner
    assert draft.num_blocks == built.runner.num_blocks
    num_bytes = sum(
        tensor.nbytes for runner in (draft, built.runner) for layer in runner._cache.layers for tensor in layer
    )
    block_bytes = num_bytes // draft.num_blocks
    assert 2**20 - block_bytes < num_bytes <= 2**20


def test_without_a_draft_model_there_is_none(checkpoint: Callable[[str], Path]) -> None:
    from tokenwire.engine.build import build
    from tokenwire.engine.protocol import Start

    config = EngineConfig(threads=1, kv_cache_memory="1MiB")
    built = build(Start(ModelConfig(model=str(checkpoint("llama")), device="cpu"), config), lambda _: None)
    assert (built.draft_model, built.info.draft_model, built.info.num_assistant_tokens) == (None, "", 0)


def test_another_vocabulary_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "other"))
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    names = {token_id: token for token, token_id in tokenizer["model"]["vocab"].items()}
    tokenizer["model"]["vocab"][names[499]], tokenizer["model"]["vocab"][names[498]] = 498, 499
    file.write_text(json.dumps(tokenizer))
    expected = f"token 498 is {json.dumps(names[498])} there and {json.dumps(names[499])} here"
    with pytest.raises(ModelLoadError, match="whose tokenizer differs") as caught:
        build(checkpoint("llama"), folder)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_written_differently_is_the_same(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "other"))
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"] = dict(reversed(tokenizer["model"]["vocab"].items()))
    file.write_text(json.dumps(tokenizer, indent=1))
    assert build(checkpoint("llama"), folder).info.draft_model == "other"


def test_a_model_that_cannot_run_on_the_paged_path_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ModelLoadError, match="cannot be a draft model, which runs on the paged path"):
        build(checkpoint("llama"), checkpoint("bloom"))
    with pytest.raises(ModelLoadError, match="which takes no drafts"):
        build(checkpoint("bloom"), checkpoint("llama"))
    with pytest.raises(ModelLoadError, match="which takes no drafts"):
        build(checkpoint("llama"), checkpoint("llama"), forward_path="padded")


def test_a_draft_model_that_is_not_there_is_said_so(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        build(checkpoint("llama"), tmp_path / "nowhere")
