"""How much memory and how many cores this process may use. Sizes are in bytes."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def format_size(size: float) -> str:
    """A size for people: "76 MiB", "1.4 GiB"."""
    if size < 1024**2:
        return f"{size / 1024:.0f} KiB"
    return f"{size / 1024**2:.0f} MiB" if size < 1024**3 else f"{size / 1024**3:.1f} GiB"


_OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What plain RuntimeErrors of torch say: its allocator on the CPU (Linux and macOS, Windows), the C++ library, and
libraries of CUDA that allocate for themselves."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed for want of memory, on any device. Everything that asks this asks here.

    Does not import torch: where it is not loaded, none of its errors was raised.
    """
    if isinstance(error, MemoryError):
        return True
    torch_module = sys.modules.get("torch")
    if torch_module is not None and isinstance(error, torch_module.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def free_memory(device: "torch.device") -> int:
    """Bytes that can still be allocated on ``device``; on the CPU within the limits of the control group."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return min([_available(Path("/proc/meminfo")), *_cgroup_headrooms(Path("/sys/fs/cgroup"))])


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask (all, where there is none), and its control group's quota."""
    # macOS has no affinity mask.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _available(meminfo: Path) -> int:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match is not None:
        return int(match[1]) * 1024
    # macOS tells only how much there is.
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _cgroup_headrooms(root: Path) -> list[int]:
    """Room below the limit of this process's control group and of those above it (v2), or of the v1 memory group."""
    groups = [root]
    try:
        own = Path("/proc/self/cgroup").read_text()
    except OSError:
        own = ""
    match = re.search(r"^0::/(.+)$", own, re.MULTILINE)
    if match is not None:
        group = root / match[1]
        groups += [group, *(parent for parent in group.parents if parent.is_relative_to(root) and parent != root)]
    files = [(group / "memory.max", group / "memory.current", group / "memory.stat") for group in groups]
    v1 = root / "memory"
    files.append((v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes", v1 / "memory.stat"))
    rooms = []
    for limit_file, usage_file, stat_file in files:
        try:
            limit = limit_file.read_text().strip()
            if limit == "max":
                continue
            used = int(usage_file.read_text())
            stat = stat_file.read_text()
        except (OSError, ValueError):
            continue
        # Clean page cache counts as used but is given back under pressure; a checkpoint just read is mostly that.
        cached = re.search(r"^(?:total_)?inactive_file (\d+)$", stat, re.MULTILINE)
        rooms.append(max(0, int(limit) - used + (int(cached[1]) if cached else 0)))
    return rooms
