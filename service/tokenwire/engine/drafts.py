"""Drafted tokens: guesses of what sequences generate next, verified several in one forward pass.

A guess comes from the sequence itself (prompt lookup) or from a draft model. It only decides how many tokens a pass
gives: which ones they are is chosen as without it (see ``Sampler.verify`` in `_native.pyi`). So nothing here can make
an answer wrong, and nothing here may make a request fail or another one wait: drafts take the tokens that a pass has
left and the blocks that are free, and give these back after it.
"""

import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol

from tokenwire._native import PromptLookup
from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.details import prepend_details
from tokenwire.engine.protocol import Delta, Submit
from tokenwire.engine.row import Row
from tokenwire.engine.sampler import EmissionLike, GenerationT
from tokenwire.engine.scheduler import Schedule


class DraftState:
    """What one request asks for in drafts, and how it fares."""

    __slots__ = ("end_token_ids", "lookup", "num_accepted", "num_drafted", "num_tokens", "proposed")

    def __init__(self, submit: Submit, lookup: PromptLookup | None, num_tokens: int) -> None:
        self.lookup = lookup
        """The index of prompt lookup; None: the draft model is asked."""
        self.num_tokens = num_tokens
        """Most tokens proposed for one pass; 0 once the draft model failed for this request."""
        self.end_token_ids = (*submit.settings.eos_token_ids, *submit.settings.stop_token_ids)
        self.proposed: list[int] = []
        """For the pass that is being made."""
        self.num_drafted = 0
        self.num_accepted = 0


class Ask(NamedTuple):
    """A sequence for which the draft model shall propose tokens."""

    sequence: int
    tokens: list[int]
    """Prompt and answer so far."""
    num_tokens: int
    """Most tokens to propose, at least 1."""
    end_token_ids: tuple[int, ...]
    """Nothing is proposed behind one of these."""


class DraftModelLike(Protocol):
    """What the engine calls of `draft_model.DraftModel`."""

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """At most ``num_tokens`` tokens for each ask, in their order."""

    def release(self, sequences: Sequence[int]) -> None:
        """Forget sequences that ended or were preempted."""

    def reset(self) -> None:
        """Forget all sequences, after ``propose`` raised."""


class Leading(NamedTuple, Generic[GenerationT]):
    """A row that brought drafts, and its emissions but the last."""

    row: Row[GenerationT]
    emissions: Sequence[EmissionLike]


class Drafts(Generic[GenerationT]):
    """Proposes tokens for the decode rows of a schedule, and puts together what came of them.

    ``is_supported``: whether the runner can go back behind refused tokens; otherwise every request is served plainly.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_step_tokens: int,
        is_supported: bool,
        model: DraftModelLike | None = None,
        fatal_errors: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._blocks = blocks
        self._max_step_tokens = max_step_tokens
        self._is_supported = is_supported
        self._model = model
        self._fatal_errors = fatal_errors
        self.is_wanted = False
        """Whether ``propose`` may have something to do. False costs a step nothing."""

    def begin(self, submit: Submit) -> DraftState | None:
        """What a new request asks for; None where it gets no drafts.

        Those of several sequences, beams or guidance get none: their rows are chosen together.
        """
        settings = submit.settings
        if settings.num_return_sequences > 1 or settings.num_beams > 1 or settings.guidance_scale != 1:
            return None
        if not self._is_supported:
            return None
        state = None
        if settings.prompt_lookup_num_tokens > 0:
            # As in transformers, where prompt lookup goes before the assistant model.
            lookup = PromptLookup(submit.prompt_ids, max_ngram=settings.max_matching_ngram_size)
            state = DraftState(submit, lookup, settings.prompt_lookup_num_tokens)
        elif settings.num_assistant_tokens > 0 and self._model is not None:
            state = DraftState(submit, None, settings.num_assistant_tokens)
        self.is_wanted = self.is_wanted or state is not None
        return state

    def release(self, sequences: Sequence[int]) -> None:
        """Take note of sequences that lost their blocks."""
        if self._model is not None:
            self._model.release(sequences)

    def propose(self, schedule: Schedule[GenerationT], alive: Iterable[Row[GenerationT]]) -> Schedule[GenerationT]:
        """Give decode rows drafts behind their last token; these rows go behind the other decode rows.

        ``alive``: all requests, so that this is not called again where none of them wants drafts any more.
        """
        decode = schedule.rows[: schedule.num_decode]
        asking = [row for row in decode if row.draft is not None]
        if not asking:
            self.is_wanted = any(row.draft is not None for row in alive)
            return schedule
        room = self._max_step_tokens - sum(len(row.step_tokens) for row in schedule.rows)
        asks: list[tuple[Row[GenerationT], Ask]] = []
        for row in asking:
            state = row.draft
            assert state is not None  # noqa: S101 - chosen by it
            state.proposed = []
            # One token comes for certain behind the last draft that comes true.
            count = min(state.num_tokens, row.max_new_tokens - row.num_generated - 1, room)
            if count < 1:
                continue
            if state.lookup is not None:
                state.lookup.extend(row.tokens[len(state.lookup) :])
                state.proposed = state.lookup.guess(count, ends=state.end_token_ids)
                room -= len(state.proposed)
            else:
                asks.append((row, Ask(row.id, row.tokens, count, state.end_token_ids)))
                room -= count
        if asks:
            self._ask_model(asks)
        drafted = []
        for row in asking:
            if row.draft is not None and row.draft.proposed:
                proposed = row.draft.proposed = row.draft.proposed[: self._make_room(row, len(row.draft.proposed))]
                row.step_tokens = [row.tokens[-1], *proposed]
                if proposed:
                    drafted.append(row)
        if not drafted:
            return schedule
        plain = [row for row in decode if len(row.step_tokens) == 1]
        return schedule._replace(rows=[*plain, *drafted, *schedule.rows[schedule.num_decode :]])

    def take_leading(
        self, rows: Sequence[Row[GenerationT]], emissions: Sequence[Sequence[EmissionLike]]
    ) -> list[Leading[GenerationT]]:
        """Append to the rows that had drafts all their tokens but the last, which is left to be committed as any other.

        ``emissions``: of each row, at least one.
        """
        leading = []
        for row, got in zip(rows, emissions, strict=True):
            state = row.draft
            if state is None or not state.proposed:
                continue
            pairs = zip(got, state.proposed, strict=False)
            state.num_accepted += sum(emission.token_id == token for emission, token in pairs)
            state.num_drafted += len(state.proposed)
            row.tokens.extend(emission.token_id for emission in got[:-1])
            leading.append(Leading(row, got[:-1]))
        return leading

    def settle(self, leading: list[Leading[GenerationT]], deltas: list[Delta]) -> None:
        """Put the leading tokens into the deltas that hold the last ones, and give blocks back that nothing is in."""
        by_request = {delta.request: delta for delta in deltas if delta.sequence_index == 0}
        for row, emissions in leading:
            if row.draft is not None:
                row.draft.proposed = []
            self._give_back(row)
            if not emissions:
                continue
            delta = by_request.get(row.request)
            if delta is None:
                # The last token failed the row; what came before it was right.
                delta = Delta(row.request, [], "", [], None)
                deltas.append(delta)
            delta.token_ids[:0] = [emission.token_id for emission in emissions]
            delta.text = "".join(emission.text for emission in emissions) + delta.text
            if row.wants_details:
                prepend_details(delta, emissions)

    def give_up(self, rows: Sequence[Row[GenerationT]]) -> bool:
        """Let ``rows``, whose pass failed for want of memory, go on without drafts; whether any had some."""
        drafted = [row for row in rows if row.draft is not None and row.draft.proposed]
        for row in drafted:
            if row.draft is not None:
                row.draft.proposed = []
                row.draft.num_tokens = 0
            row.step_tokens = [row.tokens[-1]]
            self._give_back(row)
        return bool(drafted)

    def _ask_model(self, asks: list[tuple[Row[GenerationT], Ask]]) -> None:
        assert self._model is not None  # noqa: S101 - no request has a state that asks for it otherwise
        try:
            proposals: list[list[int]] = self._model.propose([ask for _, ask in asks])
        except self._fatal_errors:
            raise
        except Exception as error:
            # The requests go on without; others may have better luck.
            traceback.print_exception(error, file=sys.stderr)
            print("engine: the draft model failed; its requests go on without", file=sys.stderr)  # noqa: T201
            self._model.reset()
            for row, _ in asks:
                if row.draft is not None:
                    row.draft.num_tokens = 0
            return
        for (row, _), proposed in zip(asks, proposals, strict=True):
            if row.draft is not None:
                row.draft.proposed = proposed

    def _make_room(self, row: Row[GenerationT], count: int) -> int:
        """Blocks for ``count`` drafts from those that are free; returns for how many drafts there is room."""
        size = self._blocks.block_size
        missing = self._blocks.blocks_for(row.num_computed + 1 + count) - len(row.block_table)
        taken = self._blocks.allocate(max(0, min(missing, self._blocks.num_free)))
        row.block_table.extend(taken)
        row.num_slots += len(taken) * size
        return min(count, row.num_slots - row.num_computed - 1)

    def _give_back(self, row: Row[GenerationT]) -> None:
        kept = self._blocks.blocks_for(row.num_computed)
        if len(row.block_table) > kept:
            self._blocks.free(row.block_table[kept:])
            del row.block_table[kept:]
            row.num_slots = kept * self._blocks.block_size


def drafts_of(rows: Sequence[Row[Any]]) -> list[list[int]]:
    """The drafts of each row, most of them empty."""
    return [[] if row.draft is None else row.draft.proposed for row in rows]
