"""GenerationService: prompts and conversations in, text out."""

from contextlib import closing
from typing import Any

from tokenwire.call import current_call
from tokenwire.servicers.backend import Backend, Served
from tokenwire.servicers.batch import Batch
from tokenwire.servicers.preparation import Collected, Prepared, collect, prepare_chat, prepare_prompt
from tokenwire.servicers.sequences import StreamResponse
from tokenwire.servicers.streaming import SlowReaderGuard
from tokenwire.v1 import chat_pb2, generation_pb2, generation_service_pb2_grpc
from tokenwire.v1 import generation_service_pb2 as pb


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    """Validates, tokenizes, submits, and writes what comes out."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        """Generate from one prompt."""
        return (await self._answer(await prepare_prompt(self._served(request), request))).response

    async def GenerateStream(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """Generate from one prompt, as events."""
        prepared = await prepare_prompt(self._served(request), request, is_streaming=True)
        await self._stream(prepared, context, pb.GenerateStreamResponse)

    async def GenerateBatch(  # noqa: N802
        self, request: pb.GenerateBatchRequest, context: Any
    ) -> pb.GenerateBatchResponse:
        """Generate from many prompts; what is wrong with one is that item's error."""
        return await Batch(self._backend, self._served(request), request).run()

    async def Chat(self, request: pb.ChatRequest, context: Any) -> pb.ChatResponse:  # noqa: N802
        """Answer a conversation."""
        answer = await self._answer(await prepare_chat(self._served(request), request))
        choices = map(choice_of, answer.response.sequences, answer.texts)
        return pb.ChatResponse(start=answer.response.start, choices=choices)

    async def ChatStream(self, request: pb.ChatRequest, context: Any) -> None:  # noqa: N802
        """Answer a conversation, as events."""
        prepared = await prepare_chat(self._served(request), request, is_streaming=True)
        await self._stream(prepared, context, pb.ChatStreamResponse)

    def _served(self, request: pb.GenerateRequest | pb.GenerateBatchRequest | pb.ChatRequest) -> Served:
        return self._backend.serving(request.model, current_call().caller)

    async def _answer(self, prepared: Prepared) -> Collected:
        return await collect(prepared, prepared.submit(self._backend.admission))

    async def _stream(self, prepared: Prepared, context: Any, response: StreamResponse) -> None:
        call = current_call()
        writers = prepared.writers(response)
        # Submitted before anything is written, so that a refusal is a plain status.
        with (
            closing(prepared.submit(self._backend.admission)) as stream,
            SlowReaderGuard(context, self._backend.slow_reader_timeout_s) as out,
        ):
            await out.write(response(start=prepared.start))
            num_finished = 0
            async for delta in stream:
                call.count(len(delta.token_ids))
                writer = writers[delta.sequence_index]
                if delta.prompt_logprobs:
                    await writer.score_prompt(delta)
                event = writer.push(delta)
                if event is not None:
                    await out.write(event)
                if delta.finish is not None:
                    num_finished += 1
                    await out.write(response(finish=prepared.finish_of(delta.finish, delta.sequence_index)))
            prepared.check_all_finished(num_finished)


def choice_of(sequence: generation_pb2.GeneratedSequence, text: str) -> pb.ChatChoice:
    """A sequence as an answer of the assistant. ``text``: without the echoed prompt."""
    message = chat_pb2.ChatMessage(role="assistant", content=[chat_pb2.ContentPart(text=text)])
    return pb.ChatChoice(message=message, sequence=sequence)
