"""The engine: one loop over commands, scheduler, model and sampler. One thread owns all of it."""

import itertools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Generic

from tokenwire.engine.block_manager import BlockManager
from tokenwire.engine.drafts import DraftModelLike, Drafts, Leading, drafts_of
from tokenwire.engine.prompt_logprobs import PromptLogprobs, score
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
from tokenwire.engine.sampler import EmissionLike, SamplerLike
from tokenwire.engine.scheduler import Schedule, Scheduler
from tokenwire.model.batch import ForwardBatch, Runner

Inbox = SimpleQueue[tuple[float, Command]]
"""Commands with the monotonic time at which they arrived."""


class Engine(Generic[GenerationT]):
    """Serves sequences with one runner.

    ``make_generation`` builds the sampler's state of a sequence; an exception there fails the request alone, a
    ValueError as the caller's fault.
    ``draft_model`` proposes tokens for requests with num_assistant_tokens.
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
        draft_model: DraftModelLike | None = None,
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
        self._drafts: Drafts[GenerationT] = Drafts(
            self._blocks,
            max_step_tokens=max_step_tokens,
            is_supported=runner.supports_drafts,
            model=draft_model,
            fatal_errors=fatal_errors,
        )
        self._requests: dict[int, Request[GenerationT]] = {}
        self._prompt_logprobs: dict[int, PromptLogprobs] = {}
        """Of requests that wait for them, by request."""
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
        """Apply what arrived, then compute and choose a token for every row that is ready for one.

        Rows whose drafts come true get more than one.
        """
        self._apply_commands()
        schedule = self._scheduler.schedule()
        self._tell_released()
        if not schedule.rows:
            return self._outputs([])
        leading: list[Leading[GenerationT]] = []
        try:
            if self._drafts.is_wanted:
                alive = itertools.chain(self._scheduler.running, self._scheduler.waiting)
                schedule = self._drafts.propose(schedule, alive)
            batch = self._batch(schedule)
            logits = self._runner.forward(batch)
            if self._prompt_logprobs:
                logits = self._score_prompts(schedule, batch, logits)
            rows = schedule.rows[: schedule.num_sampled]
            generations = [row.generation for row in rows]
            emissions: Sequence[EmissionLike] = ()
            if self._drafts.is_wanted and any(drafts := drafts_of(rows)):
                verified = self._sampler.verify(logits, generations, drafts)
                leading = self._drafts.take_leading(rows, verified)
                emissions = [row[-1] for row in verified]
            elif generations:
                emissions = self._sampler.step(logits, generations)
            if len(emissions) != len(generations):
                raise RuntimeError(f"the sampler gave {len(emissions)} emissions for {len(generations)} rows")
        except self._fatal_errors:
            raise
        except Exception as error:
            return self._fail(schedule.rows, error)
        outputs = self._commit(schedule, emissions)
        if leading:
            self._drafts.settle(leading, outputs.deltas)
        if self._prompt_logprobs:
            self._send_prompt_logprobs(schedule.rows, outputs)
        return outputs

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
            draft = self._drafts.begin(submit)
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
        request.draft = draft
        if submit.settings.prompt_logprobs is not None:
            request.prompt_logprobs = self._prompt_logprobs[submit.request] = PromptLogprobs(
                request.num_prompt, submit.settings.prompt_logprobs, self._runner.vocab_size
            )
        self._requests[submit.request] = request
        self._scheduler.add(request)

    def _batch(self, schedule: Schedule[GenerationT]) -> ForwardBatch:
        rows = schedule.rows
        num_logits = self._num_sampled_logits(schedule)
        if schedule.num_decode < len(rows):
            now = self._clock()
            for place, row in enumerate(rows[schedule.num_decode :], schedule.num_decode):
                row.first_forward_at = row.first_forward_at or now
                if row.prompt_logprobs is not None:
                    num_logits[place] = max(num_logits[place], row.prompt_logprobs.num_logits(row))
        return ForwardBatch(
            sequence_ids=[row.id for row in rows],
            token_ids=[row.step_tokens for row in rows],
            num_computed_tokens=[row.num_computed for row in rows],
            block_tables=[row.block_table for row in rows],
            num_logits=num_logits,
        )

    def _num_sampled_logits(self, schedule: Schedule[GenerationT]) -> list[int]:
        """Logits of each row that the sampler needs: one where a token is to be chosen, and one for each draft."""
        rows = schedule.rows
        counts = [1] * len(rows)
        if self._drafts.is_wanted:
            counts = [1 + len(draft) for draft in drafts_of(rows)]
        if schedule.num_sampled < len(rows):
            counts[-1] = 0
        return counts

    def _score_prompts(self, schedule: Schedule[GenerationT], batch: ForwardBatch, logits: Any) -> Any:
        """Take log probabilities of prompts; returns the logits that are left to choose from."""
        counts = self._num_sampled_logits(schedule)
        if counts == batch.num_logits:
            return logits
        return score(self._sampler, schedule.rows, batch.num_logits, counts, logits)

    def _send_prompt_logprobs(self, rows: list[Request[GenerationT]], outputs: StepOutputs) -> None:
        """Put log probabilities of prompts into the first delta of their request; end requests that have none."""
        for row in rows:
            failed = row.prompt_logprobs
            if failed is None or failed.error is None:
                continue
            outputs.deltas = [delta for delta in outputs.deltas if delta.request != row.id]
            if all(failure.request != row.id for failure in outputs.failures):
                outputs.failures.append(Failure(row.id, "row", failed.error))
            if row.id in self._requests:
                self._end(row)
        for delta in outputs.deltas:
            if delta.sequence_index == 0:
                done = self._prompt_logprobs.pop(delta.request, None)
                if done is not None:
                    delta.prompt_logprobs = done.entries
        for row in rows:
            if row.id not in self._prompt_logprobs:
                row.prompt_logprobs = None
        for request in self._prompt_logprobs.keys() - self._requests.keys():
            del self._prompt_logprobs[request]
        self._tell_released()

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
            draft_token_count=0 if row.draft is None else row.draft.num_drafted,
            accepted_draft_token_count=0 if row.draft is None else row.draft.num_accepted,
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
            self._drafts.release(released)
            released.clear()

    def _outputs(self, deltas: list[Delta]) -> StepOutputs:
        failures, self._failures = self._failures, []
        return StepOutputs(deltas, failures)


def _described(error: Exception) -> str:
    """One line for the request's log entry; the trace goes to standard error."""
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}"
