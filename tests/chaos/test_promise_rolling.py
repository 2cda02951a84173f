"""Mesh: replicas behind Envoy are restarted or killed under callers that never pause, and no call fails."""

import asyncio
import itertools
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from chaos_service import PATIENCE_S, Calls, Outcome, answer_to, outcome, read_all, request, until
from replicas import DEPLOY, DRAIN_DELAY_S, Envoy, Replica

NUM_CALLERS = 20
NUM_STREAMING = 4
"""Of the callers of a rolling restart, those that stream."""
SHORT = 200
FULL = 2000
STEP_S = 0.01
NUM_TOKENS = 8
NUM_STREAM_TOKENS = 60


@dataclass
class Mesh:
    """Two replicas that are ready, and Envoy that gives calls to both."""

    replicas: list[Replica]
    envoy: Envoy

    @property
    def addresses(self) -> str:
        """Of the replicas, as a target of gRPC."""
        return "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in self.replicas)

    async def end(self, replica: Replica, number: int) -> int:
        """Send a signal; the exit code."""
        replica.front.process.send_signal(number)
        return await asyncio.to_thread(replica.front.end)

    async def start_again(self, replica: Replica) -> None:
        """Start it anew and wait until calls come to it again."""
        await asyncio.to_thread(replica.start_again)
        await self.envoy.until_healthy(len(self.replicas))

    async def roll(self, until_used: Callable[[Replica, int], Awaitable[None]] | None = None) -> None:
        """Restart each replica in turn, as a rolling update does.

        ``until_used``: waits until callers use a replica that comes back, told how many calls it had before.
        """
        for replica in self.replicas:
            assert await self.end(replica, signal.SIGTERM) == 0
            num_before = len(replica.front.journal())
            await self.start_again(replica)
            if until_used is not None:
                await until_used(replica, num_before)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The same one for all tests: each leaves it as it was, with other processes."""
    folder = tmp_path_factory.mktemp("mesh")
    with ExitStack() as stack:
        replicas = []
        for name in ("a", "b"):
            replicas.append(Replica(folder / name, {"step_s": STEP_S}, drain_delay=DRAIN_DELAY_S))
            stack.callback(replicas[-1].close)
        for replica in replicas:
            replica.until_ready()
        envoy = Envoy(folder, replicas)
        stack.callback(envoy.close)
        asyncio.run(envoy.until_healthy(len(replicas)))
        yield Mesh(replicas, envoy)


@dataclass
class Load:
    """Callers that send their next call when the last one was answered, until told to end."""

    target: str
    options: tuple[tuple[str, Any], ...]
    num_streaming: int = 0
    num_ended: int = 0
    failures: list[tuple[str, Outcome]] = field(default_factory=list)
    ending: bool = False
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def run(self, scenario: Callable[[], Awaitable[None]], num_calls: int) -> None:
        """Call while ``scenario`` runs, as often as it takes to come to ``num_calls``."""
        callers = [
            asyncio.create_task(self._call(caller, caller < self.num_streaming)) for caller in range(NUM_CALLERS)
        ]
        try:
            while self.num_ended < num_calls:
                await scenario()
        finally:
            self.ending = True
            await asyncio.gather(*callers)

    async def until_all_use(self, replica: Replica, num_before: int) -> None:
        """Wait until every caller has come to ``replica``, which had ``num_before`` calls before it was started again.

        A caller that balances itself connects again when its pause between two tries is over; a rolling update gives it
        that time (``minReadySeconds`` in deploy/kubernetes/deployment.yaml).
        """
        prefixes = [f"{caller}:" for caller in range(NUM_CALLERS)]

        def all_came() -> bool:
            came = replica.front.journal()[num_before:]
            return all(any(prompt.startswith(prefix) for prompt in came) for prefix in prefixes)

        await until(all_came)

    async def _call(self, caller: int, streams: bool) -> None:
        # A connection of its own, as a caller in a process of its own has.
        options = (("grpc.use_local_subchannel_pool", 1), *self.options)
        async with grpc.aio.insecure_channel(self.target, options) as channel:
            calls = Calls(channel)
            while not self.ending:
                prompt = f"{caller}: call {next(self._numbers)}"
                num_tokens = NUM_STREAM_TOKENS if streams else NUM_TOKENS
                message = request(prompt, num_tokens)
                if streams:
                    ended = await read_all(calls.generation.GenerateStream(message, timeout=PATIENCE_S))
                else:
                    ended = await outcome(calls.generation.Generate(message, timeout=PATIENCE_S))
                if ended != Outcome(grpc.StatusCode.OK, tokens=tuple(answer_to(prompt, num_tokens))):
                    self.failures.append((prompt, ended))
                self.num_ended += 1


def with_config(name: str) -> tuple[tuple[str, Any], ...]:
    """Options of a channel with a shipped service config."""
    return (("grpc.service_config", (DEPLOY / name).read_text()),)


WITHOUT_RETRIES = (("grpc.enable_retries", 0),)
SHORT_AND_FULL = pytest.mark.parametrize("num_calls", [SHORT, pytest.param(FULL, marks=pytest.mark.chaos)])


@SHORT_AND_FULL
async def test_a_rolling_restart_behind_envoy_fails_no_call_of_20_callers(mesh: Mesh, num_calls: int) -> None:
    """Also not of callers that never try again, and no stream."""
    load = Load(mesh.envoy.address, WITHOUT_RETRIES, NUM_STREAMING)
    await load.run(mesh.roll, num_calls)
    assert load.failures == []
    assert load.num_ended >= num_calls


@SHORT_AND_FULL
async def test_a_rolling_restart_fails_no_call_of_20_callers_that_balance_themselves(
    mesh: Mesh, num_calls: int
) -> None:
    """The shipped config for callers without a proxy watches the health of each replica."""
    # gRPC's own pause between two tries to connect grows to two minutes.
    options = (*with_config("service_config_direct.json"), ("grpc.max_reconnect_backoff_ms", 2000))
    load = Load(mesh.addresses, options, NUM_STREAMING)
    await load.run(lambda: mesh.roll(load.until_all_use), num_calls)
    assert load.failures == []
    assert load.num_ended >= num_calls


@SHORT_AND_FULL
async def test_a_killed_replica_fails_no_unary_call_under_the_shipped_retry_policy(mesh: Mesh, num_calls: int) -> None:
    async def kill_each() -> None:
        for replica in mesh.replicas:
            ended = load.num_ended
            while load.num_ended < ended + NUM_CALLERS:  # noqa: ASYNC110  (a counter, and nothing that tells)
                await asyncio.sleep(0.01)
            assert await mesh.end(replica, signal.SIGKILL) == -signal.SIGKILL
            await mesh.start_again(replica)

    load = Load(mesh.envoy.address, with_config("service_config.json"))
    await load.run(kill_each, num_calls)
    assert load.failures == []
    assert load.num_ended >= num_calls


async def test_streams_of_a_killed_replica_end_with_an_error_and_the_others_whole(mesh: Mesh) -> None:
    """What began is never sent again unseen. Envoy resets such a stream, which gRPC calls INTERNAL."""
    num_tokens = 600
    prompts = [f"stream {number}" for number in range(12)]
    killed, left = mesh.replicas
    async with grpc.aio.insecure_channel(mesh.envoy.address, WITHOUT_RETRIES) as channel:
        calls = Calls(channel)
        streams = [calls.generation.GenerateStream(request(prompt, num_tokens)) for prompt in prompts]
        for stream in streams:
            while not (await stream.read()).HasField("delta"):
                pass
        lost = set(prompts) & set(killed.front.journal())
        assert await mesh.end(killed, signal.SIGKILL) == -signal.SIGKILL
        outcomes = dict(zip(prompts, await asyncio.gather(*map(read_all, streams)), strict=True))
    assert lost
    assert lost < set(prompts)
    assert lost | set(left.front.journal()) >= set(prompts)
    for prompt, ended in outcomes.items():
        if prompt in lost:
            assert ended.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
        else:
            assert ended.code is grpc.StatusCode.OK
    await mesh.start_again(killed)


async def test_an_envoy_that_goes_lets_its_streams_end(mesh: Mesh, tmp_path: Path) -> None:
    """By the command of its preStop, at its own admin interface."""
    deployment = yaml.safe_load((DEPLOY / "envoy" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    envoy = Envoy(tmp_path, mesh.replicas)
    try:
        await envoy.until_healthy(len(mesh.replicas))
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        script = command[-1].replace("127.0.0.1/9901", envoy.admin_address.replace(":", "/"))
        script, count = re.subn(r"sleep \d+\s*$", "", script)
        assert count == 1
        async with grpc.aio.insecure_channel(envoy.address, WITHOUT_RETRIES) as channel:
            running = Calls(channel).generation.GenerateStream(request("long", 200))
            while not (await running.read()).HasField("delta"):
                pass
            done = await asyncio.to_thread(
                subprocess.run, [*command[:-1], script], capture_output=True, text=True, timeout=PATIENCE_S
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("HTTP/1.1 200 OK")
            assert (await read_all(running)).code is grpc.StatusCode.OK
    finally:
        envoy.close()


async def test_request_id_and_traceparent_pass_through_envoy(mesh: Mesh) -> None:
    ids = {"x-request-id": "mine-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    async with grpc.aio.insecure_channel(mesh.envoy.address) as channel:
        answer: Any = Calls(channel).generation.Generate(request("ids"), metadata=tuple(ids.items()))
        await answer
        assert ids.items() <= dict(await answer.trailing_metadata()).items()
