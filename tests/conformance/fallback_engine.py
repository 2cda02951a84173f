"""The faulty engine of `tests/chaos` with a tokenizer of byte fallback: `python fallback_engine.py FD`.

Characters of ASCII are in its vocabulary; of all others every byte is a token of its own, <0xC3> for the first one of
é. The id of a byte is its value.
"""

import json
import socket
import sys
from functools import partial
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parent.parent / folder) for folder in ("chaos", "grpc", "unit"))

import fakes
import faulty_engine

from tokenwire.engine.main import run


def fallback_tokenizer() -> str:
    """As the fakes' one, but for its bytes, which are written as SentencePiece writes them."""
    tokenizer = json.loads(fakes.tokenizer_json())
    tokenizer["pre_tokenizer"] = None
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    # Not all as bytes: decoders of byte fallback see a character of several only where their row ends.
    vocab = {chr(byte) if byte < 128 else f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer["model"] |= {"byte_fallback": True, "vocab": vocab}
    return json.dumps(tokenizer)


if __name__ == "__main__":
    # Where the engine takes the description of its model from.
    vars(faulty_engine)["model_info"] = partial(fakes.model_info, tokenizer_json=fallback_tokenizer())
    run(socket.socket(fileno=int(sys.argv[1])), faulty_engine.build)
