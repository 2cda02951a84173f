"""What a stream has given so far, kept so that a reader can begin anywhere in it."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tokenwire.errors import InvalidRequestError, PositionError, Violation
from tokenwire.servicers.sequences import StreamEvent, StreamResponse
from tokenwire.v1 import generation_service_pb2

_EVENT_BYTES = 80
"""What an event takes beside its wire format: the object that holds that (33 bytes), and four places in lists."""

_MERGED_BYTES = 64 * 1024
"""Of wire format that becomes one message, so that what a reader has missed stays far below gRPC's 4 MiB."""

_PER_TOKEN = ("token_ids", "logprobs", "tokens", "explanations")
_IS_FINISH = -1


class Position(NamedTuple):
    """How much of a sequence its reader has; as StreamPosition."""

    text_bytes: int
    token_count: int | None
    is_finished: bool


class Entry(NamedTuple):
    """One event in wire format. The streaming calls differ in the name of their response alone, not in its fields."""

    sequence_index: int
    is_finish: bool
    data: bytes


class EventLog:
    """Deltas and finishes of one stream, in order. Places count from the first event, also when it is forgotten."""

    def __init__(self, num_sequences: int) -> None:
        self._data: list[bytes] = []
        self._index, self._text_end, self._token_end = array("i"), array("q"), array("q")
        self._num_forgotten = 0
        self._totals = [(0, 0)] * num_sequences
        """Of each sequence the bytes of text and the tokens so far."""

    @property
    def end(self) -> int:
        """The place behind the last event."""
        return self._num_forgotten + len(self._data)

    def append(self, event: StreamEvent) -> int:
        """Keep ``event``; returns the bytes that it takes."""
        data = event.SerializeToString()
        self._data.append(data)
        if event.HasField("finish"):
            self._index.append(event.finish.sequence_index)
            self._text_end.append(_IS_FINISH)
            self._token_end.append(_IS_FINISH)
        else:
            delta = event.delta
            total = delta.text_range.end, self._totals[delta.sequence_index][1] + len(delta.token_ids)
            self._totals[delta.sequence_index] = total
            self._index.append(delta.sequence_index)
            self._text_end.append(total[0])
            self._token_end.append(total[1])
        return len(data) + _EVENT_BYTES

    def forget(self, place: int) -> None:
        """Drop what lies before ``place``: its reader has it, and there will be no other."""
        count = place - self._num_forgotten
        self._num_forgotten = place
        for column in (self._data, self._index, self._text_end, self._token_end):
            del column[:count]

    def batch(self, place: int) -> list[Entry]:
        """Events from ``place`` on, at least one where there is one, and no more than fit one message well."""
        first = last = place - self._num_forgotten
        size = 0
        while last < len(self._data) and size < _MERGED_BYTES:
            size += len(self._data[last])
            last += 1
        return [self._entry(number) for number in range(first, last)]

    def rest(self, positions: Sequence[tuple[int, Position]]) -> list[Entry]:
        """What lies behind ``positions`` (sequence and position; a sequence without one is sent whole).

        Raises PositionError beyond what was generated, InvalidRequestError within a character or for no sequence of it.
        """
        self._check_indices([index for index, _ in positions])
        for place, (index, position) in enumerate(positions):
            self._check(f"positions[{place}]", index, position)
        known = {index: (place, position) for place, (index, position) in enumerate(positions)}
        ends = [(0, 0)] * len(self._totals)
        rest = []
        for number, index in enumerate(self._index):
            is_finish = self._token_end[number] == _IS_FINISH
            begin, end = ends[index], (self._text_end[number], self._token_end[number])
            if not is_finish:
                ends[index] = end
            if index not in known:
                rest.append(self._entry(number))
                continue
            place, position = known[index]
            if position.is_finished:
                continue
            if is_finish:
                rest.append(self._entry(number))
                continue
            missing = _missing(begin, end, position)
            if missing == (begin[0], begin[1]):
                rest.append(self._entry(number))
            elif missing is not None:
                skipped = missing[0] - begin[0], missing[1] - begin[1]
                path = f"positions[{place}].text_bytes"
                rest.append(Entry(index, False, _cut(self._data[number], *skipped, path=path)))
        return rest

    def _entry(self, number: int) -> Entry:
        return Entry(self._index[number], self._token_end[number] == _IS_FINISH, self._data[number])

    def _check_indices(self, indices: Sequence[int]) -> None:
        # Not OUT_OF_RANGE: the number of sequences is the request's, and no later call would be right.
        count = len(self._totals)
        rule = f"must be below {count}, the number of the request's sequences"
        violations = [
            Violation(f"positions[{place}].sequence_index", rule, str(index))
            for place, index in enumerate(indices)
            if index >= count
        ]
        if violations:
            raise InvalidRequestError(violations)

    def _check(self, path: str, index: int, position: Position) -> None:
        num_bytes, num_tokens = self._totals[index]
        if position.text_bytes > num_bytes:
            raise PositionError(f"{path}.text_bytes", num_bytes, position.text_bytes)
        if position.token_count is not None and position.token_count > num_tokens:
            raise PositionError(f"{path}.token_count", num_tokens, position.token_count)


def _missing(begin: tuple[int, int], end: tuple[int, int], position: Position) -> tuple[int, int] | None:
    """From which byte and which token on a reader lacks a delta from ``begin`` to ``end``; None where it has it all."""
    text = max(begin[0], position.text_bytes)
    if position.token_count is None:
        # Tokens go with their text; those without any lie behind the text.
        has_all = end[0] < text or (end[0] == text and begin[0] < end[0])
        return None if has_all else (text, begin[1])
    token = max(begin[1], position.token_count)
    if text >= end[0] and token >= end[1]:
        # Nothing but log probabilities of the prompt, which come with the first delta.
        is_first = begin == end == (0, 0) == (position.text_bytes, position.token_count)
        return begin if is_first else None
    return min(text, end[0]), min(token, end[1])


def _cut(data: bytes, num_bytes: int, num_tokens: int, *, path: str) -> bytes:
    """The delta of ``data`` without what its reader has."""
    event = generation_service_pb2.GenerateStreamResponse.FromString(data)
    delta = event.delta
    text = delta.text.encode()
    if num_bytes < len(text) and text[num_bytes] & 0xC0 == 0x80:
        place = delta.text_range.start + num_bytes
        raise InvalidRequestError([Violation(path, "must not lie within a character", str(place))])
    delta.text = text[num_bytes:].decode()
    delta.text_range.start += num_bytes
    for name in _PER_TOKEN:
        del getattr(delta, name)[:num_tokens]
    delta.ClearField("prompt_logprobs")
    return event.SerializeToString()


def merged(entries: Iterable[Entry], response: StreamResponse) -> Iterator[StreamEvent]:
    """The events of ``entries``, in which deltas of a sequence that follow one another are one, as far as they fit."""
    waiting: dict[int, list[bytes]] = {}
    sizes: dict[int, int] = {}
    for index, is_finish, data in entries:
        size = sizes.get(index, 0) + len(data)
        if index in waiting and (is_finish or size > _MERGED_BYTES):
            yield _joined(waiting.pop(index), response)
            size = len(data)
        if is_finish:
            yield response.FromString(data)
        else:
            waiting.setdefault(index, []).append(data)
            sizes[index] = size
    for parts in waiting.values():
        yield _joined(parts, response)


def _joined(parts: list[bytes], response: StreamResponse) -> StreamEvent:
    event = response.FromString(parts[0])
    delta = event.delta
    start, texts = delta.text_range.start, [delta.text]
    for data in parts[1:]:
        # Repeated fields grow; those with one value take the later one, where it is not the default.
        delta.text = ""
        event.MergeFromString(data)
        texts.append(delta.text)
    if len(parts) > 1:
        delta.text = "".join(texts)
        delta.text_range.start = start
    return event
