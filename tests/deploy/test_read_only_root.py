"""The service where it may write to nothing but the folders that the image sets, as in a container."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from dockerfile import environment_of

from tests import tiny_models
from tests.serving import running_server
from tokenwire.client import Client

READ_ONLY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
REMOUNT_READ_ONLY = 0x1 | 0x20 | 0x1000
KEPT = {"nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "noatime": 0x400, "nodiratime": 0x800, "relatime": 0x200000}
PRIVATE_AND_BELOW = 0x40000 | 0x4000
def mount(source, target, kind, flags):
    if libc.mount(source, target.encode(), kind, flags, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
mount(None, "/", None, PRIVATE_AND_BELOW)
for line in open("/proc/self/mounts").read().splitlines():
    _, target, _, options = line.split()[:4]
    if not target.startswith(("/proc", "/sys", "/dev")) or target.startswith("/dev/shm"):
        kept = sum(KEPT.get(option, 0) for option in options.split(","))
        mount(None, target, None, REMOUNT_READ_ONLY | kept)
count = int(sys.argv[1])
for folder in sys.argv[2 : 2 + count]:
    mount(b"none", folder, b"tmpfs", 0)
command = sys.argv[2 + count :]
os.execvp(command[0], command)
"""


def read_only_but_for(folders: Sequence[Path]) -> list[str]:
    """A command that runs another one where only ``folders`` can be written to, each of them empty."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    names = [str(folder) for folder in folders]
    return ["unshare", *user, "--mount", sys.executable, "-c", READ_ONLY, str(len(names)), *names]


def is_possible(folder: Path) -> bool:
    try:
        probe = subprocess.run([*read_only_but_for([folder]), "true"], capture_output=True, timeout=60)
    except FileNotFoundError:
        return False
    return probe.returncode == 0


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_the_service_runs_where_the_root_file_system_cannot_be_written_to(tmp_path: Path) -> None:
    model, cache, temporary, elsewhere = (tmp_path / name for name in ("model", "cache", "tmp", "elsewhere"))
    for folder in (cache, temporary, elsewhere):
        folder.mkdir()
    if not is_possible(cache):
        pytest.skip("no mount namespaces here")
    wrapper = read_only_but_for([cache, temporary])
    refused = subprocess.run([*wrapper, "touch", str(elsewhere / "x")], capture_output=True, timeout=60)
    assert refused.returncode != 0
    environment = {
        name: value.replace("/cache", str(cache), 1)
        for name, value in environment_of("cpu").items()
        if value.startswith("/cache") or name.startswith("PYTHON")
    }
    tiny_models.save(model, "llama")
    flags = ("--quantize", "nf4", "--health-port", "0", "--kv-cache-memory", "32MiB", "--threads", "1")
    with (
        running_server(model, flags, environment=environment | {"TMPDIR": str(temporary)}, wrapper=wrapper) as server,
        Client(server.address) as client,
    ):
        assert client.generate("a", max_new_tokens=4).usage.completion_token_count > 0
        assert server.terminate() == 0
