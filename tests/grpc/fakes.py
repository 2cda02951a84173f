"""An engine without a model, driven by the tests, and a model description with a real tokenizer and template."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from tokenwire._native import MAX_EXPLAINED_TOKENS
from tokenwire.engine.figures import EngineFigures
from tokenwire.engine.handle import EngineState
from tokenwire.engine.protocol import (
    Delta,
    Finish,
    ModelInfo,
    ProcessorEffect,
    Stats,
    TokenExplanation,
    TokenLogprobs,
    TokenStanding,
)
from tokenwire.engine.settings import GenerationOverrides, GenerationSettings
from tokenwire.errors import EngineUnavailableError, ModelLoadError, QueueFullError

IM_START, IM_END = 256, 257
VOCAB_SIZE = 264
"""Two special tokens behind the bytes, and rows of the embedding that no token uses."""

CHAT_TEMPLATE = """{%- for message in messages -%}
{%- if message.content == 'refuse me' -%}{{ raise_exception('this model refuses that') }}{%- endif -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def byte_characters() -> list[str]:
    """The character that byte-level tokenizers use for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def tokenizer_json() -> str:
    """One token per byte: the id is the byte."""
    special = [
        {"id": token_id, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for token_id, text in ((IM_START, "<|im_start|>"), (IM_END, "<|im_end|>"))
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {character: byte for byte, character in enumerate(byte_characters())},
                "merges": [],
            },
        }
    )


def model_info(**changes: object) -> ModelInfo:
    fields: dict[str, object] = {
        "model_id": "fake",
        "revision": "0123abc",
        "architecture": "FakeForCausalLM",
        "quantization": "none",
        "dtype": "float32",
        "device_map": {"": "cpu"},
        "forward_path": "paged",
        "forward_path_reason": "every layer calls the hook",
        "parameter_count": 12,
        "context_length": 128,
        "vocab_size": VOCAB_SIZE,
        "kv_token_capacity": 4096,
        "special_tokens": {"eos_token": "<|im_end|>"},
        "bos_token_id": None,
        "eos_token_ids": (IM_END,),
        "pad_token_id": None,
        "tokenizer_json": tokenizer_json(),
        "chat_templates": {"default": CHAT_TEMPLATE},
        "defaults": GenerationOverrides(eos_token_ids=(IM_END,)),
        "unapplied_defaults": ("num_beams=4",),
    }
    return ModelInfo(**{**fields, **changes})  # type: ignore[arg-type]


def explanation_at(place: int) -> TokenExplanation:
    """Of the token at a place of the answer, whose entropies tell which place it is."""
    model = TokenStanding(0.25, 2, float(place), 9)
    outcome = TokenStanding(0.5, 1, place + 0.5, 2)
    effects = [ProcessorEffect("remove_invalid_values", 0, None, model), ProcessorEffect("top_k", 7, model, outcome)]
    return TokenExplanation(None, effects, outcome)


class FakeStream:
    """A TokenStream that a test feeds."""

    def __init__(
        self,
        engine: "FakeEngine",
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        negative_prompt_ids: Sequence[int] | None,
        deadline: float | None,
    ) -> None:
        self.prompt_ids = list(prompt_ids)
        self.settings = settings
        self.negative_prompt_ids = negative_prompt_ids
        self.deadline = deadline
        self.closed = asyncio.Event()
        """Given up before it was finished."""
        self.finished = False
        self.finish_changes: dict[str, object] = {}
        """Fields of the Finish that are to differ from the plain one's."""
        self.num_tokens = 0
        self._on_end: Callable[[], None] | None = None
        self._engine = engine
        self._deltas: deque[Delta] = deque()
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self._counts = [0] * settings.num_return_sequences
        self._num_finished = 0

    def push(self, text: str, token_ids: Sequence[int], finish: str | None = None, *, index: int = 0) -> None:
        settings = self.settings
        logprobs = (
            [
                TokenLogprobs(-0.5, 2, [(token_id, -0.5 - rank) for rank in range(settings.logprobs)])
                for token_id in token_ids
            ]
            if settings.logprobs is not None
            else []
        )
        prompt_logprobs = None
        if settings.prompt_logprobs is not None and index == 0 and self._counts[0] == 0:
            prompt_logprobs = [TokenLogprobs(-float(place), place, []) for place in range(1, len(self.prompt_ids))]
        explanations = None
        if settings.explain:
            places = range(self._counts[index], min(self._counts[index] + len(token_ids), MAX_EXPLAINED_TOKENS))
            explanations = [explanation_at(place) for place in places]
        self._counts[index] += len(token_ids)
        self.num_tokens += len(token_ids)
        end = self._finish(finish, index) if finish else None
        self._deltas.append(Delta(0, list(token_ids), text, logprobs, end, index, prompt_logprobs, explanations))
        if end is not None:
            self._num_finished += 1
            if self._num_finished == settings.num_return_sequences:
                self._end()
        self._wake.set()

    def answer(self, text: str, finish: str = "eos") -> None:
        """All of ``text`` as one token per byte, then the end; every sequence alike."""
        data, sent = text.encode(), 0
        for count in range(1, len(data) + 1):
            known = data[:count].decode(errors="ignore")
            for index in range(self.settings.num_return_sequences):
                self.push(known[sent:], [data[count - 1]], index=index)
            sent = len(known)
        for index in range(self.settings.num_return_sequences):
            self.push("", [IM_END] if finish == "eos" else [], finish, index=index)

    def fail(self, error: Exception) -> None:
        self._error = error
        self._end()
        self._wake.set()

    def _finish(self, reason: str, index: int) -> Finish:
        finish = Finish(
            reason=reason,
            stop_string="END" if reason == "stop_string" else None,
            stop_token_id=IM_END if reason in ("eos", "stop_token") else None,
            prompt_token_count=len(self.prompt_ids),
            completion_token_count=self._counts[index],
            queue_ms=1.0,
            prefill_ms=2.0,
            decode_ms=3.0,
        )
        return msgspec.structs.replace(finish, **self.finish_changes)

    def _end(self) -> None:
        self.finished = True
        self._leave()

    def _leave(self) -> None:
        self._engine.leave(self)
        if self._on_end is not None:
            self._on_end()

    def on_end(self, callback: Callable[[], None]) -> None:
        self._on_end = callback
        if self.finished or self.closed.is_set():
            callback()

    def __aiter__(self) -> "FakeStream":
        return self

    async def __anext__(self) -> Delta:
        while not self._deltas:
            if self._error is not None:
                raise self._error
            if self.finished or self.closed.is_set():
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._deltas.popleft()

    def close(self) -> None:
        if not self.finished:
            self.closed.set()
            self._leave()
            self._wake.set()


Script = Callable[[FakeStream], None]


def say(text: str, finish: str = "eos") -> Script:
    return lambda stream: stream.answer(text, finish)


class FakeEngine:
    """An EngineHandle. ``script`` answers each stream at once; without one the test does."""

    def __init__(
        self,
        info: ModelInfo | None = None,
        *,
        script: Script | None = None,
        capacity: int = 1000,
        load: asyncio.Event | None = None,
        load_error: str | None = None,
    ) -> None:
        self.script = script
        self.capacity = capacity
        self.streams: list[FakeStream] = []
        self.open: set[FakeStream] = set()
        self.most_open = 0
        self.submitted: asyncio.Queue[FakeStream] = asyncio.Queue()
        self.stopped = False
        self.phase = "loading weights"
        self.figures = EngineFigures()
        self._info = info or model_info()
        self._load, self._load_error = load, load_error
        self._state = EngineState.LOADING
        self._callbacks: list[Callable[[EngineState], None]] = []
        self._left = asyncio.Event()

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> ModelInfo:
        if self._state is EngineState.LOADING:
            raise EngineUnavailableError("loading")
        return self._info

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        self._callbacks.append(callback)

    def enter(self, state: EngineState) -> None:
        self._state = state
        for callback in self._callbacks:
            callback(state)

    async def start(self) -> ModelInfo:
        if self._load is not None:
            await self._load.wait()
        if self._load_error is not None:
            raise ModelLoadError(self._load_error)
        self.enter(EngineState.READY)
        return self._info

    def submit(
        self,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        *,
        negative_prompt_ids: Sequence[int] | None = None,
        deadline: float | None = None,
    ) -> FakeStream:
        if self._state is not EngineState.READY:
            raise EngineUnavailableError(f"the engine is {self._state.value}")
        if len(self.open) >= self.capacity:
            raise QueueFullError(self.capacity, 0.05)
        stream = FakeStream(self, prompt_ids, settings, negative_prompt_ids, deadline)
        self.streams.append(stream)
        self.open.add(stream)
        self.most_open = max(self.most_open, len(self.open))
        if self.script is not None:
            self.script(stream)
        self.submitted.put_nowait(stream)
        return stream

    def leave(self, stream: FakeStream) -> None:
        self.open.discard(stream)
        self._left.set()

    def die(self) -> None:
        """What a crash looks like from the front."""
        for stream in list(self.open):
            stream.fail(EngineUnavailableError("the engine ended unexpectedly"))
        self.enter(EngineState.LOADING)

    async def stats(self) -> Stats:
        return Stats(len(self.open), 0, 1, 1, 0, 0, 0)

    async def drain(self, grace_s: float) -> None:
        self.enter(EngineState.DRAINING)
        try:
            async with asyncio.timeout(grace_s):
                while self.open:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            for stream in list(self.open):
                stream.fail(EngineUnavailableError("the server is shutting down"))

    async def stop(self) -> None:
        self.stopped = True
        for stream in list(self.open):
            stream.fail(EngineUnavailableError("the engine has stopped"))
        self.enter(EngineState.STOPPED)
