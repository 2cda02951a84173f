"""Requests for resumable streams, and what a client makes of their events."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import waiting
from harness import Service
from test_calls import generate_request
from test_statuses import check_common, failure

from tokenwire.config import LimitsConfig
from tokenwire.servicers.retention import Retention
from tokenwire.v1 import generation_pb2, generation_service_pb2

WINDOW_S = 60.0
PATIENCE_S = 20.0
MINE = (("x-request-id", "mine"),)


def keeping(**limits: Any) -> LimitsConfig:
    return LimitsConfig(**{"resume_window": WINDOW_S, **limits})


def resumable(text: str = "hi", **config: object) -> generation_service_pb2.GenerateRequest:
    request = generate_request(text, **config)
    request.resumable = True
    return request


def resume(request_id: str = "mine", *positions: dict[str, Any]) -> generation_service_pb2.ResumeStreamRequest:
    messages = [generation_service_pb2.StreamPosition(**position) for position in positions]
    return generation_service_pb2.ResumeStreamRequest(request_id=request_id, positions=messages)


def cancel(request_id: str = "mine") -> generation_service_pb2.CancelStreamRequest:
    return generation_service_pb2.CancelStreamRequest(request_id=request_id)


def retention(service: Service) -> Retention:
    assert service.server.backend is not None
    return service.server.backend.retention


async def until(condition: Callable[[], bool]) -> None:
    await waiting.until(condition, PATIENCE_S)


@dataclass
class Answer:
    """What has come of a stream, over all of its calls."""

    start: Any = None
    texts: dict[int, str] = field(default_factory=dict)
    details: dict[int, list[list[Any]]] = field(default_factory=dict)
    """Of each sequence the token ids, and what belongs to each of them."""
    finishes: dict[int, Any] = field(default_factory=dict)
    prompt_logprobs: list[Any] = field(default_factory=list)

    def take(self, event: Any) -> None:
        match event.WhichOneof("event"):
            case "start":
                assert self.start in (None, event.start)
                self.start = event.start
            case "delta":
                delta = event.delta
                index = delta.sequence_index
                assert index not in self.finishes
                before = self.texts.get(index, "")
                assert delta.text_range.start == len(before.encode())
                self.texts[index] = before + delta.text
                columns = (delta.token_ids, delta.logprobs, delta.tokens, delta.explanations)
                for known, new in zip(self.details.setdefault(index, [[], [], [], []]), columns, strict=True):
                    known += new
                self.prompt_logprobs += delta.prompt_logprobs
            case "finish":
                assert event.finish.sequence_index not in self.finishes
                self.finishes[event.finish.sequence_index] = event.finish

    def positions(self) -> list[dict[str, Any]]:
        return [
            {
                "sequence_index": index,
                "text_bytes": len(text.encode()),
                "token_count": len(self.details[index][0]),
                "is_finished": index in self.finishes,
            }
            for index, text in self.texts.items()
        ]


async def read(call: Any, answer: Answer, count: int = 1_000_000) -> bool:
    """Take ``count`` events; True where the stream ended before."""
    for _ in range(count):
        event = await call.read()
        if event is grpc.aio.EOF:
            return True
        answer.take(event)
    return False


def detailed(request: Any) -> Any:
    """Every detail that a stream can have, for three sequences."""
    request.generation_config.MergeFrom(
        generation_pb2.GenerationConfig(do_sample=True, seed=3, num_return_sequences=3, max_new_tokens=60)
    )
    request.output.MergeFrom(
        generation_pb2.OutputOptions(logprobs=1, prompt_logprobs=0, token_details=True, explain=True, echo=True)
    )
    return request


async def check_unknown(service: Service, request_id: str, **options: Any) -> str:
    """That no stream of this id is there; what is said of it."""
    texts = set()
    for call in (
        service.generation.ResumeStream(resume(request_id), **options),
        service.generation.CancelStream(cancel(request_id), **options),
    ):
        failed = await failure(call)
        assert failed.code is grpc.StatusCode.NOT_FOUND
        check_common(failed, "STREAM_NOT_FOUND")
        assert set(failed.details["ErrorInfo"].metadata) == {"request_id"}
        texts.add(failed.message)
    (text,) = texts
    return text
