"""Requests of several rows: how their rows are made, and which rows of logits they take.

Kept apart from the engine's step, whose way for plain batches knows nothing of it.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import msgspec

from tokenwire.engine.beams import BeamGroup, BeamSearchLike
from tokenwire.engine.protocol import Submit
from tokenwire.engine.row import GenerationT, Row, TimeLimits


class RowFactory(Generic[GenerationT]):
    """Makes the rows of a request. ``make_beam_search`` may be left out where no request has beams."""

    def __init__(
        self,
        make_generation: Callable[[Submit], GenerationT],
        make_beam_search: Callable[[Submit], BeamSearchLike] | None,
        *,
        block_size: int,
        shares_blocks: bool,
    ) -> None:
        self._make_generation = make_generation
        self._make_beam_search = make_beam_search
        self._block_size = block_size
        self._shares_blocks = shares_blocks
        self._num_made = 0

    def make(self, submit: Submit, accepted_at: float) -> Row[GenerationT]:
        """The first row of a request, with its forks, mates or beams.

        Raises ValueError for settings that cannot be served, and what the making of a generation raises.
        """
        settings = submit.settings
        limits = _limits(submit, accepted_at)
        if settings.num_beams > 1:
            first = self._beams(submit, accepted_at)
        else:
            first = self._sequence(submit, submit.prompt_ids, accepted_at)
            if settings.num_return_sequences > 1:
                first.forks = [
                    self._fork(submit, first, index, limits) for index in range(1, settings.num_return_sequences)
                ]
                first.width *= settings.num_return_sequences
        first.limits = limits
        return first

    def _sequence(self, submit: Submit, prompt_ids: list[int], accepted_at: float) -> Row[GenerationT]:
        generation = self._make_generation(submit)
        row = self._row(submit, prompt_ids, generation, accepted_at)
        if submit.settings.guidance_scale != 1.0:
            # transformers: without a negative prompt the model goes on from the prompt's last token.
            negative = prompt_ids[-1:] if submit.negative_prompt_ids is None else submit.negative_prompt_ids
            if not negative:
                raise ValueError("negative_prompt: must not be empty")
            twin = self._row(submit, negative.copy(), generation, accepted_at)
            twin.is_mate = True
            row.mates = [twin]
            row.width = 2
        return row

    def _fork(self, submit: Submit, first: Row[GenerationT], index: int, limits: TimeLimits | None) -> Row[GenerationT]:
        own = msgspec.structs.replace(submit, sequence_index=submit.sequence_index + index)
        fork = self._sequence(own, first.tokens.copy(), first.accepted_at)
        fork.index = index
        fork.limits = limits
        return fork

    def _beams(self, submit: Submit, accepted_at: float) -> Row[GenerationT]:
        settings = submit.settings
        if self._make_beam_search is None:
            raise ValueError("num_beams: beam search is not available")
        search = self._make_beam_search(submit)
        rows = [self._row(submit, submit.prompt_ids, None, accepted_at)]
        rows += [self._row(submit, [], None, accepted_at) for _ in range(1, settings.num_beams)]
        BeamGroup(
            rows,
            search,
            num_answers=settings.num_return_sequences,
            block_size=self._block_size,
            shares_blocks=self._shares_blocks,
        )
        return rows[0]

    def _row(self, submit: Submit, prompt_ids: list[int], generation: Any, accepted_at: float) -> Row[GenerationT]:
        row: Row[GenerationT] = Row(self._num_made, submit, prompt_ids, generation, accepted_at)
        self._num_made += 1
        return row


class Selection(NamedTuple, Generic[GenerationT]):
    """Who takes a token from which row of a pass's logits."""

    rows: list[Row[GenerationT]]
    """Sequences with a generation; several may take theirs from the same row, at the end of their common prompt."""
    order: list[int]
    """Rows of the logits: those of ``rows``, then those of their twins."""
    guidance: list[int]
    """For each of ``rows`` the place of its twin in ``order``, or -1."""
    beams: list[tuple[Row[GenerationT], BeamGroup[GenerationT], range]]
    """First rows of beam searches, and the rows of the logits that the search takes."""


def select(
    rows: list[Row[GenerationT]], fork: Callable[[Row[GenerationT]], list[Row[GenerationT]]]
) -> Selection[GenerationT]:
    """Go through the rows of a pass that gave logits. ``fork`` starts a row's forks and returns those that run."""
    place_of = {row.id: place for place, row in enumerate(rows)}
    taking: list[Row[GenerationT]] = []
    order: list[int] = []
    twins: list[int] = []
    beams: list[tuple[Row[GenerationT], BeamGroup[GenerationT], range]] = []
    for place, row in enumerate(rows):
        if row.is_mate:
            continue
        if row.beams is not None:
            beams.append((row, row.beams, range(place, place + 1 + len(row.mates))))
            continue
        for member in [row, *fork(row)] if row.forks else [row]:
            taking.append(member)
            order.append(place)
            twins.append(place_of[row.mates[0].id] if row.mates else -1)
    guidance = [-1] * len(taking)
    for number, twin in enumerate(twins):
        if twin >= 0:
            guidance[number] = len(order)
            order.append(twin)
    return Selection(taking, order, guidance, beams)


def take(logits: Any, order: list[int]) -> Any:
    """The rows ``order`` of ``logits`` ``[rows, V]``; a view where they lie side by side."""
    first = order[0]
    if order == list(range(first, first + len(order))):
        return logits[first : first + len(order)]
    return logits[order]


def _limits(submit: Submit, accepted_at: float) -> TimeLimits | None:
    settings = submit.settings
    deadline = submit.deadline if settings.deadline_aware else None
    if settings.max_time is None and deadline is None:
        return None
    never = float("inf")
    return TimeLimits(
        never if settings.max_time is None else accepted_at + settings.max_time,
        never if deadline is None else deadline,
    )
