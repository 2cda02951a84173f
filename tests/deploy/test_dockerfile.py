"""The Dockerfile, as far as that can be seen without Docker: form, sources, user, folders, what its commands need."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from deployment_settings import ROOT, unknown_settings
from dockerfile import DOCKERFILE, STAGES, environment_of, lineage

HADOLINT = Path(sys.executable).with_name("hadolint")
IMAGES = ("cpu", "cuda")
WRITABLE = ("/cache", "/tmp")


def copied_from_here() -> list[tuple[str, str]]:
    """Sources in the build's context, and the folder or name that each gets."""
    copies = [text for stage in STAGES.values() for text in stage.all_of("COPY") if not text.startswith("--from")]
    return [(source, text.split()[-1]) for text in copies for source in text.split()[:-1]]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps ``path`` out: the last line that matches it or a folder above it decides."""
    ignored = False
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            names = [*above, *parts] if "**/" in line else above
            if any(fnmatch.fnmatchcase(name, pattern) for name in names):
                ignored = not line.startswith("!")
    return ignored


def test_hadolint_finds_nothing() -> None:
    subprocess.run([HADOLINT, "--failure-threshold", "style", DOCKERFILE], check=True, timeout=120)


def test_bases_are_pinned_and_each_stage_that_is_named_exists() -> None:
    for stage in STAGES.values():
        if stage.base not in STAGES:
            assert re.fullmatch(r"docker\.io/library/[a-z]+:\d+\.\d+\.\d+-[a-z-]*bookworm", stage.base), stage.base
        for text in (*stage.all_of("COPY"), *stage.all_of("RUN")):
            for name in re.findall(r"from=(\w[\w-]*)", text):
                assert name in STAGES


def test_the_compiler_and_python_are_new_enough() -> None:
    (rust,) = re.findall(r'rust-version = "([\d.]+)"', (ROOT / "Cargo.toml").read_text())
    (python,) = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    for stage, least in (("rust", rust), ("wheel", python), ("runtime", python)):
        (version,) = re.findall(r":(\d+\.\d+)", STAGES[stage].base)
        assert [*map(int, version.split("."))] >= [*map(int, least.split("."))]


def test_every_source_exists_and_nothing_else_is_sent_to_the_builder() -> None:
    sources = [source for source, _ in copied_from_here()]
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source
    for path in (".git/config", ".venv/bin/python", "models/x.gguf", "target/release/x", "tests/conftest.py", ".env"):
        assert is_ignored(path), path
    for path in ("service/tokenwire/_native.abi3.so", "service/tokenwire/v1/x.py", "service/tokenwire/__pycache__"):
        assert is_ignored(path), path
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for path in tracked:
        copied = any(path == source or path.startswith(f"{source}/") for source in sources)
        assert copied is not is_ignored(path), path


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_the_service_as_a_user_that_may_write_to_two_folders(image: str) -> None:
    own = [kind for kind, _ in STAGES[image].instructions]
    assert own[-1] == "USER"
    user, _, group = STAGES[image].all_of("USER")[0].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    stages = lineage(image)
    runs = " ".join(text for stage in stages for text in stage.all_of("RUN"))
    assert f"--uid {user} --gid {group}" in runs
    assert f"--owner={user} --group={group} /cache" in runs
    (volumes,) = [text for stage in stages for text in stage.all_of("VOLUME")]
    assert volumes == '["/cache"]'
    environment = environment_of(image)
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TOKENWIRE_CACHE"):
        assert environment[name].startswith(WRITABLE), name
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert not unknown_settings(set(environment))
    assert [text for stage in stages for text in stage.all_of("ENTRYPOINT")] == ['["tokenwire"]']


def test_no_model_is_in_an_image() -> None:
    text = DOCKERFILE.read_text()
    assert "TOKENWIRE_MODEL=" not in text
    assert not [source for source, _ in copied_from_here() if source.startswith("models")]


def test_the_constraints_hold_for_every_package() -> None:
    installs = [text for stage in STAGES.values() for text in stage.all_of("RUN") if "pip install" in text]
    assert len(installs) == 4
    for text in installs:
        assert re.search(r"--constraint (/source/)?constraints\.txt", text), text


@pytest.mark.parametrize("image", IMAGES)
def test_what_a_setting_may_need_is_in_an_image(image: str) -> None:
    """An image cannot be installed into: TOKENWIRE_OTLP_ENDPOINT would end the service."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (text,) = [text for text in STAGES[f"packages-{image}"].all_of("RUN") if "tokenwire-*.whl" in text]
    (installed,) = re.findall(r"tokenwire-\*\.whl\)\[([a-z,]+)\]", text)
    assert set(installed.split(",")) == {"serve", "telemetry"} <= set(extras)


def test_flags_of_pip_exist() -> None:
    for command in ("install", "wheel"):
        shown = subprocess.run(
            [sys.executable, "-m", "pip", command, "--help"], check=True, capture_output=True, text=True, timeout=120
        ).stdout
        runs = [text for stage in STAGES.values() for text in stage.all_of("RUN")]
        flags = {
            flag
            for text in runs
            for part in text.split("&&")
            if f"pip {command}" in part
            for flag in re.findall(r"(--[a-z-]+)", part.split(f"pip {command}")[1])
        }
        assert flags
        for flag in flags:
            assert flag in shown, (command, flag)


def _ignored(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if is_ignored(str((Path(folder) / name).relative_to(ROOT)))]


def copy_sources(folder: Path) -> None:
    """What the build of the wheel is given."""
    for source, destination in copied_from_here():
        if destination.startswith("/"):
            continue
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, folder / destination, ignore=_ignored)
        else:
            target = folder / destination / path.name if destination.endswith("/") else folder / destination
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def test_what_is_copied_is_enough_for_the_stubs_and_names_every_crate(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    generate = "import build_backend; build_backend.generate_stubs()"
    subprocess.run(
        [sys.executable, "-c", generate],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "tools")},
    )
    assert (tmp_path / "service/tokenwire/v1/generation_pb2.py").exists()
    for manifest in ("rust/core", "rust/kernels", "rust/python"):
        assert (tmp_path / manifest / "Cargo.toml").exists()
    assert (tmp_path / "Cargo.lock").exists()
