"""Laws of the engine's step, with a model whose tokens depend on every token that should be in its cache."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from engine_fakes import (
    NAN_TOKEN,
    PANIC,
    FakeGeneration,
    FakeRunner,
    FakeSampler,
    expected_answer,
    make_generation,
)
from hypothesis import given
from hypothesis import strategies as st

from tokenwire.engine.engine import Engine
from tokenwire.engine.protocol import Abort, Command, Event, Failure, Finish, GetStats, Stats, StepOutputs, Stop, Submit
from tokenwire.engine.settings import GenerationSettings
from tokenwire.model.batch import ForwardBatch


@dataclass
class Served:
    """An engine, its model, and what came out by request."""

    runner: FakeRunner = field(default_factory=FakeRunner)
    max_running: int = 8
    max_step_tokens: int = 32
    fatal_errors: tuple[type[BaseException], ...] = ()
    tokens: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, Finish] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.engine: Engine[FakeGeneration] = Engine(
            self.runner,
            FakeSampler(),
            make_generation,
            max_running=self.max_running,
            max_step_tokens=self.max_step_tokens,
            fatal_errors=self.fatal_errors,
            clock=self.clock,
        )

    def clock(self) -> float:
        return self.now

    def send(self, command: Command) -> None:
        self.engine.inbox.put((self.now, command))

    def submit(self, request: int, prompt: list[int], max_new_tokens: int = 6, **settings: object) -> None:
        decided = GenerationSettings(max_new_tokens=max_new_tokens, **settings)  # type: ignore[arg-type]
        self.send(Submit(request, list(prompt), decided))

    def step(self) -> StepOutputs:
        outputs = self.engine.step()
        for delta in outputs.deltas:
            assert delta.request not in self.finishes, "a delta after the finish"
            assert delta.request not in self.failures, "a delta after the failure"
            self.tokens.setdefault(delta.request, []).extend(delta.token_ids)
            self.texts[delta.request] = self.texts.get(delta.request, "") + delta.text
            if delta.finish is not None:
                self.finishes[delta.request] = delta.finish
        for failure in outputs.failures:
            assert failure.request not in self.finishes | self.failures, "two ends"
            self.failures[failure.request] = failure
        return outputs

    @property
    def is_idle(self) -> bool:
        stats = self.engine.stats()
        return not stats.running and not stats.waiting and self.engine.inbox.empty()

    def run(self) -> None:
        while not self.is_idle:
            self.step()

    def assert_nothing_held(self) -> None:
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks_total)


prompts = st.lists(st.lists(st.integers(0, 95), min_size=1, max_size=25), min_size=1, max_size=8)


@given(
    prompts,
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(10, 40),
    st.booleans(),
)
def test_tokens_depend_on_nothing_but_the_prompt(
    texts: list[list[int]],
    max_running: int,
    max_step_tokens: int,
    block_size: int,
    num_blocks: int,
    chunked: bool,
) -> None:
    """Any batch, chunk size, block size and number of preemptions gives the tokens of a sequence served alone."""
    runner = FakeRunner(
        num_blocks=num_blocks,
        block_size=block_size,
        supports_chunked_prefill=chunked,
    )
    served = Served(runner, max_running=max_running, max_step_tokens=max_step_tokens)
    for request, prompt in enumerate(texts):
        served.submit(request, prompt, 12, eos_token_ids=(3, 40))
    served.run()
    for request, prompt in enumerate(texts):
        if request in served.failures:
            assert served.failures[request].kind == "capacity"
            assert len(prompt) + 11 > num_blocks * block_size
            continue
        answer = expected_answer(prompt, 12, (3, 40))
        assert served.tokens[request] == answer
        assert served.texts[request] == "".join(f"{token}." for token in answer)
        finish = served.finishes[request]
        assert (finish.prompt_token_count, finish.completion_token_count) == (len(prompt), len(answer))
        assert finish.reason == ("eos" if answer[-1] in (3, 40) else "length")
    served.assert_nothing_held()
    assert sorted(set(runner.released)) == sorted(served.finishes)


def test_an_oversubscribed_cache_preempts_and_changes_no_token() -> None:
    served = Served(FakeRunner(num_blocks=12, block_size=4))
    texts = [[request + 1] * 9 for request in range(8)]
    for request, prompt in enumerate(texts):
        served.submit(request, prompt, 30)
    served.run()
    assert served.engine.stats().preemptions > 0
    assert served.tokens == {request: expected_answer(prompt, 30) for request, prompt in enumerate(texts)}


actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 30), st.integers(1, 12)),
        st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("nan"), st.integers(1, 10), st.just(0)),
        st.tuples(st.just("raise"), st.just(0), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    ),
    max_size=40,
)


@given(actions)
def test_every_request_ends_exactly_once(script: list[tuple[str, int, int]]) -> None:
    raise_next = [False]

    def on_forward(_: ForwardBatch) -> None:
        if raise_next[0]:
            raise_next[0] = False
            raise RuntimeError("injected")

    served = Served(FakeRunner(num_blocks=9, block_size=4, on_forward=on_forward), max_running=3, max_step_tokens=8)
    submitted: list[int] = []
    aborted: set[int] = set()

    def end_step() -> None:
        ended_before = served.finishes.keys() | served.failures.keys()
        outputs = served.step()
        assert not (aborted - ended_before) & {delta.request for delta in outputs.deltas}

    for action, first, second in script:
        if action in ("submit", "nan"):
            request = len(submitted)
            submitted.append(request)
            served.submit(request, [NAN_TOKEN if action == "nan" else 1] * first, second or 3)
        elif action == "abort" and submitted:
            request = submitted[first % len(submitted)]
            if request not in served.finishes and request not in served.failures:
                aborted.add(request)
            served.send(Abort([request]))
        elif action == "raise":
            raise_next[0] = True
        elif action == "step":
            for _ in range(first):
                if not served.is_idle:
                    end_step()
    while not served.is_idle:
        end_step()
    # What can never fit is refused before an abort right behind it is looked at.
    aborted -= {request for request, failure in served.failures.items() if failure.kind == "capacity"}
    for request in submitted:
        ends = (request in served.finishes) + (request in served.failures) + (request in aborted)
        assert ends == 1, f"request {request} ended {ends} times"
    served.assert_nothing_held()


def test_an_abort_frees_the_blocks_before_the_next_forward() -> None:
    seen: list[tuple[list[int], int]] = []
    runner = FakeRunner(num_blocks=4, block_size=4)
    served = Served(runner)
    runner.on_forward = lambda batch: seen.append((batch.sequence_ids, served.engine.stats().blocks_free))
    served.submit(1, [1] * 12, 5)
    served.submit(2, [2] * 12, 5)
    served.step()
    served.send(Abort([1, 99]))
    served.send(Abort([1]))
    served.step()
    # The whole cache was held by 1; 2 got on in the very forward after the abort. Rows are numbered from 0.
    assert seen == [([0], 1), ([1], 1)]
    assert runner.released == [0]
    assert served.tokens[1] == expected_answer([1] * 12, 1)


def test_a_forward_that_raises_fails_only_the_requests_in_it_a_hundred_times(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail = [False]

    def on_forward(_: ForwardBatch) -> None:
        if fail[0]:
            raise RuntimeError("injected")

    served = Served(FakeRunner(on_forward=on_forward), max_running=2)
    for round_number in range(100):
        bad, also_bad, waiting = range(3 * round_number, 3 * round_number + 3)
        for request in (bad, also_bad, waiting):
            served.submit(request, [request % 90 + 1, 2])
        fail[0] = True
        served.step()
        fail[0] = False
        served.run()
        assert {request: served.failures[request].kind for request in (bad, also_bad)} == dict.fromkeys(
            (bad, also_bad), "step"
        )
        assert served.tokens[waiting] == expected_answer([waiting % 90 + 1, 2], 6)
    served.assert_nothing_held()
    assert capsys.readouterr().err.count("RuntimeError: injected") == 100


def test_a_fatal_error_is_let_through() -> None:
    class DeviceLostError(RuntimeError):
        pass

    def on_forward(_: ForwardBatch) -> None:
        raise DeviceLostError

    served = Served(FakeRunner(on_forward=on_forward), fatal_errors=(DeviceLostError,))
    served.submit(1, [1])
    with pytest.raises(DeviceLostError):
        served.step()


def test_a_row_without_usable_logits_fails_alone() -> None:
    served = Served()
    for request in range(8):
        served.submit(request, [NAN_TOKEN if request == 3 else request + 1, 7])
    served.run()
    assert list(served.failures) == [3]
    assert served.failures[3].kind == "row"
    assert "NaN" in served.failures[3].message
    assert served.tokens == {n: expected_answer([n + 1, 7], 6) for n in range(8) if n != 3}


@pytest.mark.parametrize(
    ("prompt", "settings", "kind"),
    [
        ([], {}, "capacity"),
        ([1], {"temperature": -1.0}, "invalid"),
        ([1] * 100, {"max_new_tokens": 29}, "capacity"),
        ([1] * 195, {"max_new_tokens": 6}, "capacity"),
    ],
)
def test_what_can_never_run_fails_at_once(prompt: list[int], settings: dict[str, float], kind: str) -> None:
    served = Served(FakeRunner(num_blocks=32, block_size=4 if len(prompt) < 195 else 16, context_length=200))
    if "max_new_tokens" in settings:
        served.submit(0, prompt, int(settings["max_new_tokens"]) + (1 if len(prompt) < 195 else 0))
    else:
        served.submit(0, prompt, **settings)
    served.submit(1, [1])
    outputs = served.step()
    assert [failure.kind for failure in outputs.failures] == [kind]
    served.run()
    assert list(served.finishes) == [1]


def test_a_generation_that_cannot_be_built_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    served = Served()
    served.submit(0, [1], temperature=PANIC)
    served.submit(1, [1])
    served.run()
    assert served.failures == {0: Failure(0, "step", "RuntimeError: a panic")}
    assert served.tokens == {1: expected_answer([1], 6)}
    assert capsys.readouterr().err.count("RuntimeError: a panic") == 1


def test_what_just_fits_runs() -> None:
    served = Served(FakeRunner(num_blocks=32, block_size=4))
    served.submit(0, [1] * 100, 29)
    served.run()
    assert served.tokens[0] == expected_answer([1] * 100, 29)


def test_one_output_per_step_holds_all_rows() -> None:
    served = Served()
    for request in range(5):
        served.submit(request, [request + 1])
    assert [delta.request for delta in served.step().deltas] == [0, 1, 2, 3, 4]
    assert [delta.request for delta in served.step().deltas] == [0, 1, 2, 3, 4]


def test_decode_rows_come_first_and_a_long_prompt_is_cut_to_the_budget() -> None:
    runner = FakeRunner()
    served = Served(runner, max_step_tokens=8)
    served.submit(0, [1, 2], 30)
    served.step()
    served.submit(1, [3] * 20, 2)
    served.submit(2, [4], 2)
    for _ in range(3):
        served.step()
    shapes = [[len(tokens) for tokens in batch.token_ids] for batch in runner.batches[1:]]
    assert shapes == [[1, 7], [1, 7], [1, 6, 1]]
    assert [batch.num_logits for batch in runner.batches[1:]] == [[1, 0], [1, 0], [1, 1, 1]]


def test_logprobs_come_only_when_asked_for() -> None:
    served = Served()
    served.submit(0, [1], 1, logprobs=1)
    served.submit(1, [1], 1)
    with_logprobs, without = served.step().deltas
    assert [entry.logprob for entry in with_logprobs.logprobs] == [-0.5]
    assert without.logprobs == []


def test_timings_say_where_the_time_went() -> None:
    served = Served(max_step_tokens=4)
    served.submit(0, [1] * 8, 2)
    served.now = 1.0
    served.step()
    served.now = 3.0
    served.step()
    served.now = 7.0
    served.step()
    finish = served.finishes[0]
    assert (finish.queue_ms, finish.prefill_ms, finish.decode_ms) == (1000.0, 2000.0, 4000.0)


def test_an_idle_engine_waits_for_commands_and_a_stop_ends_it() -> None:
    served = Served()
    events: list[Event] = []
    arrived = threading.Condition()

    def receive(event: Event) -> None:
        with arrived:
            events.append(event)
            arrived.notify()

    def wait_for(condition: Callable[[], bool]) -> None:
        with arrived:
            assert arrived.wait_for(condition, timeout=30)

    thread = threading.Thread(target=served.engine.serve, args=(receive,))
    thread.start()
    served.submit(0, [1], 2)
    wait_for(lambda: len(events) == 2)
    served.send(GetStats())
    wait_for(lambda: len(events) == 3)
    stats = events[2]
    assert isinstance(stats, Stats)
    assert (stats.steps, stats.running) == (2, 0)
    assert stats.resident_bytes > 1_000_000
    served.send(Stop())
    thread.join(timeout=30)
    assert not thread.is_alive()
    # Waiting took no further steps and sent nothing.
    assert len(events) == 3
