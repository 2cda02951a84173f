"""PEP 517 backend: generate the protobuf stubs into the package, then let maturin build the wheel.

maturin has no step for generated code; without this, a wheel built by plain ``pip wheel .`` would lack the stubs.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import maturin

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PACKAGE = ROOT / "service"


def generate_stubs() -> None:
    """Run protoc over ``proto/`` into ``service/``: messages, type stubs and gRPC stubs of `tokenwire.v1`."""
    out = PACKAGE / "tokenwire" / "v1"
    out.mkdir(exist_ok=True)
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTO}",
            f"--python_out={PACKAGE}",
            f"--pyi_out={PACKAGE}",
            f"--grpc_python_out={PACKAGE}",
            *protos,
        ],
        check=True,
    )
    (out / "__init__.py").write_text('"""Generated from proto/tokenwire/v1; do not edit."""\n')


@contextlib.contextmanager
def progress_shown() -> Iterator[None]:
    """Let cargo write where ``make`` writes: pip and uv keep a build's output to themselves until it fails.

    TOKENWIRE_BUILD_OUTPUT is the number of an inherited file descriptor; unset, no number or closed, nothing changes.
    """
    try:
        terminal = os.dup(int(os.environ["TOKENWIRE_BUILD_OUTPUT"]))
    except (KeyError, ValueError, OSError):
        yield
        return
    stderr = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(writer)

    def pass_on() -> None:
        with open(reader, "rb") as lines, open(terminal, "wb", buffering=0) as out:
            for line in lines:
                # maturin warns that it is not the build backend itself; this file is, on purpose.
                if b"`build-backend`" not in line:
                    out.write(line)

    thread = threading.Thread(target=pass_on)
    thread.start()
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        thread.join()


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    generate_stubs()
    with progress_shown():
        return str(maturin.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    generate_stubs()
    with progress_shown():
        return str(maturin.build_editable(wheel_directory, config_settings, metadata_directory))


build_sdist = maturin.build_sdist
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_wheel
get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
get_requires_for_build_editable = maturin.get_requires_for_build_editable
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist

if __name__ == "__main__":
    generate_stubs()
