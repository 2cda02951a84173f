"""A reader that is cut off anywhere, as often as one likes, gets what an uncut one gets."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.errors import InvalidRequestError, PositionError
from tokenwire.servicers.event_log import EventLog, Position, merged
from tokenwire.v1 import generation_pb2
from tokenwire.v1.generation_service_pb2 import ChatStreamResponse, ResumeStreamResponse

TEXTS = st.text(alphabet="aü世🙂", max_size=4)
STEPS = st.lists(st.tuples(st.integers(0, 2), TEXTS.filter(bool), st.integers(0, 3)), max_size=25)
ENDS = st.lists(st.tuples(TEXTS, st.integers(0, 2)), min_size=3, max_size=3)


def log_of(steps: list[tuple[int, str, int]], ends: list[tuple[str, int]]) -> EventLog:
    """Three sequences: ``steps`` says whose each delta is, its text, and how many tokens; ``ends`` what is last."""
    log = EventLog(3)
    num_bytes, num_tokens = [0] * 3, [0] * 3
    all_steps = [*steps, *((index, text, count) for index, (text, count) in enumerate(ends))]
    for number, (index, text, count) in enumerate(all_steps):
        is_last = number >= len(steps)
        delta = generation_pb2.GenerationDelta(sequence_index=index, text=text)
        delta.text_range.start = num_bytes[index]
        num_bytes[index] += len(text.encode())
        delta.text_range.end = num_bytes[index]
        for token in range(num_tokens[index], num_tokens[index] + count):
            delta.token_ids.append(token)
            delta.logprobs.add().chosen.token_id = token
            delta.tokens.add().id = token
        if index == 0 and num_tokens[0] == 0 and delta.text_range.start == 0:
            delta.prompt_logprobs.add().chosen.token_id = 7
        num_tokens[index] += count
        if not is_last or text or count:
            log.append(ChatStreamResponse(delta=delta))
        if is_last:
            finish = generation_pb2.GenerationFinish(sequence_index=index, stop_string=str(index))
            log.append(ChatStreamResponse(finish=finish))
    return log


@dataclass
class Reader:
    """What a client makes of the events."""

    texts: list[str] = field(default_factory=lambda: [""] * 3)
    token_ids: list[list[int]] = field(default_factory=lambda: [[], [], []])
    prompt_logprobs: int = 0
    finishes: list[str] = field(default_factory=list)

    def take(self, event: Any) -> None:
        assert isinstance(event, ResumeStreamResponse)
        if event.HasField("finish"):
            self.finishes.append(event.finish.stop_string)
            return
        delta = event.delta
        index = delta.sequence_index
        assert str(index) not in self.finishes
        assert delta.text_range.start == len(self.texts[index].encode())
        self.texts[index] += delta.text
        assert delta.text_range.end == len(self.texts[index].encode())
        assert [each.chosen.token_id for each in delta.logprobs] == list(delta.token_ids)
        assert [each.id for each in delta.tokens] == list(delta.token_ids)
        self.token_ids[index] += delta.token_ids
        self.prompt_logprobs += len(delta.prompt_logprobs)

    def positions(self) -> list[tuple[int, Position]]:
        return [
            (index, Position(len(text.encode()), len(self.token_ids[index]), str(index) in self.finishes))
            for index, text in enumerate(self.texts)
        ]


def read_whole(log: EventLog) -> Reader:
    reader = Reader()
    for event in merged(log.rest([]), ResumeStreamResponse):
        reader.take(event)
    return reader


@given(STEPS, ENDS, st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), max_size=12))
def test_any_cuts_give_the_uncut_answer(
    steps: list[tuple[int, str, int]], ends: list[tuple[str, int]], cuts: list[tuple[int, int]]
) -> None:
    """``cuts``: after how many messages each call ends, and how many events each of its messages is made of."""
    log = log_of(steps, ends)
    reader = Reader()
    for num_messages, lag in [*cuts, (1000, 1)]:
        entries = log.rest(reader.positions())
        messages = [
            event
            for place in range(0, len(entries), lag)
            for event in merged(entries[place : place + lag], ResumeStreamResponse)
        ]
        for event in messages[:num_messages]:
            reader.take(event)
    whole = read_whole(log)
    assert sorted(reader.finishes) == sorted(whole.finishes) == ["0", "1", "2"]
    reader.finishes = whole.finishes
    assert reader == whole
    assert all(ids == list(range(len(ids))) for ids in reader.token_ids)


@given(STEPS, ENDS, st.data())
def test_any_byte_offset_gives_the_text_behind_it(
    steps: list[tuple[int, str, int]], ends: list[tuple[str, int]], data: st.DataObject
) -> None:
    log = log_of(steps, ends)
    whole = [text.encode() for text in read_whole(log).texts]
    offsets = [data.draw(st.integers(0, len(text) + 1)) for text in whole]
    positions = [(index, Position(offset, None, False)) for index, offset in enumerate(offsets)]
    beyond = any(offset > len(text) for offset, text in zip(offsets, whole, strict=True))
    within = any(
        offset < len(text) and text[offset] & 0xC0 == 0x80 for offset, text in zip(offsets, whole, strict=True)
    )
    if beyond or within:
        with pytest.raises(PositionError if beyond else InvalidRequestError):
            log.rest(positions)
        return
    rest = [b"", b"", b""]
    for event in merged(log.rest(positions), ResumeStreamResponse):
        rest[event.delta.sequence_index] += event.delta.text.encode()
    assert rest == [text[offset:] for text, offset in zip(whole, offsets, strict=True)]


def test_tokens_without_text_come_again_only_where_their_number_is_not_given() -> None:
    log = log_of([(0, "ab", 2)], [("", 1), ("", 0), ("", 0)])

    def tokens_behind(position: Position) -> list[int]:
        events = merged(log.rest([(0, position)]), ResumeStreamResponse)
        return [token for event in events if not event.delta.sequence_index for token in event.delta.token_ids]

    assert tokens_behind(Position(2, None, False)) == [2]
    assert tokens_behind(Position(2, 2, False)) == [2]
    assert tokens_behind(Position(2, 3, False)) == []
    assert tokens_behind(Position(1, 1, False)) == [1, 2]
    assert tokens_behind(Position(0, 0, True)) == []


@pytest.mark.parametrize(
    ("index", "position", "field", "limit"),
    [
        (0, Position(3, None, False), "positions[0].text_bytes", 2),
        (0, Position(0, 4, False), "positions[0].token_count", 3),
    ],
)
def test_positions_beyond_what_was_generated(index: int, position: Position, field: str, limit: int) -> None:
    log = log_of([(0, "ab", 2)], [("", 1), ("", 0), ("", 0)])
    with pytest.raises(PositionError) as caught:
        log.rest([(index, position)])
    assert (caught.value.field, caught.value.limit) == (field, limit)


def test_sequences_that_cannot_be_are_named_before_anything_else() -> None:
    log = log_of([(0, "ab", 2)], [("", 1), ("", 0), ("", 0)])
    with pytest.raises(InvalidRequestError) as caught:
        log.rest(
            [
                (0, Position(3, None, False)),
                (3, Position(0, 0, False)),
                (2, Position(0, 0, True)),
                (7, Position(0, 0, True)),
            ]
        )
    assert [str(violation) for violation in caught.value.violations] == [
        "positions[1].sequence_index: must be below 3, the number of the request's sequences, got 3",
        "positions[3].sequence_index: must be below 3, the number of the request's sequences, got 7",
    ]


def test_what_a_reader_has_missed_comes_in_messages_of_bounded_size() -> None:
    log = log_of([(0, "a" * 1000, 1)] * 300, [("", 0)] * 3)
    sizes = [event.ByteSize() for event in merged(log.rest([]), ResumeStreamResponse)]
    assert max(sizes) < 70_000
    assert len(sizes) < 12
    assert sum(len(entry.data) for entry in log.batch(0)) < 70_000


def test_what_is_forgotten_leaves_all_places_as_they_are() -> None:
    log = log_of([(0, str(number), 1) for number in range(9)], [("", 0)] * 3)
    behind = log.batch(5)
    log.forget(3)
    assert log.batch(5) == behind
    log.forget(5)
    assert (log.batch(5), log.end) == (behind, 5 + len(behind))


def test_an_event_takes_about_what_is_accounted_for() -> None:
    import tracemalloc

    log = EventLog(1)
    delta = generation_pb2.GenerationDelta(text="word ", token_ids=[1234])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        accounted = 0
        for number in range(10_000):
            delta.text_range.start, delta.text_range.end = 5 * number, 5 * number + 5
            accounted += log.append(ChatStreamResponse(delta=delta))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= accounted <= 2 * taken
