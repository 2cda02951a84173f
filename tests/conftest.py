"""What every test folder shares: how hypothesis draws, and what the numbers were computed with.

``HYPOTHESIS_PROFILE=deep`` draws many more examples, other ones each time.
"""

import os
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from tokenwire import _native

# The same examples everywhere, and no time limit for one: a test that passes here passes there.
settings.register_profile(
    "quick", max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", parent=settings.get_profile("quick"), max_examples=2000, derandomize=False)
# Otherwise draws hang on which modules are loaded, whose constants hypothesis collects, and so on what ran before.
providers._get_local_constants = lambda: providers._local_constants
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


_NUMBERS = "numbers"
_numbers: set[str] = set()


def _computed_with() -> str:
    line = f"vector instructions: kernels {_native.kernel_levels()[-1]}"
    # Not for it alone: a test of the client needs no torch.
    if (torch := sys.modules.get("torch")) is not None:
        line += f", torch {torch.backends.cpu.get_cpu_capability()}; {torch.get_num_threads()} torch threads"
    return line


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a process of pytest-xdist: hands the line over to the one that prints."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output[_NUMBERS] = _computed_with()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes it from there."""
    _numbers.add(getattr(node, "workeroutput", {}).get(_NUMBERS, "a test process ended before its time"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what the numbers were computed with, because the last bits of a float32 sum depend on it."""
    for line in sorted(_numbers) or [_computed_with()]:
        terminalreporter.write_line(line)
