"""transformers.generate in a process of its own, driven by JSON lines: the peer of `bench/generation.py`.

Reads ``{"prompts": [[id, ...], ...], "max_new_tokens": n}`` and answers ``{"seconds": s, "tokens": n}``; the first
line it writes is ``{"ready": true}``. Prompts are padded on the left, as the guide "Generation with LLMs" does.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging


def main() -> None:
    folder, quantize = sys.argv[1:3]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = None
    if quantize == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
    model.eval()
    # An answer of the asked length, as the service gives with `eos_token_id: {}`.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        longest = max(map(len, job["prompts"]))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in job["prompts"]])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in job["prompts"]])
        begin = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=job["max_new_tokens"], do_sample=False)
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "tokens": int((out.shape[1] - longest) * out.shape[0])}), flush=True)


if __name__ == "__main__":
    main()
