"""What is promised of metrics, over an engine process: its figures come from there, and outlive it."""

import asyncio
from pathlib import Path

import grpc
import psutil
from chaos_service import outcome, request, serving
from scrapes import until

WITH_METRICS = {"metrics_port": 0, "block_size": 4, "max_running": 2, "hang_timeout": 600.0}


async def test_the_engines_figures_are_scraped_and_go_back_to_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, **WITH_METRICS) as chaos:
        address = chaos.server.metrics_address
        found = await until(address, lambda scrape: scrape.value("tokenwire_kv_blocks") > 0)
        assert found.value("tokenwire_kv_blocks_used") == found.value("tokenwire_kv_usage_ratio") == 0
        assert found.value("tokenwire_engine_resident_memory_bytes") > 2**20
        assert found.labels("tokenwire_startup_phase_seconds")[0] == {"phase": "starting"}
        # More than its rows, and a pass that does not end: figures come all the same, from beside the loop.
        first = asyncio.ensure_future(outcome(chaos.generation.Generate(request("Hold on", 4))))
        await chaos.until_begun("Hold on")
        others = [asyncio.ensure_future(outcome(chaos.generation.Generate(request(text, 4)))) for text in ("me", "too")]
        found = await until(
            address,
            lambda scrape: (
                scrape.value("tokenwire_requests_running") == 2
                and scrape.value("tokenwire_requests_waiting") == 1
                and scrape.value("tokenwire_kv_blocks_used") > 0
                and scrape.value("tokenwire_engine_stalled_seconds") > 0
            ),
        )
        used, blocks = found.value("tokenwire_kv_blocks_used"), found.value("tokenwire_kv_blocks")
        assert found.value("tokenwire_kv_usage_ratio") == used / blocks
        (tmp_path / "release").touch()
        for each in (first, *others):
            assert (await each).code is grpc.StatusCode.OK
        stats = await chaos.until_nothing_is_held()
        found = await until(
            address,
            lambda scrape: (
                scrape.value("tokenwire_kv_blocks_used") == 0
                and scrape.value("tokenwire_engine_steps_total") >= stats.steps
            ),
        )
        assert found.value("tokenwire_kv_blocks") == stats.blocks_total
        seconds = {phase: found.value("tokenwire_engine_step_seconds_total", phase=phase) for phase in
                   ("forward", "sample", "rest")}  # fmt: skip
        assert all(value > 0 for value in seconds.values()), seconds


async def test_counters_go_on_and_the_restart_is_counted_where_the_engine_dies(tmp_path: Path) -> None:
    async with serving(tmp_path, **WITH_METRICS) as chaos:
        address = chaos.server.metrics_address
        await chaos.tokens("before", 4)
        before = await until(address, lambda scrape: scrape.value("tokenwire_engine_steps_total") >= 4)
        assert before.value("tokenwire_engine_restarts_total") == 0
        assert chaos.engine.pid is not None
        await asyncio.to_thread(psutil.Process(chaos.engine.pid).kill)
        found = await until(
            address,
            lambda scrape: (
                scrape.value("tokenwire_engine_restarts_total") == 1
                and scrape.value("tokenwire_engine_state", state="ready") == 1
            ),
        )
        assert found.value("tokenwire_engine_steps_total") >= before.value("tokenwire_engine_steps_total")
        await chaos.tokens("after", 4)
        await until(
            address,
            lambda scrape: (
                scrape.value("tokenwire_engine_steps_total") >= before.value("tokenwire_engine_steps_total") + 4
            ),
        )
