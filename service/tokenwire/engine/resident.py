"""Memory of this process."""

import os
import resource
import sys


def resident_bytes() -> int:
    """Resident set size in bytes; where the system does not tell, the peak."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Kilobytes on Linux, bytes on macOS.
        return peak if sys.platform == "darwin" else peak * 1024
