"""What a server never does: connect to anywhere, unpickle, run a checkpoint's code, write down what is said."""

import json
import os
import pickle
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from test_startup_failures import errors, serve

from tests.serving import Server, running_server
from tokenwire.client import Client, InvalidArgument
from tokenwire.telemetry.snapshots import fetch

HAS_NETWORK_GUARD = platform.system() == "Linux" and shutil.which("cc") is not None
"""It is C, and loaded by Linux's dynamic linker."""

FLAGS = ["--kv-cache-memory", "32MiB", "--threads", "1", "--log-level", "debug", "--metrics-port", "0"]

AUDIT = """
import os, sys

def note(event, arguments):
    if event in ("pickle.find_class", "socket.getaddrinfo", "socket.connect"):
        # The engine and uvloop talk through Unix sockets; a name in digits is not looked up.
        if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):
            return
        if event == "socket.getaddrinfo" and arguments[0] in ("127.0.0.1", b"127.0.0.1"):
            return
        with open(os.environ["AUDIT"], "a") as file:
            print(os.getpid(), event, arguments[:2], file=file)

with open(os.environ["AUDIT"], "a") as file:
    print(os.getpid(), "loaded", file=file)
sys.addaudithook(note)
"""


def use(server: Server) -> list[str]:
    """One call of every kind, good and bad; the texts of prompts and answers."""
    texts = []
    with Client(server.address) as client:
        for number in range(3):
            prompt = f"heliotrope marmalade {number}"
            answer = client.generate(prompt, max_new_tokens=24, do_sample=True, seed=number).text
            with client.stream(prompt, max_new_tokens=24, stop_strings=["unlikely saxophone"]) as stream:
                streamed = stream.text()
            texts += [prompt, answer, streamed]
        texts.append(client.chat("the quince conspiracy", max_new_tokens=24).text)
        texts += ["the quince conspiracy", "unlikely saxophone"]
        client.generate_batch(["batch of parsnips", "x"], max_new_tokens=2)
        client.tokenize("tokenized turnips")
        client.render_chat("rendered radish")
        client.model()
        with pytest.raises(InvalidArgument):
            client.generate("refused rhubarb", max_new_tokens=0)
        with pytest.raises(InvalidArgument):
            client.generate("overlong okra " * 500)
        with client.stream("cancelled cabbage", max_new_tokens=100) as stream:
            next(stream)
    texts += ["parsnips", "turnips", "radish", "rhubarb", "okra", "cabbage"]
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary("/tokenwire.v1.GenerationService/Generate")
        with pytest.raises(grpc.RpcError):
            method(b"\x0a\xffundecodable ugli fruit")
    return [*texts, "ugli"]


@dataclass
class Watched:
    """A server's whole life, as it was seen from outside."""

    pid: str
    texts: list[str]
    """Of prompts and answers."""
    log: str
    metrics: str
    """The last scrape."""
    notes: dict[str, list[list[str]]]
    """By guard: pid and event of each note."""


@pytest.fixture(scope="module")
def watched(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("guards")
    guards = {"AUDIT": folder / "audit"}
    (folder / "sitecustomize.py").write_text(AUDIT)
    environment = {"PYTHONPATH": os.fspath(folder)}
    if HAS_NETWORK_GUARD:
        library = folder / "guard.so"
        source = Path(__file__).with_name("network_guard.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        environment["LD_PRELOAD"] = os.fspath(library)
        guards["NETWORK_GUARD"] = folder / "network"
    environment |= {name: os.fspath(path) for name, path in guards.items()}
    with running_server(tiny_llama, FLAGS, environment=environment) as server:
        texts = use(server)
        (metrics_address,) = [line["metrics_address"] for line in server.log if line["event"] == "listening"]
        metrics = fetch(metrics_address, 60)
        assert server.terminate() == 0
    notes = {name: [line.split(" ", 1) for line in path.read_text().splitlines()] for name, path in guards.items()}
    return Watched(str(server.pid), texts, json.dumps(server.log, ensure_ascii=False), metrics, notes)


@pytest.mark.parametrize(
    "guard",
    [
        "AUDIT",
        pytest.param("NETWORK_GUARD", marks=pytest.mark.skipif(not HAS_NETWORK_GUARD, reason="needs Linux and cc")),
    ],
)
def test_no_outgoing_connection_and_nothing_unpickled(watched: Watched, guard: str) -> None:
    """Of any library in any process, from the first to the last: a local model needs no network at all."""
    notes = watched.notes[guard]
    # The guard was there, in the front and in the engine.
    loaded = {process for process, event in notes if event == "loaded"}
    assert watched.pid in loaded
    assert len(loaded) >= 2
    assert [note for note in notes if note[1] != "loaded"] == []


def test_neither_prompt_nor_answer_is_written_down(watched: Watched) -> None:
    assert watched.log.count('"event": "request"') >= 15
    assert "tokenwire_generation_tokens_total" in watched.metrics
    for text in watched.texts:
        assert text
        assert text not in watched.log
        assert json.dumps(text)[1:-1] not in watched.log
        if len(text) > 8:  # shorter ones may stand there as part of a name
            assert text not in watched.metrics


def test_code_and_pickles_in_a_checkpoint_are_left_alone(tiny_llama: Path, tmp_path: Path) -> None:
    """A checkpoint of a known architecture that brings code, and a pickle beside its weights: served without either."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    marker = tmp_path / "was run"
    for name in ("modeling_own.py", "tokenization_own.py", "configuration_own.py"):
        (folder / name).write_text(f"open({os.fspath(marker)!r}, 'w').close()\nclass Own: pass\n")
    for name, entries in (
        ("config.json", {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_own.Own", None]}),
    ):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": entries}))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with running_server(tiny_llama, FLAGS) as server, Client(server.address) as client:
        expected = client.generate("What is", max_new_tokens=8, do_sample=False).text
    with running_server(folder, FLAGS) as server, Client(server.address) as client:
        assert client.generate("What is", max_new_tokens=8, do_sample=False).text == expected
    assert not marker.exists()
    (folder / "model.safetensors").unlink()
    code, stderr = serve("--model", str(folder))
    assert code == 1
    (error,) = errors(stderr)
    assert "pytorch_model.bin, a pickle that can run code and is never loaded" in error
    assert not marker.exists()


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (os.fspath(self.marker), "w")
