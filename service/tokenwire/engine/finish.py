"""How a sequence ended, with its figures."""

from typing import Any

from tokenwire.engine.beams import BeamAnswerLike
from tokenwire.engine.protocol import Finish
from tokenwire.engine.row import Row
from tokenwire.engine.sampler import EmissionLike


def sequence_finish(row: Row[Any], emission: EmissionLike, reason: str, now: float) -> Finish:
    """The end of a row's sequence with its last emission."""
    queue_ms, prefill_ms, decode_ms = _timings(row, now)
    return Finish(
        reason=reason,
        stop_string=emission.stop_string,
        stop_token_id=emission.stop_token_id,
        prompt_token_count=row.num_prompt,
        completion_token_count=row.num_generated,
        queue_ms=queue_ms,
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
        cached_token_count=row.num_cached_tokens,
        draft_token_count=0 if row.draft is None else row.draft.num_drafted,
        accepted_draft_token_count=0 if row.draft is None else row.draft.num_accepted,
        eos_probability_max=row.generation.eos_probability_max,
    )


def beam_finish(row: Row[Any], index: int, answer: BeamAnswerLike | None, late: str | None, now: float) -> Finish:
    """The end of sequence ``index`` of a beam search whose first row is ``row``.

    ``answer`` None: the search ended before its first step. ``late``: why it was told to end, if it was.
    """
    queue_ms, prefill_ms, decode_ms = _timings(row, now)
    reason = late if answer is None or answer.finish_reason is None else answer.finish_reason
    return Finish(
        reason=reason or "length",
        stop_string=None if answer is None else answer.stop_string,
        stop_token_id=None if answer is None else answer.stop_token_id,
        prompt_token_count=row.num_prompt,
        completion_token_count=0 if answer is None else len(answer.token_ids),
        queue_ms=queue_ms,
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
        cached_token_count=row.num_prompt if index and answer is not None else 0,
        sequence_score=None if answer is None else answer.score,
    )


def _timings(row: Row[Any], now: float) -> tuple[float, float, float]:
    """Milliseconds from acceptance to the first forward pass, from there to the first token, and from there on."""
    first_forward_at = row.first_forward_at or now
    first_token_at = row.first_token_at or now
    return (
        1000 * (first_forward_at - row.accepted_at),
        1000 * (first_token_at - first_forward_at),
        1000 * (now - first_token_at),
    )
