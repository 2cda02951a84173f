"""The engine: one loop over commands, scheduler, model and sampler. One thread owns all of it."""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.protocol import (
    Abort,
    Command,
    Delta,
    Event,
    Failure,
    Finish,
    GetStats,
    Stats,
    StepOutputs,
    Stop,
    Submit,
    TokenLogprobs,
)
from tokenwire.engine.request import GenerationT, Request
from tokenwire.engine.resident import resident_bytes
from tokenwire.engine.scheduler import Schedule, Scheduler
from tokenwire.model.batch import ForwardBatch, Runner

Inbox = SimpleQueue[tuple[float, Command]]
"""Commands with the monotonic time at which they arrived."""


class EmissionLike(Protocol):
    """What the engine reads of `tokenwire._native.Emission`."""

    @property
    def token_id(self) -> int:
        """The chosen token; -1 with ``error``."""

    @property
    def text(self) -> str:
        """Text that became certain."""

    @property
    def finish_reason(self) -> str | None:
        """Why the sequence ended with this token."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that matched."""

    @property
    def stop_token_id(self) -> int | None:
        """The token that ended it."""

    @property
    def logprob(self) -> float | None:
        """Log probability of the chosen token, when asked for."""

    @property
    def rank(self) -> int | None:
        """Its place among all tokens, when log probabilities are asked for."""

    @property
    def top_logprobs(self) -> list[tuple[int, float]]:
        """The most likely tokens, when asked for."""

    @property
    def error(self) -> str | None:
        """Why this row alone failed."""


_GenerationT_contra = TypeVar("_GenerationT_contra", contravariant=True)


class SamplerLike(Protocol[_GenerationT_contra]):
    """What the engine calls of `tokenwire._native.Sampler`."""

    def step(self, logits: Any, generations: Sequence[_GenerationT_contra]) -> Sequence[EmissionLike]:
        """Choose and append one token per row of ``logits`` ``[len(generations), vocab]``."""


class Engine(Generic[GenerationT]):
    """Serves sequences with one runner.

    ``make_generation`` builds the sampler's state of a sequence; an exception there fails the request alone, a
    ValueError as the caller's fault.
    ``fatal_errors`` of a forward pass are let through: the process must end, its device is lost.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: SamplerLike[GenerationT],
        make_generation: Callable[[Submit], GenerationT],
        *,
        max_running: int,
        max_step_tokens: int,
        inbox: Inbox | None = None,
        fatal_errors: tuple[type[BaseException], ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox: Inbox = SimpleQueue() if inbox is None else inbox
        self._runner = runner
        self._sampler = sampler
        self._make_generation = make_generation
        self._fatal_errors = fatal_errors
        self._clock = clock
        self._blocks = BlockManager(runner.num_blocks, runner.block_size)
        self._scheduler: Scheduler[GenerationT] = Scheduler(
            self._blocks,
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            supports_chunked_prefill=runner.supports_chunked_prefill,
            max_prefill_rows=runner.max_prefill_rows,
        )
        self._requests: dict[int, Request[GenerationT]] = {}
        self._failures: list[Failure] = []
        self._stats_asked = 0
        self._stopping = False
        self._num_steps = 0

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
        """Apply what arrived, then compute and choose one token for every row that is ready for one."""
        self._apply_commands()
        schedule = self._scheduler.schedule()
        self._tell_released()
        if not schedule.rows:
            return self._outputs([])
        try:
            logits = self._runner.forward(self._batch(schedule))
            generations = [row.generation for row in schedule.rows[: schedule.num_sampled]]
            emissions = self._sampler.step(logits, generations) if generations else ()
            if len(emissions) != len(generations):
                raise RuntimeError(f"the sampler gave {len(emissions)} emissions for {len(generations)} rows")
        except self._fatal_errors:
            raise
        except Exception as error:
            return self._fail(schedule.rows, error)
        return self._commit(schedule, emissions)

    def stats(self) -> Stats:
        """Counters as they are between two steps."""
        scheduler = self._scheduler
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            blocks_total=self._blocks.num_blocks,
            blocks_free=self._blocks.num_free,
            steps=self._num_steps,
            preemptions=scheduler.num_preemptions,
            resident_bytes=resident_bytes(),
        )

    def _apply_commands(self) -> None:
        """Take every command that arrived; wait for one only where there is nothing else to do."""
        inbox = self.inbox
        is_idle = not self._requests
        while is_idle or not inbox.empty():
            is_idle = False
            arrived_at, command = inbox.get()
            match command:
                case Submit():
                    self._accept(command, arrived_at)
                case Abort(requests=requests):
                    for request_id in requests:
                        request = self._requests.pop(request_id, None)
                        if request is not None:
                            self._scheduler.remove(request)
                case GetStats():
                    self._stats_asked += 1
                case Stop():
                    self._stopping = True

    def _accept(self, submit: Submit, arrived_at: float) -> None:
        if not submit.prompt_ids:
            self._failures.append(Failure(submit.request, "capacity", "the prompt is empty"))
            return
        num_tokens = len(submit.prompt_ids) + submit.settings.max_new_tokens
        if num_tokens > self._runner.context_length:
            message = f"{num_tokens} tokens exceed the context of {self._runner.context_length}"
            self._failures.append(Failure(submit.request, "capacity", message))
            return
        try:
            generation = self._make_generation(submit)
        except ValueError as error:
            self._failures.append(Failure(submit.request, "invalid", str(error)))
            return
        except Exception as error:
            # A panic of Rust arrives as RuntimeError: this request's end, not that of its neighbours.
            self._failures.append(Failure(submit.request, "step", _described(error)))
            return
        request = Request(submit, generation, arrived_at)
        if not self._scheduler.can_ever_fit(request):
            message = f"{num_tokens} tokens exceed the KV cache of {self._blocks.num_blocks} blocks"
            self._failures.append(Failure(submit.request, "capacity", message))
            return
        self._requests[submit.request] = request
        self._scheduler.add(request)

    def _batch(self, schedule: Schedule[GenerationT]) -> ForwardBatch:
        rows = schedule.rows
        if schedule.num_decode < len(rows):
            now = self._clock()
            for row in rows[schedule.num_decode :]:
                row.first_forward_at = row.first_forward_at or now
        num_logits = [1] * len(rows)
        if schedule.num_sampled < len(rows):
            num_logits[-1] = 0
        return ForwardBatch(
            sequence_ids=[row.id for row in rows],
            token_ids=[row.step_tokens for row in rows],
            num_computed_tokens=[row.num_computed for row in rows],
            block_tables=[row.block_table for row in rows],
            num_logits=num_logits,
        )

    def _commit(self, schedule: Schedule[GenerationT], emissions: Sequence[EmissionLike]) -> StepOutputs:
        """Write the tokens down; sequences that ended give their blocks back."""
        # The loop below runs for every token served: local names and one pass, no call for a row that goes on.
        rows = schedule.rows
        now = self._clock()
        deltas: list[Delta] = []
        append = deltas.append
        for row, emission in zip(rows, emissions, strict=False):
            token_id = emission.token_id
            tokens = row.tokens
            row.num_computed = len(tokens)
            if row.is_prefilling:
                row.is_prefilling = False
                row.first_token_at = row.first_token_at or now
            if token_id < 0:
                self._end(row)
                self._failures.append(Failure(row.id, "row", emission.error or "no token"))
                continue
            tokens.append(token_id)
            row.step_tokens = [token_id]
            finish = None
            if emission.finish_reason is not None:
                self._end(row)
                finish = self._finish(row, emission, emission.finish_reason, now)
            logprobs: list[TokenLogprobs] = []
            if row.wants_logprobs and emission.logprob is not None:
                logprobs.append(TokenLogprobs(emission.logprob, emission.rank or 0, emission.top_logprobs))
            append(Delta(row.id, [token_id], emission.text, logprobs, finish))
        if schedule.num_sampled < len(rows):
            cut = rows[-1]
            cut.num_computed += len(cut.step_tokens)
        self._num_steps += 1
        self._tell_released()
        return self._outputs(deltas)

    def _finish(self, row: Request[GenerationT], emission: EmissionLike, reason: str, now: float) -> Finish:
        return Finish(
            reason=reason,
            stop_string=emission.stop_string,
            stop_token_id=emission.stop_token_id,
            prompt_token_count=row.num_prompt,
            completion_token_count=row.num_generated,
            queue_ms=1000 * (row.first_forward_at - row.accepted_at),
            prefill_ms=1000 * (row.first_token_at - row.first_forward_at),
            decode_ms=1000 * (now - row.first_token_at),
        )

    def _fail(self, rows: list[Request[GenerationT]], error: Exception) -> StepOutputs:
        """End the rows of a step that raised, and only those."""
        message = _described(error)
        for row in rows:
            self._end(row)
            self._failures.append(Failure(row.id, "step", message))
        self._num_steps += 1
        self._tell_released()
        return self._outputs([])

    def _end(self, row: Request[GenerationT]) -> None:
        del self._requests[row.id]
        self._scheduler.remove(row)

    def _tell_released(self) -> None:
        released = self._scheduler.released
        if released:
            self._runner.release(released.copy())
            released.clear()

    def _outputs(self, deltas: list[Delta]) -> StepOutputs:
        failures, self._failures = self._failures, []
        return StepOutputs(deltas, failures)


def _described(error: Exception) -> str:
    """One line for the request's log entry; the trace goes to standard error."""
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}"
