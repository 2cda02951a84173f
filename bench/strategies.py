"""Decoding strategies through the service, each beside what it replaces, in turns: unary calls at one stream."""

import argparse
import statistics
import sys
import time
from typing import Any

from bench import report
from bench.service import running_service
from tokenwire.client import Client

PASSAGE = (
    "The river rises in the hills above the town, runs past the old mill and the two stone bridges, and reaches the "
    "sea by the lighthouse. In spring the snow melts, the water is high, and the ferry does not run. In summer "
    "children swim below the second bridge, and the miller sells bread and honey to those who walk along the bank."
)
COPY_PROMPT = f"Repeat the text below word for word.\n\n{PASSAGE}\n\n{PASSAGE}\n\n{PASSAGE}\n\nThe river rises"
STORY_PROMPT = "Once upon a time there was a lighthouse keeper who"
NEW_TOKENS = 64


def seconds(client: Client, prompt: str, **settings: Any) -> tuple[float, Any]:
    """Seconds of one answer of exactly NEW_TOKENS tokens per sequence, and the answer."""
    begin = time.perf_counter()
    answer = client.generate(
        prompt, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, eos_token_id=[], timeout=300, **settings
    )
    return time.perf_counter() - begin, answer


def main(argv: list[str] | None = None) -> str:
    """Measure and return the Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    sampled = {"do_sample": True, "num_return_sequences": 4, "seed": 1}
    beams = {"num_beams": 4, "do_sample": False, "length_penalty": 0.0}
    plain = {"do_sample": False}
    cases = [
        ("4 beams beside 4 sampled sequences, time", STORY_PROMPT, beams, sampled),
        ("prompt lookup of 10, copy-like prompt", COPY_PROMPT, plain | {"prompt_lookup_num_tokens": 10}, plain),
        ("prompt lookup of 10, story", STORY_PROMPT, plain | {"prompt_lookup_num_tokens": 10}, plain),
    ]
    rows = []
    for quantize in ("none", "nf4"):
        with running_service(quantize=quantize) as service, Client(service.address) as client:
            for name, prompt, settings, other in cases:
                ours, theirs = [], []
                for number in range(options.rounds + 1):
                    mine, answer = seconds(client, prompt, **settings)
                    its, expected = seconds(client, prompt, **other)
                    if "prompt_lookup_num_tokens" in settings:
                        assert answer.text == expected.text, "prompt lookup changed the answer"
                    if number:  # the first round warms up
                        ours.append(mine)
                        theirs.append(its)
                ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
                usage = answer.usage
                accepted = f"{usage.accepted_draft_token_count} of {usage.draft_token_count}"
                weights = "fp32" if quantize == "none" else quantize.upper()
                rows.append(
                    [
                        weights,
                        name,
                        f"{statistics.median(ours):.2f}",
                        f"{statistics.median(theirs):.2f}",
                        f"{ratio:.2f}x",
                        accepted if usage.draft_token_count else "",
                    ]
                )
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    header = ["weights", "strategy", "seconds", "seconds of the other", "speed-up", "drafts accepted"]
    return report.table(header, rows)


if __name__ == "__main__":
    print(main())
