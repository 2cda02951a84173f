"""What the heartbeat tells: layers of a model, a loop that rests, and how long nothing happened."""

import asyncio

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenwire.config import SupervisionConfig
from tokenwire.engine.hang_watch import HangWatch
from tokenwire.engine.pulse import Pulse
from tokenwire.model.progress import tell_progress_inplace


def test_a_model_tells_each_of_its_layers() -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=5, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    beats: list[int] = []
    plain = model(torch.tensor([[1, 2, 3]])).logits
    tell_progress_inplace(model, lambda: beats.append(1))
    told = model(torch.tensor([[1, 2, 3]])).logits
    assert len(beats) == 5
    assert torch.equal(plain, told)


def test_a_pulse_counts_from_the_last_beat_and_not_at_rest() -> None:
    now = 10.0
    pulse = Pulse(lambda: now)
    assert pulse.stalled_s() == 0
    pulse.beat()
    now = 13.0
    assert pulse.stalled_s() == 3
    pulse.rest()
    now = 20.0
    assert pulse.stalled_s() == 0


async def test_a_watch_tells_each_change_once() -> None:
    changes: asyncio.Queue[bool] = asyncio.Queue()
    watch = HangWatch(5.0, changes.put_nowait)
    watch.start()
    watch.hear(4.0)
    watch.hear(6.0)
    assert await asyncio.wait_for(changes.get(), 30)
    watch.hear(7.0)
    assert changes.empty()
    watch.hear()
    assert not changes.get_nowait()
    watch.stop()
    watch.hear(100.0)
    assert changes.empty()


@pytest.mark.parametrize(
    ("settings", "delays"),
    [
        ({}, [0.5, 2.0, 8.0]),
        ({"max_restarts": 0}, []),
        ({"max_restarts": 6}, [0.5, 2.0, 8.0, 32.0, 60.0, 60.0]),
        ({"max_restarts": 3, "restart_delay": 0.0}, [0.0, 0.0, 0.0]),
    ],
)
def test_pauses_before_restarts_grow_up_to_a_bound(settings: dict[str, float], delays: list[float]) -> None:
    assert list(SupervisionConfig(**settings).restart_delays()) == delays  # type: ignore[arg-type]
    assert max(SupervisionConfig(max_restarts=1000).restart_delays()) == 60
