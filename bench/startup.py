"""Start-up time and resident memory of both processes, beside a process that only imports the model's libraries.

python -m bench.startup [ROUNDS]
"""

import statistics
import subprocess
import sys
import time

import psutil

from bench import report
from bench.service import running_service

LIBRARIES = "import torch, transformers, bitsandbytes; print('imported', flush=True); input()"
MIB = 1024 * 1024


def bare_imports() -> tuple[float, float]:
    """Seconds and resident MiB of a process that imports torch, transformers and bitsandbytes."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", LIBRARIES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        process.stdout.readline()
        seconds = time.perf_counter() - begin
        return seconds, psutil.Process(process.pid).memory_info().rss / MIB
    finally:
        process.communicate("\n")


def service(quantize: str) -> tuple[float, float, float]:
    """Seconds to SERVING, resident MiB of the front and of the engine (64 MiB of it KV cache), idle."""
    begin = time.perf_counter()
    with running_service(quantize=quantize, flags=["--kv-cache-memory", "64MiB"]) as running:
        seconds = time.perf_counter() - begin
        front = psutil.Process(running.pid)
        (engine,) = front.children()
        return seconds, front.memory_info().rss / MIB, engine.memory_info().rss / MIB


def main(rounds: int = 3) -> str:
    """Measure and return the Markdown table."""
    imports, served = [], {"none": [], "nf4": []}
    for _ in range(rounds):
        imports.append(bare_imports())
        for quantize, results in served.items():
            results.append(service(quantize))
    seconds, memory = (statistics.median(column) for column in zip(*imports, strict=True))
    rows = [["imports of torch, transformers, bitsandbytes alone", f"{seconds:.1f}", "", f"{memory:.0f}"]]
    for quantize, results in served.items():
        seconds, front, engine = (statistics.median(column) for column in zip(*results, strict=True))
        name = "fp32" if quantize == "none" else quantize.upper()
        rows.append(
            [f"tokenwire serve, SmolLM2-135M {name}, until SERVING", f"{seconds:.1f}", f"{front:.0f}", f"{engine:.0f}"]
        )
    return report.table(["process", "start, s", "front, MiB", "engine or process, MiB"], rows)


if __name__ == "__main__":
    print(report.cpu_features(), end="\n\n")
    print(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
