"""Every causal language model class of transformers: equal to it on whichever path it runs, as docs/models.md says."""

import warnings

import pytest

from tests import tiny_architectures
from tests.parity.architecture_outcomes import TOLERANCE, Outcome, opens, outcome
from tools.generate_models_docs import TARGET, document

pytestmark = pytest.mark.filterwarnings("ignore")

SERVED = ("paged", "padded", "alone")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {model_type: outcome(model_type) for model_type in tiny_architectures.model_types()}


@pytest.mark.timeout(600)
def test_served_classes_agree(outcomes: dict[str, Outcome]) -> None:
    served = {name: each for name, each in outcomes.items() if each.path in SERVED}
    wrong = {name: each for name, each in served.items() if not (each.same_tokens and each.error <= TOLERANCE)}
    assert wrong == {}
    assert len(served) >= 140


@pytest.mark.timeout(600)
def test_table_is_current(outcomes: dict[str, Outcome]) -> None:
    assert TARGET.read_text(encoding="utf-8") == document(outcomes), "run `python tools/generate_models_docs.py`"


@pytest.mark.timeout(600)
def test_gate_is_not_blind_to_wide_limits(outcomes: dict[str, Outcome]) -> None:
    """A limit that the self-test's prompts do not reach must not open the gate for a model that it is closed for."""
    limited = [name for name, each in outcomes.items() if each.path in SERVED and tiny_architectures.has_limits(name)]
    assert len(limited) >= 40
    assert {name: opens(name) for name in limited} == {name: outcomes[name].path == "paged" for name in limited}


@pytest.mark.parametrize("model_type", ["bart", "roformer", "whisper"])
def test_positions_that_a_padded_batch_cannot_give(model_type: str, outcomes: dict[str, Outcome]) -> None:
    """These keep plain keys and values, but count positions by the cache: they run one at a time."""
    assert outcomes[model_type].path == "alone"
