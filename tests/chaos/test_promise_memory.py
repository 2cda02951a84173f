"""Want of memory: blocks of the KV cache for a quarter of what runs, and a device that runs out in a forward."""

import asyncio
from pathlib import Path

import grpc
from chaos_service import answer_to, outcome, request, serving, until


async def test_a_kv_cache_oversubscribed_four_times_finishes_all_with_unchanged_greedy_output(tmp_path: Path) -> None:
    prompts = [f"{number:02} of many requests" for number in range(32)]
    num_tokens = 100
    # In tokens: each needs prompt and answer but for its last token, and there is room for a quarter of them.
    num_blocks = len(prompts) * (len(prompts[0]) + num_tokens) // 4 // 4
    async with serving(tmp_path, {"num_blocks": num_blocks}, max_running=32) as service:
        answers = await asyncio.gather(*(service.tokens(prompt, num_tokens) for prompt in prompts))
        assert answers == [answer_to(prompt, num_tokens) for prompt in prompts]
        stats = await service.until_nothing_is_held()
        assert stats.preemptions > 0


async def test_a_forward_out_of_memory_becomes_smaller_ones_before_it_fails_anyone(tmp_path: Path) -> None:
    prompts = [f"{number} " * (1 + 10 * (number % 2)) for number in range(8)]
    async with serving(tmp_path, {"memory_tokens": 5}) as service:
        # All are taken while a forward hangs, so that they meet in the pass behind it.
        hung = asyncio.ensure_future(service.tokens("Hang"))
        await service.until_begun("Hang")
        answers = [asyncio.ensure_future(service.tokens(prompt, 20)) for prompt in prompts]
        await until(lambda: service.engine.num_open == 1 + len(prompts))
        (tmp_path / "release").touch()
        assert await asyncio.gather(*answers) == [answer_to(prompt, 20) for prompt in prompts]
        assert await hung == answer_to("Hang")
        stats = await service.until_nothing_is_held()
        assert stats.preemptions > 0


async def test_what_is_out_of_memory_alone_fails_alone_and_the_engine_goes_on(tmp_path: Path) -> None:
    """Four beams at once take four tokens, for which there is no memory however few others run."""
    async with serving(tmp_path, {"memory_tokens": 3}) as service:
        others = [asyncio.ensure_future(service.tokens(f"other {number}", 50)) for number in range(4)]
        beams = await outcome(service.generation.Generate(request("beams", 10, num_beams=4)))
        assert beams.code is grpc.StatusCode.INTERNAL
        assert await asyncio.gather(*others) == [answer_to(f"other {number}", 50) for number in range(4)]
        assert await service.tokens("after") == answer_to("after")
        await service.until_nothing_is_held()
