"""Two sets of threads share the cores in a forward pass: torch's OpenMP threads, and those of the kernels."""

import os

_OPENMP_SPIN_COUNT = "2000"
"""Looks of an idle GNU OpenMP thread for its next work, some tens of microseconds; its default is milliseconds long.

Spinning that long, torch's threads would take the cores from the kernels that run between two operations of torch.
Measured on two Zen 3 cores, SmolLM2-135M in NF4, with the default / this / none (``OMP_WAIT_POLICY=PASSIVE``): step of
16 rows 80 / 68 / 98 ms, prefill of 512 tokens 434 / 590 / 372 tokens/s. With ``torch.set_num_threads(1)`` instead:
78 ms, 513 tokens/s, and a slower output head.
"""


def keep_openmp_spin_short() -> None:
    """Call it before torch is first imported, which is when OpenMP reads it. What the operator has set stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _OPENMP_SPIN_COUNT)
