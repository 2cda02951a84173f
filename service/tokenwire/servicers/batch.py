"""GenerateBatch: many prompts through a bounded queue, each with its own outcome."""

import asyncio
import logging

import msgspec

from tokenwire import validation
from tokenwire.call import Progress, current_call, log
from tokenwire.engine.handle import TokenStream
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.errors import CallerLimitError, QueueFullError
from tokenwire.servicers.backend import Backend, Served
from tokenwire.servicers.preparation import Prepared, collect, encode, prepared_prompt_of, take_priority
from tokenwire.statuses import refusal_of
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.validation_settings import Shape, check_supported, checked_overrides, num_rows_for, output_of


class Batch:
    """One GenerateBatch call.

    At most twice as many rows as the engine runs are submitted at a time: enough to keep it busy, and room in the queue
    is left for others. Where the queue is full, or the caller's part of it, the next item waits for one of its siblings
    to end.
    """

    def __init__(self, backend: Backend, served: Served, request: pb.GenerateBatchRequest) -> None:
        self._admission = backend.admission
        self._served = served
        self._request = request
        self._output = output_of(request.output)
        self._shape = Shape(
            has_deadline=current_call().deadline is not None,
            negative_prompt_field="negative_prompts" if request.negative_prompts else "",
        )
        self._freed = asyncio.Event()
        self._accepted_count = 0

    async def run(self) -> pb.GenerateBatchResponse:
        """All outcomes, in order.

        Raises InvalidRequestError for what is wrong with every item, QueueFullError or CallerLimitError where not even
        the first finds room.
        """
        violations = validation.Violations()
        validation.check_batch_size(len(self._request.prompts), self._served.bounds, violations, "prompts")
        validation.check_negative_prompts(self._request, violations)
        overrides = checked_overrides(
            self._request.generation_config, self._output, self._served.bounds, violations, self._shape
        )
        asked = validation.check_priority(self._request.priority, violations)
        violations.check()
        take_priority(asked)
        check_supported(overrides, self._served.info)
        num_rows = num_rows_for(overrides, self._served.info.defaults)
        window = asyncio.Semaphore(max(1, 2 * self._served.bounds.max_running // num_rows))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._item(index, overrides, window))
                    for index in range(len(self._request.prompts))
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return pb.GenerateBatchResponse(items=[task.result() for task in tasks])

    async def _item(
        self, index: int, overrides: GenerationOverrides, window: asyncio.Semaphore
    ) -> pb.GenerateBatchItem:
        async with window:
            progress: Progress | None = None
            try:
                prepared = await self._prepare(index, overrides)
                stream = await self._submit(prepared)
                progress = Progress(current_call())
                response = (await collect(prepared, stream, progress)).response
            except _NothingAcceptedError as error:
                raise error.cause from None
            except Exception as error:
                request_id = current_call().request_id
                refusal = refusal_of(error, request_id)
                call = current_call()
                if call.observer is not None:
                    is_unserved = progress is None or not progress.has_begun
                    call.observer.failed(refusal.code.name, refusal.reason, call.priority, is_unserved=is_unserved)
                if refusal.is_fault:
                    fields: dict[str, object] = {"request_id": request_id, "item": index, "reason": refusal.reason}
                    log(logging.ERROR, "batch item", fields, error)
                status = refusal.status(request_id)
                return pb.GenerateBatchItem(error=pb.ItemStatus.FromString(status.SerializeToString()))
            finally:
                self._freed.set()
            return pb.GenerateBatchItem(response=response)

    async def _prepare(self, index: int, overrides: GenerationOverrides) -> Prepared:
        if overrides.seed is not None:
            overrides = msgspec.structs.replace(overrides, seed=seed_of_item(overrides.seed, index))
        prompt, path = self._request.prompts[index], f"prompts[{index}]"
        negative_path = f"negative_prompts[{index}]"
        negative = self._request.negative_prompts[index] if self._request.negative_prompts else None
        violations = validation.Violations()
        validation.check_prompt(prompt, self._served.bounds, violations, path)
        if negative is not None:
            validation.check_prompt(negative, self._served.bounds, violations, negative_path)
        violations.check()
        encoded = await encode(self._served, prompt, path)
        negative_ids = None if negative is None else (await encode(self._served, negative, negative_path)).token_ids
        shape = self._shape._replace(has_text_prompt=encoded.text is not None)
        return await prepared_prompt_of(
            self._served,
            encoded,
            overrides,
            self._output,
            shape,
            negative_prompt_ids=negative_ids,
            negative_path=negative_path,
        )

    async def _submit(self, prepared: Prepared) -> TokenStream:
        while True:
            self._freed.clear()
            try:
                stream = prepared.submit(self._admission, num_items=len(self._request.prompts))
            except (QueueFullError, CallerLimitError) as error:
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


def seed_of_item(seed: int, index: int) -> int:
    """The seed with which a call for this item alone gives its answer: ``seed + index`` in 64 bits, signed."""
    return (seed + index + 2**63) % 2**64 - 2**63


class _NothingAcceptedError(Exception):
    """The queue is full and the batch has nothing in it: the whole call is to come back later."""

    def __init__(self, cause: QueueFullError | CallerLimitError) -> None:
        super().__init__(str(cause))
        self.cause = cause
