"""What every measurement shares: the machine's description, Markdown tables."""

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path


def cpu_features() -> str:
    """The processor's cores and the vector extensions that decide which kernels run."""
    flags: set[str] = set()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags = set(value.split())
            elif key.strip() == "model name":
                name = value.strip()
    wanted = ["avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile"]
    have = [flag for flag in wanted if flag in flags]
    return f"{len(os.sched_getaffinity(0))} cores, {name}, {' '.join(have) or 'no vector extensions listed'}"


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which ``fraction`` of ``values`` lie, 0 to 1: one of them, which 0.5 makes the (upper) median."""
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
