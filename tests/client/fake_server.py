"""A tokenwire server without a model: the real protocol over loopback, answers made from the request.

It runs in gRPC's own threads, so that blocking clients, asyncio clients and child processes can all be tested with it.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any, Self

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tokenwire.v1 import (
    chat_pb2,
    generation_pb2,
    generation_service_pb2,
    generation_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    tokenizer_service_pb2,
    tokenizer_service_pb2_grpc,
)

REQUEST_ID = "request-7"
MODEL = model_service_pb2.Model(
    id="tiny",
    revision="abc",
    architecture="LlamaForCausalLM",
    quantization="nf4",
    dtype="float32",
    device_map={"": "cpu"},
    forward_path=model_service_pb2.FORWARD_PATH_PAGED,
    forward_path_reason="the self-test passed",
    parameter_count=1234,
    context_length=128,
    vocab_size=300,
    special_tokens=[model_service_pb2.SpecialToken(name="eos_token", text="</s>", id=2)],
    has_chat_template=True,
    chat_template_names=["default", "tool_use"],
    default_generation_config=generation_pb2.GenerationConfig(temperature=0.5),
    limits=model_service_pb2.ModelLimits(max_sequence_tokens=128, max_logprobs=20),
    unapplied_defaults=["num_beams=2"],
)


def detail(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def item_status(code: str, message: str, *details: Any) -> status_pb2.Status:
    return status_pb2.Status(
        code=code_pb2.Code.Value(code), message=message, details=[detail(each) for each in details]
    )


def words(text: str) -> list[str]:
    """Pieces that join to the text, each a word with its space."""
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def answer_to(request: Any) -> str:
    """What the fake answers: the last thing said, after a name that tells who asked."""
    if isinstance(request, generation_service_pb2.ChatRequest):
        return "you said: " + request.conversation.messages[-1].content[0].text
    return "echo: " + (request.prompt.text or str(list(request.prompt.token_ids)))


def _num_sequences(request: Any) -> int:
    return request.generation_config.num_return_sequences or 1


class FakeServer:
    """Serves until closed. Tests set ``failure``, ``hold`` and ``answer``; they read ``requests`` and ``metadata``."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.time_left: list[float | None] = []
        self.failure: status_pb2.Status | None = None
        """What every call fails with; a stream fails after ``fail_after`` deltas."""
        self.failures_left: int | None = None
        """How many calls fail before one succeeds. None: all."""
        self.fail_after: int | None = None
        self.answer: Callable[[Any], str] = answer_to
        self.hold_after: int | None = None
        """Number of deltas after which a stream waits for ``release`` or its cancellation."""
        self.holding = threading.Event()
        self.release = threading.Event()
        self.cancelled = threading.Event()
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool)
        # Blocking: the other kind takes two locks in either order, and deadlocks when a watch ends while health is set.
        self.health = health.HealthServicer(experimental_non_blocking=False)
        for add, servicer in (
            (generation_service_pb2_grpc.add_GenerationServiceServicer_to_server, self),
            (tokenizer_service_pb2_grpc.add_TokenizerServiceServicer_to_server, self),
            (model_service_pb2_grpc.add_ModelServiceServicer_to_server, self),
            (health_pb2_grpc.add_HealthServicer_to_server, self.health),
        ):
            add(servicer, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.target = f"127.0.0.1:{self.port}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def serve(self, status: int = health_pb2.HealthCheckResponse.SERVING) -> None:
        self.health.set("", status)

    def _receive(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_left.append(context.time_remaining())
        if self.fail_after is None:
            self._fail(context)
        # Not earlier: a reply that has begun is never sent again by the client's gRPC.
        context.send_initial_metadata((("x-request-id", REQUEST_ID),))

    def _fail(self, context: grpc.ServicerContext) -> None:
        if self.failure is None or self.failures_left == 0:
            return
        if self.failures_left is not None:
            self.failures_left -= 1
        status = rpc_status.to_status(self.failure)
        metadata = (*status.trailing_metadata, ("x-request-id", REQUEST_ID))
        context.abort_with_status(status._replace(trailing_metadata=metadata))

    def _start(self, request: Any) -> generation_pb2.GenerationStart:
        config = generation_pb2.GenerationConfig(max_new_tokens=20, seed=11)
        config.MergeFrom(request.generation_config)
        return generation_pb2.GenerationStart(
            request_id=REQUEST_ID,
            model="tiny",
            generation_config=config,
            prompt_token_count=3,
            warnings=[generation_pb2.Warning(code="raw_prompt", message="no chat markers")],
        )

    @staticmethod
    def _deltas(
        text: str, output: generation_pb2.OutputOptions, index: int = 0
    ) -> Iterator[generation_pb2.GenerationDelta]:
        end = 0
        for number, piece in enumerate(words(text)):
            start, end = end, end + len(piece.encode())
            token = generation_pb2.TokenLogprob(token_id=100 + number, text=piece, logprob=-0.5, rank=3)
            position = generation_pb2.PositionLogprobs(chosen=token, top=[token])
            text_range = generation_pb2.ByteRange(start=start, end=end)
            detail = generation_pb2.TokenDetail(
                id=100 + number, piece=piece, bytes=piece.encode(), text_range=text_range
            )
            standing = generation_pb2.TokenStanding(probability=0.5, rank=2, entropy=1.5, token_count=40)
            effects = [
                generation_pb2.ProcessorEffect(name="remove_invalid_values", after=standing),
                generation_pb2.ProcessorEffect(
                    name="top_k",
                    removed_token_count=38,
                    before=standing,
                    after=generation_pb2.TokenStanding(probability=0.625, rank=2, entropy=0.25, token_count=2),
                ),
            ]
            explanation = generation_pb2.TokenExplanation(
                token_id=100 + number, text=piece, effects=effects, outcome=effects[-1].after
            )
            yield generation_pb2.GenerationDelta(
                sequence_index=index,
                text=piece,
                token_ids=[100 + number],
                text_range=text_range,
                logprobs=[position] if output.HasField("logprobs") else [],
                tokens=[detail] if output.token_details else [],
                prompt_logprobs=[position] if output.HasField("prompt_logprobs") and index == number == 0 else [],
                # The server's 256, for short answers.
                explanations=[explanation] if output.explain and number < 2 else [],
            )

    @staticmethod
    def _finish(count: int, index: int = 0, *, beams: bool = False) -> generation_pb2.GenerationFinish:
        return generation_pb2.GenerationFinish(
            sequence_index=index,
            reason=generation_pb2.FINISH_REASON_STOP_STRING,
            stop_string="END",
            usage=generation_pb2.Usage(
                prompt_token_count=3,
                completion_token_count=count,
                cached_token_count=2,
                draft_token_count=6,
                accepted_draft_token_count=4,
            ),
            timings=generation_pb2.Timings(queue_ms=1, prefill_ms=2, decode_ms=4),
            warnings=[generation_pb2.Warning(code="default_length_cut", message="cut at 20")],
            sequence_score=-0.5 - index if beams else None,
        )

    def _texts(self, request: Any) -> list[str]:
        """Of each sequence asked for: those after the first end with their index."""
        text = self.answer(request)
        return [text if index == 0 else f"{text} #{index}" for index in range(_num_sequences(request))]

    def _sequences(self, request: Any) -> list[generation_pb2.GeneratedSequence]:
        return [self._sequence(request, index, text) for index, text in enumerate(self._texts(request))]

    def _sequence(self, request: Any, index: int, text: str) -> generation_pb2.GeneratedSequence:
        deltas = list(self._deltas(text, request.output, index))
        return generation_pb2.GeneratedSequence(
            text=text,
            token_ids=[token for each in deltas for token in each.token_ids],
            logprobs=[position for each in deltas for position in each.logprobs],
            tokens=[token for each in deltas for token in each.tokens],
            prompt_logprobs=[position for each in deltas for position in each.prompt_logprobs],
            explanations=[explanation for each in deltas for explanation in each.explanations],
            finish=self._finish(len(deltas), index, beams=request.generation_config.num_beams > 1),
        )

    def _stream(self, request: Any, context: grpc.ServicerContext, response: Any) -> Iterator[Any]:
        context.add_callback(lambda: None if context.code() is grpc.StatusCode.OK else self._ended(context))
        self._receive(request, context)
        yield response(start=self._start(request))
        sequences = [list(self._deltas(text, request.output, index)) for index, text in enumerate(self._texts(request))]
        interleaved = [each for step in zip_longest(*sequences) for each in step if each is not None]
        for index, each in enumerate(interleaved):
            if index == self.fail_after:
                self._fail(context)
            if index == self.hold_after:
                self.holding.set()
                self.release.wait()
            yield response(delta=each)
        for index, deltas in enumerate(sequences):
            yield response(finish=self._finish(len(deltas), index))

    def _ended(self, context: grpc.ServicerContext) -> None:
        if not context.is_active() and self.holding.is_set() and not self.release.is_set():
            self.cancelled.set()
            self.release.set()

    def hold(self, after: int) -> None:
        """Let the streams from now on wait after this many deltas."""
        self.hold_after = after
        for event in (self.holding, self.release, self.cancelled):
            event.clear()

    # ---- the methods of the services, named as in the protocol ---------------------------------------------

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._receive(request, context)
        return generation_service_pb2.GenerateResponse(start=self._start(request), sequences=self._sequences(request))

    def GenerateStream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        yield from self._stream(request, context, generation_service_pb2.GenerateStreamResponse)

    def GenerateBatch(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._receive(request, context)
        items = []
        for prompt in request.prompts:
            if prompt.text or prompt.token_ids:
                single = generation_service_pb2.GenerateRequest(
                    prompt=prompt, generation_config=request.generation_config, output=request.output
                )
                reply = generation_service_pb2.GenerateResponse(
                    start=self._start(single), sequences=self._sequences(single)
                )
                items.append(generation_service_pb2.GenerateBatchItem(response=reply))
            else:
                status = generation_service_pb2.ItemStatus(
                    code=code_pb2.INVALID_ARGUMENT, message="prompt.text: must not be empty"
                )
                items.append(generation_service_pb2.GenerateBatchItem(error=status))
        return generation_service_pb2.GenerateBatchResponse(items=items)

    def Chat(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._receive(request, context)
        choices = [
            generation_service_pb2.ChatChoice(
                message=chat_pb2.ChatMessage(role="assistant", content=[chat_pb2.ContentPart(text=sequence.text)]),
                sequence=sequence,
            )
            for sequence in self._sequences(request)
        ]
        return generation_service_pb2.ChatResponse(start=self._start(request), choices=choices)

    def ChatStream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        yield from self._stream(request, context, generation_service_pb2.ChatStreamResponse)

    def ResumeStream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this server keeps no streams")

    def CancelStream(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this server keeps no streams")

    def Tokenize(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._receive(request, context)
        tokens, end = [], 0
        for index, piece in enumerate(words(request.text)):
            start, end = end, end + len(piece.encode())
            tokens.append(
                tokenizer_service_pb2.Token(
                    id=100 + index, piece=piece, range=generation_pb2.ByteRange(start=start, end=end)
                )
            )
        return tokenizer_service_pb2.TokenizeResponse(tokens=tokens)

    def Detokenize(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._receive(request, context)
        return tokenizer_service_pb2.DetokenizeResponse(text="-".join(map(str, request.token_ids.ids)))

    def RenderChat(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._receive(request, context)
        text = "".join(f"<{each.role}>{each.content[0].text}" for each in request.conversation.messages)
        return tokenizer_service_pb2.RenderChatResponse(text=text, token_ids=generation_pb2.TokenIds(ids=[1, 2]))

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._receive(request, context)
        return model_service_pb2.GetModelResponse(model=MODEL)
