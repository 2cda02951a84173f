"""The engine: one loop over commands, scheduler, model and sampler. One thread owns all of it."""

import itertools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple

from tokenwire.engine.beams import BeamSearchLike, BeamStepLike
from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.details import prepend_details
from tokenwire.engine.drafts import DraftModelLike, Drafts, Leading, drafts_of
from tokenwire.engine.finish import beam_finish, sequence_finish
from tokenwire.engine.group import RowFactory, select, take
from tokenwire.engine.limits import TimeKeeper
from tokenwire.engine.prompt_logprobs import PromptScorer
from tokenwire.engine.protocol import (
    Abort,
    Command,
    Delta,
    Event,
    Failure,
    GetStats,
    Stats,
    StepOutputs,
    Stop,
    Submit,
)
from tokenwire.engine.pulse import Pulse
from tokenwire.engine.resident import resident_bytes
from tokenwire.engine.row import Row
from tokenwire.engine.sampler import EmissionLike, GenerationT, SamplerLike
from tokenwire.engine.scheduler import Schedule, Scheduler
from tokenwire.engine.step_times import StepTimes
from tokenwire.model.batch import ForwardBatch, Runner
from tokenwire.model.memory import is_out_of_memory

Inbox = SimpleQueue[tuple[float, Command]]
"""Commands with the monotonic time at which they arrived."""


class _BeamStep(NamedTuple, Generic[GenerationT]):
    """What one step gave a beam search."""

    row: Row[GenerationT]
    step: BeamStepLike
    late: str | None
    """Why the search was told to end with this step, if it was."""


class Engine(Generic[GenerationT]):
    """Serves requests with one runner.

    ``make_generation`` builds the sampler's state of a sequence, ``make_beam_search`` that of a beam search; an
    exception there fails the request alone, a ValueError as the caller's fault. ``draft_model`` proposes tokens for
    requests with num_assistant_tokens.
    ``fatal_errors`` of a forward pass are let through: the process must end, its device is lost.
    ``prefill_share``: of the time of a step in which other rows decode, for prefill.
    After a forward pass that ran out of memory its requests are computed again in smaller passes.
    ``clock``: what deadlines and commands go by, in monotonic seconds; ``step_clock``: by which parts of a step, and so
    the pace of prefill, are measured.
    ``pulse`` is told at every step that the loop gets on.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: SamplerLike[GenerationT],
        make_generation: Callable[[Submit], GenerationT],
        *,
        max_running: int,
        max_step_tokens: int,
        prefill_share: float = 1.0,
        make_beam_search: Callable[[Submit], BeamSearchLike] | None = None,
        draft_model: DraftModelLike | None = None,
        inbox: Inbox | None = None,
        fatal_errors: tuple[type[BaseException], ...] = (),
        clock: Callable[[], float] = time.monotonic,
        step_clock: Callable[[], float] = time.perf_counter,
        pulse: Pulse | None = None,
    ) -> None:
        self.inbox: Inbox = SimpleQueue() if inbox is None else inbox
        self._runner = runner
        self._sampler = sampler
        self._make_rows: RowFactory[GenerationT] = RowFactory(
            make_generation,
            make_beam_search,
            block_size=runner.block_size,
            shares_blocks=runner.shares_blocks,
        )
        self._fatal_errors = fatal_errors
        self._clock = clock
        self._step_clock = step_clock
        self._pulse = Pulse() if pulse is None else pulse
        self._blocks = BlockManager(runner.num_blocks, runner.block_size)
        self._scheduler: Scheduler[GenerationT] = Scheduler(
            self._blocks,
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            supports_chunked_prefill=runner.supports_chunked_prefill,
            shares_blocks=runner.shares_blocks,
            prefill_share=prefill_share,
        )
        self._drafts: Drafts[GenerationT] = Drafts(
            self._blocks,
            max_step_tokens=max_step_tokens,
            is_supported=runner.supports_drafts,
            model=draft_model,
            fatal_errors=fatal_errors,
        )
        self._scorer = PromptScorer(sampler, vocab_size=runner.vocab_size, is_chunked=runner.supports_chunked_prefill)
        self._requests: dict[int, list[Row[GenerationT]]] = {}
        """The rows of each request that the scheduler knows, mates left out."""
        self._times: TimeKeeper[GenerationT] = TimeKeeper()
        self._failures: list[Failure] = []
        self._stats_asked = 0
        self._stopping = False
        self._num_steps = 0
        self._step_times = StepTimes()

    def serve(self, send: Callable[[Event], None]) -> None:
        """Step until a Stop command: one message per step that gave something. Blocks where there is nothing to do."""
        while not self._stopping:
            outputs = self.step()
            if outputs.deltas or outputs.failures:
                send(outputs)
            while self._stats_asked:
                self._stats_asked -= 1
                send(self.stats())

    def step(self) -> StepOutputs:
        """Apply what arrived, then compute and choose a token for every row that is ready for one.

        Rows whose drafts come true get more than one.
        """
        self._apply_commands()
        clock = self._step_clock
        began, drafted_s = clock(), 0.0
        ended = self._end_idle_late() if self._times.limited else []
        schedule = self._scheduler.schedule()
        self._tell_released()
        if not schedule.rows:
            return self._outputs(ended)
        beam_steps: list[_BeamStep[GenerationT]] = []
        leading: list[Leading[GenerationT]] = []
        try:
            if self._scheduler.copies:
                self._copy_blocks(self._scheduler.copies)
            # Rows that are chosen together take one row of logits each: beside them nothing is drafted.
            if self._drafts.is_wanted and schedule.is_plain:
                alive = itertools.chain(self._scheduler.running, self._scheduler.waiting)
                draft_began = clock()
                schedule = self._drafts.propose(schedule, alive)
                drafted_s = clock() - draft_began
            forward_began = clock()
            try:
                logits = self._forward(schedule)
            except Exception as error:
                if isinstance(error, self._fatal_errors) or not is_out_of_memory(error):
                    raise
                return self._compute_less(schedule, ended)
            forward_ended = clock()
            if self._drafts.is_wanted and any(drafts := drafts_of(schedule.rows[: schedule.num_sampled])):
                rows = schedule.rows[: schedule.num_sampled]
                emissions, leading = self._verify(logits, rows, drafts)
            elif schedule.is_plain:
                rows = schedule.rows[: schedule.num_sampled]
                emissions = self._sample(logits, rows)
            else:
                rows, emissions, beam_steps = self._sample_groups(schedule, logits)
        except self._fatal_errors:
            raise
        except Exception as error:
            return self._fail(schedule.rows, error, ended)
        sampled = clock()
        outputs = self._commit(schedule, rows, emissions, beam_steps, ended)
        if leading:
            self._drafts.settle(leading, outputs.deltas)
        if self._scorer.is_wanted:
            self._end_failed(self._scorer.send(schedule.rows, outputs.deltas), outputs)
        done = clock()
        self._scheduler.observe(done - began)
        self._step_times.add(began, drafted_s, forward_began, forward_ended, sampled, done)
        return outputs

    def stats(self) -> Stats:
        """Counters as they are now. Reads single values only, so that another thread may ask, too."""
        scheduler, times = self._scheduler, self._step_times
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_total=self._blocks.num_blocks,
            blocks_free=self._blocks.num_free,
            steps=self._num_steps,
            preemptions=scheduler.num_preemptions,
            resident_bytes=resident_bytes(),
            draft_s=times.draft_s,
            forward_s=times.forward_s,
            sample_s=times.sample_s,
            rest_s=times.rest_s,
        )

    def _apply_commands(self) -> None:
        """Take every command that arrived; wait for one only where there is nothing else to do."""
        inbox = self.inbox
        is_idle = not self._requests
        if is_idle:
            self._pulse.rest()
        while is_idle or not inbox.empty():
            is_idle = False
            arrived_at, command = inbox.get()
            match command:
                case Submit():
                    self._accept(command, arrived_at)
                case Abort(requests=requests):
                    for request_id in requests:
                        self._end_request(request_id)
                case GetStats():
                    self._stats_asked += 1
                case Stop():
                    self._stopping = True
        self._pulse.beat()

    def _accept(self, submit: Submit, arrived_at: float) -> None:
        longest = max(len(submit.prompt_ids), len(submit.negative_prompt_ids or ()))
        num_tokens = longest + (submit.settings.healed_token_id is not None) + submit.settings.max_new_tokens
        if not submit.prompt_ids:
            self._failures.append(Failure(submit.request, "capacity", "the prompt is empty"))
            return
        if num_tokens > self._runner.context_length:
            message = f"{num_tokens} tokens exceed the context of {self._runner.context_length}"
            self._failures.append(Failure(submit.request, "capacity", message))
            return
        if refusal := self._scorer.refusal(submit):
            self._failures.append(Failure(submit.request, "capacity", refusal))
            return
        try:
            row = self._make_rows.make(submit, arrived_at)
            row.draft = self._drafts.begin(submit)
        except ValueError as error:
            self._failures.append(Failure(submit.request, "invalid", str(error)))
            return
        except Exception as error:
            # A panic of Rust arrives as RuntimeError: this request's end, not that of its neighbours.
            self._failures.append(Failure(submit.request, "step", _described(error)))
            return
        if not self._scheduler.can_ever_fit(row):
            num_rows = row.width if row.beams is not None else 1 + len(row.mates)
            if num_rows > self._scheduler.max_running:
                message = f"{num_rows} rows at once exceed max_running, {self._scheduler.max_running}"
            else:
                message = (
                    f"{num_tokens} tokens in {num_rows} rows exceed the KV cache of {self._blocks.num_blocks} blocks"
                )
            self._failures.append(Failure(submit.request, "capacity", message))
            return
        self._requests[submit.request] = [row]
        self._scorer.begin(row, submit.settings)
        self._scheduler.add(row)
        if row.limits is not None:
            self._times.watch(row)

    def _end_idle_late(self) -> list[Delta]:
        """End what is out of time while it waits or prefills; rows that decode are looked at behind their token."""
        now = self._clock()
        self._times.begin_step(now)
        deltas: list[Delta] = []
        for row in list(self._times.limited.values()):
            if row.block_table and not row.is_prefilling:
                continue
            reason = self._times.reason_to_end(row, now, has_token=row.num_generated > 0)
            if reason is None:
                continue
            self._end(row)
            self._scorer.forget(row.request)
            if row.beams is not None:
                finishes = [beam_finish(row, index, None, reason, now) for index in range(row.beams.num_answers)]
                deltas += [Delta(row.request, [], "", [], finish, index) for index, finish in enumerate(finishes)]
                continue
            for member in (row, *row.forks):
                deltas.append(Delta(row.request, [], "", [], None, member.index))
                self._end_early(member, deltas[-1], reason, now)
        return deltas

    def _forward(self, schedule: Schedule[GenerationT]) -> Any:
        """Logits of the rows that are sampled, as many of each as it has drafts and one more."""
        rows = schedule.rows
        counts = [1] * len(rows)
        if self._drafts.is_wanted:
            counts = [1 + len(draft) for draft in drafts_of(rows)]
        if schedule.num_sampled < len(rows):
            counts[schedule.num_sampled :] = [0] * (len(rows) - schedule.num_sampled)
        if not self._scorer.is_wanted:
            return self._runner.forward(self._batch(schedule, counts))
        num_logits = self._scorer.num_logits(rows, counts)
        logits = self._runner.forward(self._batch(schedule, num_logits))
        return self._scorer.score(rows, num_logits, counts, logits)

    def _batch(self, schedule: Schedule[GenerationT], num_logits: list[int]) -> ForwardBatch:
        rows = schedule.rows
        if schedule.num_decode < len(rows):
            now = self._clock()
            for row in rows[schedule.num_decode :]:
                row.first_forward_at = row.first_forward_at or now
        return ForwardBatch(
            sequence_ids=[row.id for row in rows],
            token_ids=[row.step_tokens for row in rows],
            num_computed_tokens=[row.num_computed for row in rows],
            block_tables=[row.block_table for row in rows],
            num_logits=num_logits,
        )

    def _sample(
        self, logits: Any, rows: list[Row[GenerationT]], guidance: list[int] | None = None
    ) -> Sequence[EmissionLike]:
        """One emission for each of ``rows``; ``guidance``: where any of them has a twin."""
        if not rows:
            return ()
        generations = [row.generation for row in rows]
        if guidance is None:
            emissions = self._sampler.step(logits, generations)
        else:
            emissions = self._sampler.step(logits, generations, guidance=guidance)
        if len(emissions) != len(rows):
            raise RuntimeError(f"the sampler gave {len(emissions)} emissions for {len(rows)} rows")
        return emissions

    def _verify(
        self, logits: Any, rows: list[Row[GenerationT]], drafts: list[list[int]]
    ) -> tuple[Sequence[EmissionLike], list[Leading[GenerationT]]]:
        """The last emission of each of ``rows``, some of which have drafts, and what came before it."""
        verified = self._sampler.verify(logits, [row.generation for row in rows], drafts)
        return [emissions[-1] for emissions in verified], self._drafts.take_leading(rows, verified)

    def _sample_groups(
        self, schedule: Schedule[GenerationT], logits: Any
    ) -> tuple[list[Row[GenerationT]], Sequence[EmissionLike], list[_BeamStep[GenerationT]]]:
        """As ``_sample``, where requests of several rows take part; and a step of each beam search."""
        rows, order, guidance, beams = select(schedule.rows[: schedule.num_sampled], self._fork)
        emissions = (
            self._sample(take(logits, order), rows, guidance if len(order) > len(rows) else None) if rows else ()
        )
        beam_steps = []
        for row, group, places in beams:
            late = self._times.reason_to_end(row, self._clock(), has_token=True)
            step = group.search.step(logits[places.start : places.stop], is_last=late is not None)
            if step.parents:
                moves = group.advance(step.parents, step.token_ids)
                self._copy_blocks(moves.blocks)
                self._copy_sequences(moves.rows)
            beam_steps.append(_BeamStep(row, step, late))
        return rows, emissions, beam_steps

    def _fork(self, row: Row[GenerationT]) -> list[Row[GenerationT]]:
        """Start the further sequences of a request whose prompt is computed; returns those that run at once."""
        forks = row.forks
        started = self._scheduler.fork(row)
        self._requests[row.request] += forks
        if row.limits is not None:
            for fork in forks:
                self._times.watch(fork)
        if not self._runner.shares_blocks:
            pairs = [zip((row, *row.mates), (fork, *fork.mates), strict=True) for fork in started]
            self._copy_sequences([(source.id, target.id) for pair in pairs for source, target in pair])
        return started

    def _copy_blocks(self, source_by_target: dict[int, int]) -> None:
        if source_by_target:
            sources, targets = list(source_by_target.values()), list(source_by_target)
            # Cleared first: where copying fails, so do the requests of this step, and the next has no need of it.
            source_by_target.clear()
            self._runner.copy_blocks(sources, targets)

    def _copy_sequences(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            self._runner.copy_sequences([source for source, _ in pairs], [target for _, target in pairs])

    def _commit(
        self,
        schedule: Schedule[GenerationT],
        rows: list[Row[GenerationT]],
        emissions: Sequence[EmissionLike],
        beam_steps: list[_BeamStep[GenerationT]],
        deltas: list[Delta],
    ) -> StepOutputs:
        """Write the tokens down behind ``deltas``; sequences that ended give their blocks back."""
        # The loop below runs for every token served: local names and one pass, no call for a row that goes on.
        now = self._clock()
        failed: dict[int, str] = {}
        append = deltas.append
        for row, emission in zip(rows, emissions, strict=True):
            token_id = emission.token_id
            tokens = row.tokens
            row.num_computed = len(tokens)
            if row.is_prefilling:
                row.is_prefilling = False
                row.first_token_at = row.first_token_at or now
            if token_id < 0:
                failed[row.request] = emission.error or "no token"
                continue
            tokens.append(token_id)
            row.step_tokens = [token_id]
            finish = None
            if emission.finish_reason is not None:
                self._end(row)
                finish = sequence_finish(row, emission, emission.finish_reason, now)
            append(Delta(row.request, [token_id], emission.text, [], finish, row.index))
            if row.wants_details:
                prepend_details(deltas[-1], (emission,))
        for cut in schedule.rows[schedule.num_sampled :]:
            cut.num_computed += len(cut.step_tokens)
        if not schedule.is_plain:
            for row in rows:
                for mate in row.mates:
                    mate.follow(row.tokens[-1])
            self._commit_beams(beam_steps, deltas, failed, now)
        outputs = StepOutputs(deltas, [])
        if failed:
            self._end_failed(failed, outputs)
        if self._times.limited:
            self._end_late(outputs.deltas, now)
        self._num_steps += 1
        self._tell_released()
        outputs.failures, self._failures = self._failures + outputs.failures, []
        return outputs

    def _end_failed(self, failed: dict[int, str], outputs: StepOutputs) -> None:
        """End requests that failed alone, with a failure each in ``outputs`` instead of what they gave."""
        if not failed:
            return
        outputs.deltas = [delta for delta in outputs.deltas if delta.request not in failed]
        known = {failure.request for failure in outputs.failures}
        for request, message in failed.items():
            self._end_request(request)
            if request not in known:
                outputs.failures.append(Failure(request, "row", message))
        self._tell_released()

    def _commit_beams(
        self, steps: list[_BeamStep[GenerationT]], deltas: list[Delta], failed: dict[int, str], now: float
    ) -> None:
        """What beam searches gave: nothing until they are over, then every sequence whole."""
        for row, step, late in steps:
            row.first_token_at = row.first_token_at or now
            if step.error is not None:
                failed[row.request] = step.error
            elif not step.parents:
                self._end(row)
                for index, answer in enumerate(step.answers):
                    finish = beam_finish(row, index, answer, late, now)
                    deltas.append(Delta(row.request, answer.token_ids, answer.text, [], finish, index))

    def _end_late(self, deltas: list[Delta], now: float) -> None:
        """End those of the answers that just went on whose time is over."""
        self._times.end_step(now)
        for delta in deltas:
            row = self._times.limited.get((delta.request, delta.sequence_index))
            if row is not None and delta.finish is None:
                reason = self._times.reason_to_end(row, now, has_token=row.num_generated > 0)
                if reason is not None:
                    self._end(row)
                    self._end_early(row, delta, reason, now)

    def _end_early(self, row: Row[GenerationT], delta: Delta, reason: str, now: float) -> None:
        """Put into ``delta`` the text that was held back, and why the answer ends."""
        emission = row.generation.end()
        delta.text += emission.text
        delta.finish = sequence_finish(row, emission, emission.finish_reason or reason, now)

    def _compute_less(self, schedule: Schedule[GenerationT], deltas: list[Delta]) -> StepOutputs:
        """After a pass that ran out of memory: what it computed comes in smaller passes. ``deltas`` came before.

        Drafts are given up first, then rows are preempted; a request fails only where it is the least there is.
        """
        rows = schedule.rows
        num_tokens = sum(len(row.step_tokens) for row in rows)
        message = f"engine: out of memory in a pass of {num_tokens} tokens of {len(rows)} rows"
        print(message, file=sys.stderr)  # noqa: T201  (the front passes this on)
        if not self._drafts.give_up(rows):
            for request in dict.fromkeys(row.request for row in self._scheduler.shrink(schedule)):
                self._end_request(request)
                self._failures.append(Failure(request, "step", "out of memory, also without other requests"))
        self._tell_released()
        return self._outputs(deltas)

    def _fail(self, rows: list[Row[GenerationT]], error: Exception, deltas: list[Delta]) -> StepOutputs:
        """End the requests of a step that raised, and only those; ``deltas`` came before."""
        message = _described(error)
        for request in dict.fromkeys(row.request for row in rows):
            self._end_request(request)
            self._failures.append(Failure(request, "step", message))
        self._num_steps += 1
        self._tell_released()
        return self._outputs(deltas)

    def _end(self, row: Row[GenerationT]) -> None:
        rows = self._requests[row.request]
        if len(rows) == 1:
            del self._requests[row.request]
        else:
            rows.remove(row)
        if row.limits is not None:
            self._times.forget(row)
        self._scheduler.remove(row)

    def _end_request(self, request: int) -> None:
        """End all rows of a request; none where it is unknown or ended before."""
        self._scorer.forget(request)
        for row in self._requests.pop(request, ()):
            self._times.forget(row)
            self._scheduler.remove(row)

    def _tell_released(self) -> None:
        released = self._scheduler.released
        if released:
            self._runner.release(released.copy())
            self._drafts.release(released)
            released.clear()

    def _outputs(self, deltas: list[Delta]) -> StepOutputs:
        failures, self._failures = self._failures, []
        return StepOutputs(deltas, failures)


def _described(error: Exception) -> str:
    """One line for the request's log entry; the trace goes to standard error."""
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}"
