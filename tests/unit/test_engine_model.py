"""The engine against a model of it: whatever comes in whatever order, blocks and requests are accounted for.

``HYPOTHESIS_PROFILE=deep`` tries many more ways; `make chaos` runs it so.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import test_engine_groups as groups
from engine_fakes import NAN_TOKEN, PANIC, FakeRunner
from group_engine import AlmostRightDrafts, GroupEngine
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenwire.engine.drafts import Ask
from tokenwire.engine.protocol import Abort
from tokenwire.engine.row import Row
from tokenwire.model.batch import ForwardBatch

# For the deep profile.
pytestmark = pytest.mark.timeout(1800)

prompts = st.lists(st.integers(0, 95), min_size=1, max_size=20)
lengths = st.integers(1, 12)


class UnluckyDrafts(AlmostRightDrafts):
    """Raises for as long as it ``fails``."""

    fails = False

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        if self.fails:
            raise RuntimeError("a draft model without luck")
        return super().propose(asks)


class EngineMachine(RuleBasedStateMachine):
    """Submits, steps, faults, cancels and time in any order over the real scheduler, block manager and engine."""

    requests = Bundle("requests")

    @initialize(
        num_blocks=st.integers(8, 50),
        block_size=st.integers(1, 5),
        max_running=st.integers(1, 10),
        max_step_tokens=st.integers(1, 40),
        chunked=st.booleans(),
        shares_blocks=st.booleans(),
        prefill_share=st.sampled_from([0.1, 0.4, 0.9, 1.0]),
    )
    def begin(
        self,
        num_blocks: int,
        block_size: int,
        max_running: int,
        max_step_tokens: int,
        chunked: bool,
        shares_blocks: bool,
        prefill_share: float,
    ) -> None:
        self.runner = FakeRunner(
            num_blocks=num_blocks,
            block_size=block_size,
            supports_chunked_prefill=chunked,
            supports_drafts=shares_blocks,
            shares_blocks=shares_blocks,
            on_forward=self.on_forward,
        )
        self.drafts = UnluckyDrafts()
        self.served = GroupEngine(
            self.runner,
            max_running=max_running,
            max_step_tokens=max_step_tokens,
            draft_model=self.drafts,
            prefill_share=prefill_share,
        )
        self.pass_s = 0.0
        """What a forward pass takes."""
        self.engine = self.served.engine
        self.asked: dict[int, tuple[list[int], int, dict[str, Any]]] = {}
        self.limited: set[int] = set()
        self.aborted: set[int] = set()
        self.work = 0
        """Tokens of all requests, each as often as it has rows."""
        self.raises = False
        self.memory: int | None = None
        self.passed: list[int] = []
        """Requests of the newest pass."""
        self.met: set[str] = set()
        """Faults that the step met."""
        self.begun: list[int] = []
        """Requests in the order of their first pass."""

    # ---- what happens --------------------------------------------------------------------------------------

    @rule(target=requests, prompt=prompts, length=lengths, kind=groups.kinds, scored=st.booleans())
    def submit(self, prompt: list[int], length: int, kind: dict[str, Any], scored: bool) -> int:
        further = {"prompt_logprobs": 1} if scored and kind["kind"] in ("plain", "sequences") else {}
        return self._submit(prompt, length, kind, **further)

    @rule(target=requests, prompt=prompts, length=lengths, kind=groups.kinds, in_s=st.floats(0.0, 20.0))
    def submit_with_max_time(self, prompt: list[int], length: int, kind: dict[str, Any], in_s: float) -> int:
        self.limited.add(len(self.asked))
        return self._submit(prompt, length, kind, max_time=in_s)

    @rule(target=requests, prompt=prompts, length=lengths, kind=groups.kinds, in_s=st.floats(0.0, 20.0))
    def submit_with_deadline(self, prompt: list[int], length: int, kind: dict[str, Any], in_s: float) -> int:
        self.limited.add(len(self.asked))
        return self._submit(prompt, length, kind, deadline_aware=True, deadline=self.served.now + in_s)

    @rule(target=requests, prompt=prompts, kind=groups.kinds)
    def submit_one_of_nan(self, prompt: list[int], kind: dict[str, Any]) -> int:
        return self._submit([NAN_TOKEN, *prompt], 5, kind)

    @rule(target=requests, prompt=prompts, temperature=st.sampled_from([PANIC, -1.0]))
    def submit_one_that_cannot_begin(self, prompt: list[int], temperature: float) -> int:
        return self._submit(prompt, 5, {"kind": "plain"}, temperature=temperature)

    def _submit(self, prompt: list[int], length: int, kind: dict[str, Any], **further: Any) -> int:
        request = len(self.asked)
        self.asked[request] = (prompt, length, kind)
        width = kind.get("count", 1) * (2 if kind["kind"] == "guided" else 1)
        self.work += (len(prompt) + len(kind.get("negative") or ()) + length) * width
        groups.submit(self.served, request, prompt, length, kind, **further)
        return request

    @rule(request=requests)
    def abort(self, request: int) -> None:
        self.served.send(Abort([request]))
        if not self.has_ended(request):
            self.aborted.add(request)

    @rule(seconds=st.floats(0.01, 5.0))
    def let_time_pass(self, seconds: float) -> None:
        self.served.now += seconds

    @rule(count=st.integers(1, 4), pass_s=st.floats(0.0, 10.0))
    def step(self, count: int, pass_s: float) -> None:
        self.pass_s = pass_s
        for _ in range(count):
            self._step()

    @precondition(lambda self: self.memory is None)
    @rule(limit=st.integers(1, 12), count=st.integers(1, 6))
    def steps_with_little_memory(self, limit: int, count: int) -> None:
        self.memory = limit
        for _ in range(count):
            self._step()
        self.memory = None

    @rule()
    def step_that_raises(self) -> None:
        self.raises = True
        self._step()
        self.raises = False

    @rule(fails=st.booleans())
    def drafts_fail(self, fails: bool) -> None:
        self.drafts.fails = fails

    @rule()
    def drain(self) -> None:
        """All that was accepted ends, within as many steps as there can be work. Nobody starves."""
        # A step computes a token at least; what is preempted is computed again, by older rows' progress only.
        limit = 20 + 4 * self.work
        steps = 0
        while not self.served.is_idle:
            self._step()
            steps += 1
            assert steps <= limit, "somebody starves"
        assert all(map(self.has_ended, self.asked))
        self.served.assert_nothing_held()
        assert not self.engine._requests
        assert not self.engine._times.limited
        assert not self.engine._scorer.is_wanted

    def teardown(self) -> None:
        if hasattr(self, "served"):
            self.memory, self.raises = None, False
            self.drain()

    # ---- what must hold ------------------------------------------------------------------------------------

    def on_forward(self, batch: ForwardBatch) -> None:
        self.served.step_now += self.pass_s
        request_of = {row.id: row.request for row in self._rows()}
        self.passed = [request_of[sequence] for sequence in batch.sequence_ids]
        # What runs must not begin later than what came behind it.
        for request in dict.fromkeys(self.passed):
            if request not in self.begun:
                self.begun.append(request)
        if self.raises:
            self.met.add("raised")
            raise RuntimeError("a kernel")
        if self.memory is not None and sum(map(len, batch.token_ids)) > self.memory:
            self.met.add("no memory")
            raise MemoryError("no memory")

    def _step(self) -> None:
        if self.served.is_idle:
            return
        self.passed, self.met = [], set()
        outputs = self.served.step()
        if self.aborted:
            assert self.aborted.isdisjoint(delta.request for delta in outputs.deltas), "it was aborted before"
        for failure in outputs.failures:
            self._check_failure(failure.request, failure.kind)
        if "raised" in self.met:
            known = {failure.request for failure in outputs.failures}
            assert set(self.passed) <= known, "what was computed when the step raised fails"
        for (request, index), tokens in self.served.tokens.items():
            self._check_tokens(request, index, tokens)

    def _check_failure(self, request: int, kind: str) -> None:
        prompt, _, _ = self.asked[request]
        match kind:
            case "row":
                assert prompt[0] == NAN_TOKEN
            case "step":
                cannot_begin = request not in self.begun
                assert cannot_begin or (self.met and request in self.passed)
            case "invalid":
                assert request not in self.begun
            case _:
                assert kind == "capacity"
                assert request not in self.begun

    def _check_tokens(self, request: int, index: int, tokens: list[int]) -> None:
        if request in self.served.failures:
            return
        finish = self.served.finishes.get((request, index))
        whole = groups.expected(*self.asked[request])[index]
        if finish is None or finish.reason in ("max_time", "deadline"):
            # A beam search that is cut off has what was best by then, which need not begin as the best one of the end.
            assert tokens == whole[: len(tokens)] or (finish is not None and self.asked[request][2]["kind"] == "beams")
            assert finish is None or request in self.limited
        else:
            assert tokens == whole

    def has_ended(self, request: int) -> bool:
        """Ended, and in one way only."""
        num_sequences = len(groups.expected(*self.asked[request]))
        finished = [(request, index) in self.served.finishes for index in range(num_sequences)]
        assert (request, num_sequences) not in self.served.finishes
        failed = request in self.served.failures
        assert not (failed and all(finished))
        return failed or all(finished) or request in self.aborted

    def _rows(self) -> list[Row[Any]]:
        scheduler = self.engine._scheduler
        rows = [*scheduler.running, *scheduler.waiting]
        return [member for row in rows for member in (row, *row.mates, *(row.beams.rows[1:] if row.beams else ()))]

    @invariant()
    def every_block_has_its_holders_and_no_others(self) -> None:
        if not hasattr(self, "served"):
            return
        manager, scheduler = self.engine._blocks, self.engine._scheduler
        holders: Counter[int] = Counter()
        for row in scheduler.running:
            if row.beams is None:
                for member in (row, *row.mates):
                    assert len(set(member.block_table)) == len(member.block_table), "a block twice in one table"
                    assert member.num_slots == len(member.block_table) * manager.block_size
                    holders.update(member.block_table)
            else:
                own = row.beams._blocks
                assert own is not None
                held = Counter(block for member in row.beams.rows for block in member.block_table)
                assert own._further_holders == _further(held)
                assert len(own._free) + len(held) == own.num_blocks == row.beams.num_blocks
                assert set(own._free).isdisjoint(held)
                holders.update({*own._free, *held})
        assert manager._further_holders == _further(holders)
        assert len(set(manager._free)) == len(manager._free), "a block is free twice"
        assert set(manager._free).isdisjoint(holders), "a free block is held"
        assert len(manager._free) + len(holders) == manager.num_blocks, "a block is lost"
        if not self.runner.shares_blocks:
            assert max(holders.values(), default=1) == 1
        for row in scheduler.waiting:
            assert not row.block_table
            assert not row.num_computed
        assert scheduler._num_rows == sum(row.width for row in scheduler.running)
        assert scheduler._num_rows <= scheduler.max_running
        # What was copied or released has been told to the runner.
        assert not scheduler.copies
        assert not scheduler.released

    @invariant()
    def all_that_runs_is_known_and_in_order(self) -> None:
        if not hasattr(self, "served"):
            return
        scheduler = self.engine._scheduler
        rows = [*scheduler.running, *scheduler.waiting]
        assert sorted(row.id for row in rows) == sorted(
            row.id for rows in self.engine._requests.values() for row in rows
        )
        assert not any(self.served.failures.get(row.request) for row in rows)
        prefilling = [row for row in scheduler.running if row.is_prefilling and row.beams is None]
        partly = [row for row in prefilling if row.num_computed]
        assert len(partly) <= 1
        assert not partly or partly[0] is scheduler.running[-1]
        plain = [row.request for row in rows if row.beams is None]
        assert plain == sorted(plain), "somebody overtook another"


def _further(holders: Counter[int]) -> dict[int, int]:
    """Holders beyond the first."""
    return {block: count - 1 for block, count in holders.items() if count > 1}


TestEngine = EngineMachine.TestCase
TestEngine.settings = hypothesis_settings(stateful_step_count=40)
