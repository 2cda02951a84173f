"""What every test folder shares."""

import pytest
import torch

from tokenwire import _native


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what the numbers were computed with, because the last bits of a float32 sum depend on it."""
    terminalreporter.write_line(
        f"vector instructions: torch {torch.backends.cpu.get_cpu_capability()}, "
        f"kernels {_native.kernel_levels()[-1]}; {torch.get_num_threads()} torch threads"
    )
