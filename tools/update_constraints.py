"""Rewrite constraints.txt: the newest versions that pyproject.toml allows, for every supported Python and platform.

Not a lock file of the installer's: those record download addresses, and an address belongs to one machine.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = (
    "# Versions that were tested together, for every supported Python and platform. Renewed by `make constraints`.\n"
)


def main() -> None:
    """Compile pyproject.toml with all extras."""
    uv = Path(sys.executable).parent / "uv"
    compiled = subprocess.run(
        [
            uv,
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--upgrade",
            "--python-version",
            "3.11",
            "--all-extras",
            "--no-header",
            "--no-annotate",
            "pyproject.toml",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (ROOT / "constraints.txt").write_text(HEADER + compiled)


if __name__ == "__main__":
    main()
