"""What the tiny model of the profile `plain` answers, by transformers: the facts of the cases."""

from pathlib import Path
from typing import Any

PROMPT = "The quick brown fox"
MIXED = "Zwölf 🙂 日本 the dog"
RANGES = "Stop the dog"
CLEF = "𝄞"
"""A character of four bytes that the tokenizer has no token for, nor for any part of it."""
NUM_TOKENS = 8
MESSAGES = [{"role": "user", "content": "Hello, how are you?"}]


def _generate(model: Any, ids: list[int]) -> list[int]:
    import torch

    prompt = torch.tensor([ids])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NUM_TOKENS, do_sample=False)
    return [int(token) for token in output[0, len(ids) :]]


def _stop_in(text: str) -> str:
    """A character of the answer that a stop string can be: the first one of ASCII behind the beginning."""
    return next(character for character in text[1:] if character.isascii() and character not in text[0])


def facts(folder: Path) -> dict[str, Any]:
    """Facts about the checkpoint in ``folder``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    prompt_ids = tokenizer(PROMPT).input_ids
    greedy_ids = _generate(model, prompt_ids)
    greedy = tokenizer.decode(greedy_ids, skip_special_tokens=True)
    stop = _stop_in(greedy)

    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    rendered_ids = tokenizer(rendered, add_special_tokens=False).input_ids
    answer_ids = _generate(model, rendered_ids)

    mixed_ids = tokenizer(MIXED).input_ids
    ranges = tokenizer(RANGES, return_offsets_mapping=True)
    clef_ids = tokenizer(CLEF).input_ids
    if len(clef_ids) != len(CLEF.encode()):
        raise AssertionError(f"{CLEF} is to be a token per byte, and is {clef_ids}")

    return {
        "model": folder.name,
        "parameter_count": str(model.num_parameters()),
        "greedy": {
            "prompt": PROMPT,
            "prompt_ids": prompt_ids,
            "prompt_token_count": len(prompt_ids),
            "token_ids": greedy_ids,
            "text": greedy,
            "stop": stop,
            "text_before_stop": greedy.partition(stop)[0],
        },
        "chat": {
            "messages": [{"role": each["role"], "content": [{"text": each["content"]}]} for each in MESSAGES],
            "rendered": rendered,
            "rendered_ids": rendered_ids,
            "prompt_token_count": len(rendered_ids),
            "token_ids": answer_ids,
            "answer": tokenizer.decode(answer_ids, skip_special_tokens=True),
        },
        "mixed": {
            "text": MIXED,
            "token_ids": mixed_ids,
            "tokens": [
                {"id": token, "piece": piece}
                for token, piece in zip(mixed_ids, tokenizer.convert_ids_to_tokens(mixed_ids), strict=True)
            ],
        },
        "ranges": {
            "text": RANGES,
            # Of ASCII: characters are bytes. A zero is left out, as proto3 JSON does.
            "tokens": [
                {"id": token, "range": {"end": str(end)} | ({"start": str(start)} if start else {})}
                for token, (start, end) in zip(ranges.input_ids, ranges.offset_mapping, strict=True)
            ],
        },
        "clef": {
            "text": CLEF,
            "token_ids": clef_ids,
            # After each of its bytes the next one, and after the last the first.
            "bias": {
                "entries": [
                    {"ids": [clef_ids[index - 1], clef_ids[index]], "bias": 100} for index in range(len(clef_ids))
                ]
            },
        },
    }
