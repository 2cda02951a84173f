"""GenerationService: prompts and conversations in, text out."""

from contextlib import closing
from typing import Any

from tokenwire.call import current_call
from tokenwire.engine.protocol import Finish
from tokenwire.servicers.backend import Backend
from tokenwire.servicers.batch import Batch
from tokenwire.servicers.preparation import Prepared, collect, prepare_chat, prepare_prompt
from tokenwire.servicers.streaming import DeltaWriter, SlowReaderGuard, StreamResponse
from tokenwire.v1 import chat_pb2, generation_service_pb2_grpc
from tokenwire.v1 import generation_service_pb2 as pb


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    """Validates, tokenizes, submits, and writes what comes out."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        """Generate from one prompt."""
        return await self._answer(await prepare_prompt(self._backend.serving(request.model), request))

    async def GenerateStream(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Generate from one prompt, as events."""
        prepared = await prepare_prompt(self._backend.serving(request.model), request)
        await self._stream(prepared, context, pb.GenerateStreamResponse)

    async def GenerateBatch(  # noqa: N802
        self, request: pb.GenerateBatchRequest, context: Any
    ) -> pb.GenerateBatchResponse:
        """Generate from many prompts; what is wrong with one is that item's error."""
        return await Batch(self._backend, self._backend.serving(request.model), request).run()

    async def Chat(self, request: pb.ChatRequest, context: Any) -> pb.ChatResponse:  # noqa: N802
        """Answer a conversation."""
        answer = await self._answer(await prepare_chat(self._backend.serving(request.model), request))
        sequence = answer.sequences[0]
        message = chat_pb2.ChatMessage(role="assistant", content=[chat_pb2.ContentPart(text=sequence.text)])
        choice = pb.ChatChoice(message=message, sequence=sequence)
        return pb.ChatResponse(start=answer.start, choices=[choice])

    async def ChatStream(self, request: pb.ChatRequest, context: Any) -> None:  # noqa: N802
        """Answer a conversation, as events."""
        prepared = await prepare_chat(self._backend.serving(request.model), request)
        await self._stream(prepared, context, pb.ChatStreamResponse)

    async def _answer(self, prepared: Prepared) -> pb.GenerateResponse:
        return await collect(prepared, prepared.submit(self._backend.engine))

    async def _stream(self, prepared: Prepared, context: Any, response: StreamResponse) -> None:
        call = current_call()
        deltas = DeltaWriter(prepared.served.text, response)
        # Submitted before anything is written, so that a refusal is a plain status.
        with (
            closing(prepared.submit(self._backend.engine)) as stream,
            SlowReaderGuard(context, self._backend.slow_reader_timeout_s) as out,
        ):
            await out.write(response(start=prepared.start))
            finish: Finish | None = None
            async for delta in stream:
                call.count(len(delta.token_ids))
                finish = delta.finish
                event = deltas.push(delta)
                if event is not None:
                    await out.write(event)
            await out.write(response(finish=prepared.finish_of(finish)))
