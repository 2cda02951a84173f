"""Continue many prompts in one call; each succeeds or fails by itself. Needs a running server: tokenwire serve."""

import os

from tokenwire.client import Client, TokenwireError

prompts = ["One, two, three,", "", "Red, green,"]  # the empty one is refused

with Client(os.environ.get("TOKENWIRE_ADDRESS", "127.0.0.1:50051")) as client:
    outcomes = client.generate_batch(prompts, max_new_tokens=12)
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if isinstance(outcome, TokenwireError):
            print(f"{prompt!r}: failed: {outcome}")
        else:
            print(f"{prompt!r}: {outcome.text!r}")
