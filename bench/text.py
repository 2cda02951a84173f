"""Encode, decode and streaming decode beside the tokenizers package, on SmolLM2's tokenizer.

    python -m bench.text [models/SmolLM2-135M-Instruct.Q4_1.gguf]

Both run in turns in one process on the same texts; figures are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from bench import report
from tokenwire import _native

MODEL = Path(__file__).parents[1] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ROUNDS = 31

SHORT = "What is the capital of France, and how many people live there today?"
LONG = (
    "It was a bright cold day in April, and the clocks were striking 13. She hadn't slept; the café on the corner — "
    "naïvely named 'Zürich' — was closed.\n\n    def step(self) -> None:\n        return self.rows[0]\n\n"
    "東京は日本の首都です。 Привет, мир! 🎉 1,234,567.89\n"
) * 40


def load(gguf: Path) -> tuple[_native.Tokenizer, Tokenizer]:
    """SmolLM2's tokenizer, ours and the package's."""
    from transformers import AutoTokenizer

    json = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer.to_str()
    return _native.Tokenizer.from_json(json), Tokenizer.from_str(json)


def seconds(work: Callable[[], object], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - start) / repeat


def compare(ours: Callable[[], object], theirs: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Medians over rounds in which both take their turn."""
    pairs = [(seconds(ours, repeat), seconds(theirs, repeat)) for _ in range(ROUNDS)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def main(argv: list[str] | None = None) -> str:
    """Measure and return the Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path, nargs="?", default=MODEL)
    native, reference = load(parser.parse_args(argv).gguf)
    ids = reference.encode(LONG).ids
    short_ids = reference.encode(SHORT).ids

    def stream_ours() -> str:
        stream = _native.Detokenizer(native)
        return "".join([stream.push(token_id) for token_id in ids]) + stream.finish()

    def stream_theirs() -> str:
        stream = DecodeStream(skip_special_tokens=True)
        return "".join([stream.step(reference, token_id) or "" for token_id in ids])

    assert native.encode(LONG).tolist() == ids
    assert native.decode(ids) == reference.decode(ids) == stream_ours() == stream_theirs()
    batch = [LONG] * 8
    rows: list[tuple[str, float, int, Callable[[], object], Callable[[], object], int]] = [
        ("encode a short text, us", 1e6, 1, lambda: native.encode(SHORT), lambda: reference.encode(SHORT).ids, 50),
        ("encode a long text, us per token", 1e6, len(ids), lambda: native.encode(LONG),
         lambda: reference.encode(LONG).ids, 1),
        ("encode a batch of 8 long texts, us per token", 1e6, 8 * len(ids), lambda: native.encode_batch(batch),
         lambda: [row.ids for row in reference.encode_batch(batch)], 1),
        ("decode a short text, us", 1e6, 1, lambda: native.decode(short_ids), lambda: reference.decode(short_ids), 50),
        ("decode a long text, us per token", 1e6, len(ids), lambda: native.decode(ids),
         lambda: reference.decode(ids), 1),
        ("streaming decode, us per token", 1e6, len(ids), stream_ours, stream_theirs, 1),
    ]  # fmt: skip
    cells = []
    for name, unit, tokens, ours, theirs, repeat in rows:
        own, peer = (unit * value / tokens for value in compare(ours, theirs, repeat))
        cells.append([name, f"{own:.3g}", f"{peer:.3g}", f"{peer / own:.1f}x"])
    return report.table(
        [f"text ({len(ids)} tokens long, {len(short_ids)} short)", "tokenwire", "tokenizers", "ratio"], cells
    )


if __name__ == "__main__":
    print(report.cpu_features(), end="\n\n")
    print(main())
