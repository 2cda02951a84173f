"""Hundreds of conversations through a template of every family: the text of transformers, or its refusal."""

import json
import os
from collections.abc import Callable
from datetime import datetime

import pytest
from chat_cases import SPECIAL_TOKENS, outcome
from chat_families import FAMILIES
from chat_generator import Case, Generator
from chat_templates import TEMPLATES
from tokenizer_kinds import Pair
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tokenwire import _native

COUNT = {"quick": 1000, "deep": 20_000}[os.environ.get("HYPOTHESIS_PROFILE", "quick")]
"""Conversations per template."""

NOW = 1_700_000_000.0


class FixedClock(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime.fromtimestamp(NOW)


@pytest.fixture
def reference(chat_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    monkeypatch.setattr(chat_template_utils, "datetime", FixedClock)
    return PreTrainedTokenizerFast(tokenizer_object=chat_pair.reference, **SPECIAL_TOKENS)


def render(template: _native.ChatTemplate, case: Case) -> str:
    options = dict(case.options)
    for name in ("tools", "documents"):
        if name in options:
            options[f"{name}_json"] = json.dumps(options.pop(name))
    return template.render(
        json.dumps(case.messages), variables_json=json.dumps(case.variables), now=NOW, **options
    ).text


@pytest.mark.parametrize("family", [*TEMPLATES, *FAMILIES])
def test_every_conversation_equals_the_reference(
    reference: PreTrainedTokenizerFast, compiled: Callable[[str], _native.ChatTemplate], family: str
) -> None:
    source = (TEMPLATES | FAMILIES)[family]
    generator = Generator(family)
    texts = 0
    failures = []
    for index in range(COUNT):
        case = generator.case()
        expected = outcome(
            lambda case=case: reference.apply_chat_template(
                case.messages, chat_template=source, tokenize=False, **case.options, **case.variables
            )
        )
        got = outcome(lambda case=case: render(compiled(source), case))
        texts += expected[0] == "text"
        # transformers' own refusals are worded by us; a template's are its own words on both sides.
        same = got == expected or (got[0] == expected[0] == "refused" and expected[1] == "")
        if not same:
            failures.append((index, case, expected, got))
    assert not failures, failures[0]
    # Most conversations must come through, or the test shows little.
    assert texts > COUNT * 0.3
