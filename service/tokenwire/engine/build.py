"""Loads the model of the service, with the runner and the sampler around it. The only place that imports both sides."""

from collections.abc import Callable

import msgspec

from tokenwire.engine.defaults import defaults_from_generation_config
from tokenwire.engine.main import Built
from tokenwire.engine.prompt_logprobs import max_scored_tokens
from tokenwire.engine.protocol import ModelInfo, Start
from tokenwire.engine.pulse import Pulse
from tokenwire.model.checkpoint import find
from tokenwire.model.memory import usable_cores
from tokenwire.model.onednn import keep_kernel_caches_small
from tokenwire.model.threads import keep_openmp_spin_short


def build(start: Start, progress: Callable[[str], None]) -> Built:
    """Load what ``start`` names. Raises ModelLoadError with one line for the operator."""
    progress("looking through the files")
    checkpoint = find(start.model.model, start.model.revision, progress)
    progress("importing")
    # Here and not above: these take seconds. The process must hear of the front's end meanwhile, and a wrong path be
    # refused before.
    if start.model.quantize in ("nf4", "fp4") and start.engine.forward_kernels != "off":
        keep_openmp_spin_short()
    keep_kernel_caches_small()
    import torch

    from tokenwire._native import Sampler, Tokenizer
    from tokenwire.engine.draft_model import DraftModel
    from tokenwire.engine.generations import beam_search_factory, generation_factory
    from tokenwire.engine.kernels import native_kernels
    from tokenwire.model.draft import load_draft, make_draft_runner
    from tokenwire.model.loader import load
    from tokenwire.model.progress import tell_progress_inplace
    from tokenwire.model.runner import make_runner

    loaded = load(start.model, start.engine, progress=progress, checkpoint=checkpoint)
    kernels = native_kernels(start.engine.threads or usable_cores())
    draft = load_draft(start.model, start.engine, loaded, progress, kernels=kernels)
    beside = () if draft is None else draft.shapes
    runner = make_runner(loaded, start.engine, progress, kernels=kernels, beside=beside)
    pulse = Pulse()
    tell_progress_inplace(loaded.model, pulse.beat)
    draft_model = None
    if draft is not None:
        tell_progress_inplace(draft.loaded.model, pulse.beat)
        draft_runner = make_draft_runner(draft, runner)
        draft_model = DraftModel(
            draft_runner, vocab_size=loaded.vocab_size, max_step_tokens=start.engine.max_step_tokens
        )
    defaults, unapplied = defaults_from_generation_config(loaded.generation_config, vocab_size=loaded.vocab_size)
    if defaults.eos_token_ids is None:
        # transformers takes them from config.json where generation_config.json is silent.
        defaults = msgspec.structs.replace(defaults, eos_token_ids=loaded.eos_token_ids)
    info = ModelInfo(
        model_id=loaded.model_id,
        revision=loaded.revision,
        architecture=loaded.architecture,
        quantization=loaded.quantization,
        dtype=loaded.dtype,
        device_map=loaded.device_map,
        forward_path=runner.forward_path,
        forward_path_reason=runner.forward_path_reason,
        parameter_count=loaded.parameter_count,
        context_length=runner.context_length,
        vocab_size=loaded.vocab_size,
        kv_token_capacity=runner.num_blocks * runner.block_size,
        special_tokens=loaded.special_tokens,
        bos_token_id=loaded.bos_token_id,
        eos_token_ids=loaded.eos_token_ids,
        pad_token_id=loaded.pad_token_id,
        tokenizer_json=loaded.tokenizer_json,
        chat_templates=loaded.chat_templates,
        defaults=defaults,
        unapplied_defaults=unapplied,
        draft_model="" if draft is None else draft.loaded.model_id,
        max_scored_prompt_tokens=None if runner.supports_chunked_prefill else max_scored_tokens(loaded.vocab_size),
        num_assistant_tokens=0 if draft is None else start.engine.num_assistant_tokens,
    )
    tokenizer = Tokenizer.from_json(loaded.tokenizer_json)
    return Built(
        runner=runner,
        # The runner has set it, to the configured threads or the cores of this process.
        sampler=Sampler(threads=torch.get_num_threads()),
        make_generation=generation_factory(tokenizer, loaded.vocab_size),
        make_beam_search=beam_search_factory(tokenizer, loaded.vocab_size),
        info=info,
        draft_model=draft_model,
        fatal_errors=(torch.AcceleratorError,),
        pulse=pulse,
    )
