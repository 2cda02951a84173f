"""Continue a prompt. Needs a running server: tokenwire serve --model PATH."""

import os

from tokenwire.client import Client

with Client(os.environ.get("TOKENWIRE_ADDRESS", "127.0.0.1:50051")) as client:
    model = client.model()
    print(f"{model.id}: {model.architecture}, {model.quantization} on {model.device}")

    answer = client.generate("The capital of France is", max_new_tokens=16)
    print(answer.text)
    print(f"{answer.usage.completion_token_count} tokens, ended by {answer.finish_reason}")
