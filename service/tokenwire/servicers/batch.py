"""GenerateBatch: many prompts through a bounded queue, each with its own outcome."""

import asyncio
import logging

from tokenwire import validation
from tokenwire.call import current_call, log
from tokenwire.engine.handle import TokenStream
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.errors import QueueFullError
from tokenwire.servicers.backend import Backend, Served
from tokenwire.servicers.preparation import Prepared, checked_overrides, collect, encode, prepared_of
from tokenwire.statuses import refusal_of
from tokenwire.v1 import generation_service_pb2 as pb


class Batch:
    """One GenerateBatch call.

    At most twice as many items as the engine runs are submitted at a time: enough to keep it busy, and room in the
    queue is left for others. Where the queue is full, the next item waits for one of its siblings to end.
    """

    def __init__(self, backend: Backend, served: Served, request: pb.GenerateBatchRequest) -> None:
        self._engine = backend.engine
        self._served = served
        self._request = request
        self._output = validation.output_of(request.output)
        self._window = asyncio.Semaphore(2 * served.max_running)
        self._freed = asyncio.Event()
        self._accepted_count = 0

    async def run(self) -> pb.GenerateBatchResponse:
        """All outcomes, in order.

        Raises InvalidRequestError for what is wrong with every item, QueueFullError where not even the first finds
        room.
        """
        violations = validation.Violations()
        validation.check_batch_size(len(self._request.prompts), self._served.bounds, violations, "prompts")
        overrides = checked_overrides(self._request.generation_config, self._output, self._served.bounds, violations)
        violations.check()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._item(index, overrides)) for index in range(len(self._request.prompts))]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return pb.GenerateBatchResponse(items=[task.result() for task in tasks])

    async def _item(self, index: int, overrides: GenerationOverrides) -> pb.GenerateBatchItem:
        async with self._window:
            try:
                prepared = await self._prepare(index, overrides)
                stream = await self._submit(prepared, index)
                response = await collect(prepared, stream)
            except _NothingAcceptedError as error:
                raise error.cause from None
            except Exception as error:
                request_id = current_call().request_id
                refusal = refusal_of(error, request_id)
                if refusal.is_fault:
                    fields: dict[str, object] = {"request_id": request_id, "item": index, "reason": refusal.reason}
                    log(logging.ERROR, "batch item", fields, error)
                status = refusal.status(request_id)
                return pb.GenerateBatchItem(error=pb.ItemStatus.FromString(status.SerializeToString()))
            finally:
                self._freed.set()
            return pb.GenerateBatchItem(response=response)

    async def _prepare(self, index: int, overrides: GenerationOverrides) -> Prepared:
        prompt, path = self._request.prompts[index], f"prompts[{index}]"
        violations = validation.Violations()
        validation.check_prompt(prompt, self._served.bounds, violations, path)
        violations.check()
        prompt_ids = await encode(self._served, prompt, path)
        return prepared_of(self._served, prompt_ids, overrides, self._output)

    async def _submit(self, prepared: Prepared, index: int) -> TokenStream:
        while True:
            self._freed.clear()
            try:
                stream = prepared.submit(self._engine, sequence_index=index)
            except QueueFullError as error:
                if self._accepted_count == 0:
                    raise _NothingAcceptedError(error) from None
                try:
                    async with asyncio.timeout(error.retry_after_s):
                        await self._freed.wait()
                except TimeoutError:
                    continue
            else:
                self._accepted_count += 1
                return stream


class _NothingAcceptedError(Exception):
    """The queue is full and the batch has nothing in it: the whole call is to come back later."""

    def __init__(self, cause: QueueFullError) -> None:
        super().__init__(str(cause))
        self.cause = cause
