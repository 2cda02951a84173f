"""GenerationService: prompts and conversations in, text out."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from typing import Any

from tokenwire import validation
from tokenwire.call import current_call
from tokenwire.servicers.backend import Backend, Served
from tokenwire.servicers.batch import Batch
from tokenwire.servicers.event_log import Position
from tokenwire.servicers.preparation import Collected, Prepared, collect, events_of, prepare_chat, prepare_prompt
from tokenwire.servicers.retention import RetainedStream
from tokenwire.servicers.sequences import StreamEvent, StreamResponse
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
        self._check_resumable(request)
        prepared = await prepare_prompt(self._served(request), request, is_streaming=True)
        await self._stream(prepared, context, pb.GenerateStreamResponse, resumable=request.resumable)

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
        self._check_resumable(request)
        prepared = await prepare_chat(self._served(request), request, is_streaming=True)
        await self._stream(prepared, context, pb.ChatStreamResponse, resumable=request.resumable)

    async def ResumeStream(self, request: pb.ResumeStreamRequest, context: Any) -> None:  # noqa: N802
        """Go on with a stream whose call was lost."""
        validation.check_positions(request, self._backend.limits)
        stream = self._backend.retention.find(current_call().caller, request.request_id)
        rest, place = stream.rest([(each.sequence_index, position_of(each)) for each in request.positions])
        response = pb.ResumeStreamResponse
        async with self._reader(context) as out:
            with stream.attached(out):
                await self._write(out, stream.events(rest, place, response), response(start=stream.start))

    async def CancelStream(  # noqa: N802
        self, request: pb.CancelStreamRequest, context: Any
    ) -> pb.CancelStreamResponse:
        """End a resumable stream and forget it."""
        validation.check_request_id(request.request_id)
        self._backend.retention.find(current_call().caller, request.request_id).cancel()
        return pb.CancelStreamResponse()

    def _served(self, request: pb.GenerateRequest | pb.GenerateBatchRequest | pb.ChatRequest) -> Served:
        return self._backend.serving(request.model, current_call().caller)

    async def _answer(self, prepared: Prepared) -> Collected:
        return await collect(prepared, prepared.submit(self._backend.admission))

    def _check_resumable(self, request: pb.GenerateRequest | pb.ChatRequest) -> None:
        if request.resumable:
            call = current_call()
            self._backend.retention.check_new(call.caller, call.request_id)

    def _reader(self, context: Any) -> SlowReaderGuard:
        return SlowReaderGuard(context, self._backend.slow_reader_timeout_s)

    async def _stream(self, prepared: Prepared, context: Any, response: StreamResponse, *, resumable: bool) -> None:
        call = current_call()
        if resumable:
            # Again: its twin may have come while this one was tokenized.
            self._backend.retention.check_new(call.caller, call.request_id)
        # Submitted before anything is written, so that a refusal is a plain status.
        stream = prepared.submit(self._backend.admission)
        if resumable:
            kept = RetainedStream(
                prepared.start,
                stream,
                events_of(prepared, stream, response),
                num_sequences=prepared.resolved.settings.num_return_sequences,
                call=call,
            )
            async with self._reader(context) as out:
                with kept.attached(out):
                    self._backend.retention.add(call.caller, kept)
                    await self._write(out, kept.events([], 0, response), response(start=prepared.start))
        else:
            with closing(stream):
                async with self._reader(context) as out:
                    await self._write(out, events_of(prepared, stream, response), response(start=prepared.start))

    @staticmethod
    async def _write(out: SlowReaderGuard, events: AsyncGenerator[StreamEvent, None], start: StreamEvent) -> None:
        async with aclosing(events):
            await out.write(start)
            async for event in events:
                await out.write(event)


def position_of(message: pb.StreamPosition) -> Position:
    """How much of a sequence its reader has."""
    token_count = message.token_count if message.HasField("token_count") else None
    return Position(message.text_bytes, token_count, message.is_finished)


def choice_of(sequence: generation_pb2.GeneratedSequence, text: str) -> pb.ChatChoice:
    """A sequence as an answer of the assistant. ``text``: without the echoed prompt."""
    message = chat_pb2.ChatMessage(role="assistant", content=[chat_pb2.ContentPart(text=text)])
    return pb.ChatChoice(message=message, sequence=sequence)
