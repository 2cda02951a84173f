"""From the settings of a command to the sampler's state of a sequence, or of a beam search."""

from collections.abc import Callable

import msgspec

from tokenwire._native import BeamSearch, Generation, SamplingParams, StoppingParams, Tokenizer
from tokenwire.engine.protocol import Submit
from tokenwire.engine.ranges import SAMPLING_NAMES, STOPPING_NAMES
from tokenwire.engine.settings import GenerationSettings


def min_tokens_to_keep(settings: GenerationSettings) -> int:
    """How many tokens the filters leave at least, as in transformers: a beam must be able to go on past any EOS."""
    # transformers counts one EOS token where there is none.
    return max(len(settings.eos_token_ids), 1) + 1 if settings.num_beams > 1 else 1


def generation_factory(tokenizer: Tokenizer, vocab_size: int) -> Callable[[Submit], Generation]:
    """A function that builds a ``Generation``; it raises InvalidParametersError for settings outside their range.

    ``vocab_size``: columns of the logits.
    """

    def make_generation(submit: Submit) -> Generation:
        settings = submit.settings
        return Generation(
            tokenizer,
            submit.prompt_ids,
            _sampling_params(settings, vocab_size),
            _stopping_params(settings, vocab_size),
            sequence_index=submit.sequence_index,
            skip_special_tokens=settings.skip_special_tokens,
            healed_token_id=settings.healed_token_id,
        )

    return make_generation


def beam_search_factory(tokenizer: Tokenizer, vocab_size: int) -> Callable[[Submit], BeamSearch]:
    """A function that builds a ``BeamSearch``; it raises InvalidParametersError for settings outside their range.

    ``vocab_size``: columns of the logits.
    """

    def make_beam_search(submit: Submit) -> BeamSearch:
        settings = submit.settings
        return BeamSearch(
            tokenizer,
            submit.prompt_ids,
            _sampling_params(settings, vocab_size),
            _stopping_params(settings, vocab_size),
            num_beams=settings.num_beams,
            num_return_sequences=settings.num_return_sequences,
            length_penalty=settings.length_penalty,
            early_stopping=settings.early_stopping,
            sequence_index=submit.sequence_index,
            skip_special_tokens=settings.skip_special_tokens,
        )

    return make_beam_search


def _sampling_params(settings: GenerationSettings, vocab_size: int) -> SamplingParams:
    values = msgspec.structs.asdict(settings)
    return SamplingParams(
        vocab_size=vocab_size,
        min_tokens_to_keep=min_tokens_to_keep(settings),
        logprobs=settings.logprobs,
        processed_logprobs=settings.processed_logprobs,
        explain=settings.explain,
        **{name: values[name] for name in SAMPLING_NAMES},
    )


def _stopping_params(settings: GenerationSettings, vocab_size: int) -> StoppingParams:
    values = msgspec.structs.asdict(settings)
    return StoppingParams(
        vocab_size=vocab_size,
        max_new_tokens=settings.max_new_tokens,
        **{name: values[name] for name in STOPPING_NAMES},
    )
