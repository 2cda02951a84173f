"""The engine process: read commands, load, warm up, serve. Its one argument is the number of its socket."""

import contextlib
import ctypes
import dataclasses
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from tokenwire.engine.beams import BeamSearchLike
from tokenwire.engine.channel import BlockingChannel, FrameError
from tokenwire.engine.drafts import DraftModelLike
from tokenwire.engine.engine import Engine, Inbox
from tokenwire.engine.protocol import (
    Abort,
    Beat,
    Event,
    LoadFailed,
    Loading,
    ModelInfo,
    Ready,
    Start,
    Stats,
    StepOutputs,
    Stop,
    Submit,
)
from tokenwire.engine.pulse import BEAT_INTERVAL_S, Pulse
from tokenwire.engine.sampler import SamplerLike
from tokenwire.engine.settings import GenerationSettings
from tokenwire.errors import ModelLoadError, TokenwireError
from tokenwire.model.batch import Runner

_PR_SET_PDEATHSIG = 1
_WARM_UP_REQUEST = -1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A loaded model and what the engine needs around it."""

    runner: Runner
    sampler: SamplerLike[Any]
    make_generation: Callable[[Submit], Any]
    info: ModelInfo
    make_beam_search: Callable[[Submit], BeamSearchLike] | None = None
    draft_model: DraftModelLike | None = None
    fatal_errors: tuple[type[BaseException], ...] = ()
    """Errors of a forward pass after which the device is lost and the process must end."""
    pulse: Pulse = dataclasses.field(default_factory=Pulse)
    """Told by the runner, where a pass can take long, how far it is."""


Build = Callable[[Start, Callable[[str], None]], Built]
"""Loads what Start names; gets a function that reports each phase. Raises ModelLoadError."""


def main() -> None:
    """Run the engine process of the service; ends the process."""
    from tokenwire.engine.build import build

    run(socket.socket(fileno=int(sys.argv[1])), build)


def run(sock: socket.socket, build: Build) -> None:
    """Serve commands on ``sock`` until Stop or until the front is gone; ends the process.

    Call it first of all: commands are read from the start, so that the process ends with the front also while it
    imports or computes. ``build`` does the heavy imports.
    """
    # The front decides when to end; it tells by Stop or by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    sock.set_inheritable(False)
    channel = BlockingChannel(sock)
    inbox: Inbox = SimpleQueue()
    is_serving = threading.Event()
    threading.Thread(target=_read, args=(channel, inbox, is_serving), name="commands", daemon=True).start()
    code = 1
    try:
        code = _load_and_serve(channel, inbox, is_serving, build)
    except ConnectionError:
        # The front is gone: nobody is left to tell.
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Without the interpreter's own end: libraries take seconds to unload, and the system takes all back anyway.
        _exit(code)


def _load_and_serve(channel: BlockingChannel, inbox: Inbox, is_serving: threading.Event, build: Build) -> int:
    _, start = inbox.get()
    if not isinstance(start, Start):
        return 0
    try:
        built = build(start, lambda phase: channel.send(Loading(phase)))
        engine = Engine(
            built.runner,
            built.sampler,
            built.make_generation,
            max_running=start.engine.max_running,
            max_step_tokens=start.engine.max_step_tokens,
            prefill_share=start.engine.prefill_share,
            make_beam_search=built.make_beam_search,
            draft_model=built.draft_model,
            inbox=inbox,
            fatal_errors=built.fatal_errors,
            pulse=built.pulse,
        )
        channel.send(Loading("warming up"))
        _warm_up(engine, built.info)
    except ConnectionError:
        raise
    except TokenwireError as error:
        channel.send(LoadFailed(_one_line(str(error))))
        return 1
    except Exception as error:
        traceback.print_exc()
        channel.send(LoadFailed(_one_line(f"{type(error).__name__}: {error}")))
        return 1
    # What the model consists of lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    is_serving.set()
    channel.send(Ready(built.info))
    threading.Thread(target=_beat, args=(channel, built.pulse, engine.stats), name="heartbeat", daemon=True).start()
    engine.serve(lambda event: _send(channel, inbox, event))
    return 0


def _send(channel: BlockingChannel, inbox: Inbox, event: Event) -> None:
    """Send an event of the loop; a request whose answer fits into no frame ends before the next step."""
    if not isinstance(event, StepOutputs):
        channel.send(event)
    elif failed := channel.send_outputs(event):
        inbox.put((time.monotonic(), Abort(failed)))


def _warm_up(engine: Engine[Any], info: ModelInfo) -> None:
    """Send two tokens through prefill, decode and sampler. Raises ModelLoadError."""
    num_tokens = min(2, info.context_length - 1, info.kv_token_capacity)
    settings = GenerationSettings(max_new_tokens=num_tokens)
    engine.inbox.put((time.monotonic(), Submit(_WARM_UP_REQUEST, [info.bos_token_id or 0], settings)))
    while True:
        outputs = engine.step()
        for failure in outputs.failures:
            raise ModelLoadError(f"the warm-up token failed: {failure.message}")
        if any(delta.finish is not None for delta in outputs.deltas):
            return


def _read(channel: BlockingChannel, inbox: Inbox, is_serving: threading.Event) -> None:
    """Queue commands as they arrive. A closed socket ends the process, whatever the other thread does."""
    code = 0
    try:
        while commands := channel.receive():
            now = time.monotonic()
            for command in commands:
                if isinstance(command, Stop) and not is_serving.is_set():
                    _exit(0)
                inbox.put((now, command))
    except FrameError as error:
        print(f"engine: {error}", file=sys.stderr)  # noqa: T201  (the front passes this on)
        code = 1
    _exit(code)


def _beat(channel: BlockingChannel, pulse: Pulse, stats: Callable[[], Stats]) -> None:
    """Tell the front how the loop fares, until the front is gone."""
    with contextlib.suppress(ConnectionError):
        while True:
            channel.send(Beat(pulse.stalled_s(), stats()))
            time.sleep(BEAT_INTERVAL_S)


def _exit(code: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


def _die_with_parent() -> None:
    """Linux: get SIGKILL when the front dies, also while a library holds the interpreter's lock."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _one_line(text: str) -> str:
    return " ".join(text.split())
