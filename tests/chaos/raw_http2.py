"""HTTP/2 as no honest client speaks it: frames written by hand on a plain socket."""

import socket
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, CONTINUATION = 0, 1, 3, 4, 9
END_STREAM, END_HEADERS = 1, 4
CANCEL = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def header_block(path: str) -> bytes:
    """HPACK without its dynamic table: a gRPC call's headers."""
    # :method POST and :scheme http are whole in the static table, :path and :authority there by name.
    return (
        b"\x83\x86"
        + (b"\x04" + _text(path) + b"\x01" + _text("127.0.0.1"))
        + (b"\x00" + _text("content-type") + _text("application/grpc"))
        + (b"\x00" + _text("te") + _text("trailers"))
    )


def connect(address: str) -> socket.socket:
    """A connection that has said who it is."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return connection


def rapid_resets(path: str, count: int) -> Iterator[bytes]:
    """Calls that are cancelled with the frame behind the one that opens them."""
    block = header_block(path)
    for number in range(count):
        stream = 2 * number + 1
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))


def continuations(path: str, count: int) -> Iterator[bytes]:
    """A header block that does not end."""
    yield frame(HEADERS, 0, 1, header_block(path))
    for number in range(count):
        yield frame(CONTINUATION, 0, 1, b"\x00" + _text(f"x-{number}") + _text("v" * 100))


def empty_data(path: str, count: int) -> Iterator[bytes]:
    """A call whose message never comes, in frames that hold nothing."""
    yield frame(HEADERS, END_HEADERS, 1, header_block(path))
    for _ in range(count):
        yield frame(DATA, 0, 1)


def send_all(address: str, frames: Iterator[bytes]) -> bool:
    """Write ``frames`` on a connection of their own; False where the server closed it before the last."""
    with connect(address) as connection:
        # What it answers is thrown away, or it would wait for room.
        connection.shutdown(socket.SHUT_RD)
        try:
            for part in _gathered(frames):
                connection.sendall(part)
        except OSError:
            return False
        return True


def _gathered(frames: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of some 16 KiB."""
    buffer = bytearray()
    for each in frames:
        buffer += each
        if len(buffer) >= 16 * 1024:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)
