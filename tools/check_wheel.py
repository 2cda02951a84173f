"""Build the wheel with plain ``pip wheel .`` and prove it: its contents, and its imports in a clean environment."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUBS = ["generation", "generation_service", "chat", "tokenizer_service", "model_service"]
IMPORTS = """
import sys
import tokenwire
import tokenwire.cli
import tokenwire.client
import tokenwire.server
from tokenwire import _native
from tokenwire.v1 import generation_service_pb2, generation_service_pb2_grpc
assert _native.pad([], pad_token_id=0, side="left").input_ids.shape[0] == 0
assert generation_service_pb2.GenerateRequest(prompt={"text": "x"}).HasField("prompt")
heavy = {"torch", "transformers", "bitsandbytes"} & set(sys.modules)
assert not heavy, f"the front imports {heavy}"
print("imports", tokenwire.__file__)
"""


def expected_members() -> set[str]:
    """Generated stubs and the extension, as they must appear in the wheel."""
    stubs = {f"tokenwire/v1/{name}_pb2{suffix}" for name in STUBS for suffix in (".py", ".pyi", "_grpc.py")}
    return stubs | {"tokenwire/v1/__init__.py", "tokenwire/_native.pyi", "tokenwire/py.typed"}


def main() -> None:
    """Run the check; a failure names what is missing."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)], check=True
        )
        (wheel,) = Path(folder).glob("tokenwire-*.whl")
        members = set(zipfile.ZipFile(wheel).namelist())
        missing = expected_members() - members
        if missing:
            sys.exit(f"{wheel.name} lacks {sorted(missing)}")
        if not any(name.startswith("tokenwire/_native") and name.endswith((".so", ".pyd")) for name in members):
            sys.exit(f"{wheel.name} lacks the extension module")
        clean = Path(folder, "clean")
        uv = [str(Path(sys.executable).parent / "uv")]
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(clean)], check=True)
        python = str(clean / "bin" / "python")
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *constraints, str(wheel)], check=True)
        subprocess.run([python, "-I", "-c", IMPORTS], check=True, cwd=folder)
        print(f"{wheel.name}: holds the stubs and the extension, imports in a clean environment")


if __name__ == "__main__":
    main()
