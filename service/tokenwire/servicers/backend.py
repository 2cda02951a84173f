"""What all servicers share: the engine, the queue in front of it, and the served model once there is one."""

from dataclasses import dataclass, field, replace

from tokenwire.admission.admission import Admission
from tokenwire.config import LimitsConfig
from tokenwire.engine.handle import EngineHandle, EngineState
from tokenwire.engine.protocol import ModelInfo
from tokenwire.errors import EngineUnavailableError
from tokenwire.security.callers import Caller
from tokenwire.servicers.retention import Retention
from tokenwire.servicers.text import Text
from tokenwire.validation import MIN_TEXT_BYTES, Bounds, check_model

LOADING_RETRY_S = 2.0
"""When a client should come back while the model loads, in seconds."""


@dataclass(slots=True)
class ChatMarkers:
    """What the model's chat template writes around a message; looked for when first asked for (`pitfalls`)."""

    special_ids: frozenset[int] | None = None
    """None until it was looked for."""
    line: str = ""
    """The last line before the message."""


@dataclass(frozen=True, slots=True)
class Served:
    """The loaded model as the front uses it."""

    info: ModelInfo
    text: Text
    bounds: Bounds
    markers: ChatMarkers = field(default_factory=ChatMarkers)


ASSUMED_BYTES_PER_TOKEN = 64
"""For tokenizers that drop or shorten text, where no bound can be proven: prose has 4 to 5 bytes per token. Without
a bound, 4 MB of text would be tokenized for half a minute only to be refused."""


class Backend:
    """Engine and served model. Owned by the event loop."""

    def __init__(
        self, engine: EngineHandle, limits: LimitsConfig, *, max_running: int, slow_reader_timeout_s: float
    ) -> None:
        self.engine = engine
        self.admission = Admission(engine, limits, max_running=max_running)
        self.retention = Retention(limits)
        self.limits = limits
        self.slow_reader_timeout_s = slow_reader_timeout_s
        self.leaving = False
        """No new requests should come, because the service is going to drain; those that do are taken."""
        self.draining = False
        """New requests are refused."""
        self._max_running = max_running
        self._served: Served | None = None

    def install(self, info: ModelInfo, text: Text) -> None:
        """Serve this model from now on."""
        tokens = min(info.context_length, info.kv_token_capacity)
        if text.max_bytes_per_token is not None:
            max_prompt_bytes = tokens * text.max_bytes_per_token
        else:
            max_prompt_bytes = max(MIN_TEXT_BYTES, tokens * ASSUMED_BYTES_PER_TOKEN)
        max_prompt_bytes = min(max_prompt_bytes, self.limits.max_message_bytes)
        # All beams of a request advance together.
        limits = replace(self.limits, max_beams=min(self.limits.max_beams, self._max_running))
        bounds = Bounds(info=info, limits=limits, max_prompt_bytes=max_prompt_bytes, max_running=self._max_running)
        self._served = Served(info, text, bounds)

    @property
    def is_installed(self) -> bool:
        """Whether the model is known, so that it can be described and its tokenizer used."""
        return self._served is not None

    @property
    def info(self) -> ModelInfo | None:
        """The served model, once there is one."""
        return None if self._served is None else self._served.info

    @property
    def state(self) -> str:
        """What the service does now: draining from when it is to end, before that what the engine does.

        While that loads, with the phase it is in.
        """
        if self.leaving or self.draining:
            return EngineState.DRAINING.value
        phase = self.engine.figures.phase
        state = self.engine.state.value
        return f"{state}: {phase}" if phase is not None and self.engine.state is EngineState.LOADING else state

    @property
    def is_serving(self) -> bool:
        """Whether requests for generation should come here."""
        return self.is_known and self.engine.state is EngineState.READY

    @property
    def is_known(self) -> bool:
        """Whether requests that do not generate should come here."""
        return self.is_installed and not self.leaving and not self.draining

    def summary(self) -> dict[str, object]:
        """What is served, for the log."""
        info = self.served("").info
        return {
            "model": info.model_id,
            "quantization": info.quantization,
            "forward_path": info.forward_path,
            "context_length": info.context_length,
            "kv_token_capacity": info.kv_token_capacity,
        }

    def served(self, model: str) -> Served:
        """The served model, for calls that do not generate.

        Raises EngineUnavailableError before it is loaded, UnknownModelError where ``model`` names another.
        """
        if self._served is None:
            raise EngineUnavailableError(f"the model is loading: {self.engine.phase}", LOADING_RETRY_S)
        check_model(model, self._served.info)
        return self._served

    def serving(self, model: str, caller: Caller) -> Served:
        """The served model, for calls that generate.

        Raises EngineUnavailableError while new ones are refused, QueueFullError or CallerLimitError where ``caller``
        could not even wait: both before there is any work.
        """
        if self.draining:
            raise EngineUnavailableError("the server is shutting down")
        served = self.served(model)
        if self.engine.state is not EngineState.READY:
            raise EngineUnavailableError(f"the engine is not ready: {self.engine.state.value}", LOADING_RETRY_S)
        self.admission.check_room(caller)
        return served
