"""ModelService: what is served, and within which limits."""

from typing import Any

from tokenwire import convert
from tokenwire.convert_settings import config_of
from tokenwire.engine.resolution import resolve
from tokenwire.engine.settings import GenerationOverrides
from tokenwire.servicers.backend import Backend, Served
from tokenwire.v1 import generation_pb2, model_service_pb2, model_service_pb2_grpc
from tokenwire.validation_settings import Shape, circumstances_of


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Describes the served model."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def GetModel(  # noqa: N802
        self, request: model_service_pb2.GetModelRequest, context: Any
    ) -> model_service_pb2.GetModelResponse:
        """Describe the model that ``request`` names."""
        return model_service_pb2.GetModelResponse(model=describe(self._backend.served(request.model)))


def describe(served: Served) -> model_service_pb2.Model:
    """The Model message of what is served."""
    info, bounds = served.info, served.bounds
    special_tokens = [
        (name, token, token_id)
        for name, token in sorted(info.special_tokens.items())
        if (token_id := served.text.token_id(token)) is not None
    ]
    return convert.model_of(
        info,
        special_tokens=special_tokens,
        chat_template_names=served.text.chat_template_names,
        default_config=_default_config(served),
        limits=convert.limits_of(
            bounds.limits, max_sequence_tokens=bounds.max_sequence_tokens, max_running=bounds.max_running
        ),
    )


def _default_config(served: Served) -> generation_pb2.GenerationConfig:
    info = served.info
    resolution = resolve(GenerationOverrides(), info.defaults, circumstances_of(served.bounds, Shape()))
    if resolution.settings is None:
        return generation_pb2.GenerationConfig()
    config = config_of(resolution.settings, with_seed=False)
    if info.defaults.max_length is not None:
        config.max_length = info.defaults.max_length
        if info.defaults.max_new_tokens is None:
            # The default bounds prompt and answer together: how many are new depends on the prompt.
            config.ClearField("max_new_tokens")
    return config
