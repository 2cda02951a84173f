"""From the settings of a command to the sampler's state of a sequence, or of a beam search."""

from collections.abc import Callable

from tokenwire._native import BeamSearch, Generation, SamplingParams, StoppingParams, Tokenizer
from tokenwire.engine.protocol import Submit
from tokenwire.engine.settings import GenerationSettings


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
            healed_token_id=tokenizer.token_to_id(settings.healed_prefix) if settings.healed_prefix else None,
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
    return SamplingParams(
        vocab_size=vocab_size,
        do_sample=settings.do_sample,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        typical_p=settings.typical_p,
        repetition_penalty=settings.repetition_penalty,
        presence_penalty=settings.presence_penalty,
        frequency_penalty=settings.frequency_penalty,
        logit_bias=settings.logit_bias,
        suppress_tokens=settings.suppress_tokens,
        seed=settings.seed,
        logprobs=settings.logprobs,
        processed_logprobs=settings.processed_logprobs,
    )


def _stopping_params(settings: GenerationSettings, vocab_size: int) -> StoppingParams:
    return StoppingParams(
        vocab_size=vocab_size,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        eos_token_ids=settings.eos_token_ids,
        stop_token_ids=settings.stop_token_ids,
        stop_strings=settings.stop_strings,
        include_stop_string=settings.include_stop_string,
    )
