"""Client of a tokenwire server: typed, for asyncio and for blocking code.

    from tokenwire.client import Client

    with Client("127.0.0.1:50051") as client:
        print(client.generate("The capital of France is", max_new_tokens=16).text)
        with client.chat_stream([{"role": "user", "content": "Hello!"}], max_new_tokens=100) as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)

Options have the names of transformers' GenerationConfig. Errors form the tree at the top of `errors`.
Importing this needs neither torch nor transformers.
"""

from tokenwire.client.async_client import AsyncClient, AsyncStream
from tokenwire.client.channel import DEFAULT_TARGET
from tokenwire.client.chat import AsyncChatSession, ChatSession
from tokenwire.client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    ErrorDetails,
    FailedPrecondition,
    FieldViolation,
    InternalError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TokenwireError,
    Unauthenticated,
    Unavailable,
)
from tokenwire.client.results import (
    ChatAnswer,
    Delta,
    Finish,
    FinishReason,
    GeneratedSequence,
    Generation,
    GenerationWarning,
    PositionLogprobs,
    ProcessorEffect,
    Start,
    Timings,
    TokenDetail,
    TokenExplanation,
    TokenLogprob,
    TokenStanding,
    Usage,
)
from tokenwire.client.sync_client import Client, Stream
from tokenwire.client.types import (
    ChatMessage,
    ConversationOptions,
    EarlyStopping,
    GenerationOptions,
    GreenListWatermark,
    Model,
    ModelLimits,
    RenderedChat,
    SpecialToken,
    StreamPosition,
    SynthIdTextWatermark,
    Token,
    ToolCall,
)

__all__ = [
    "DEFAULT_TARGET",
    "Aborted",
    "AlreadyExists",
    "AsyncChatSession",
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "ChatAnswer",
    "ChatMessage",
    "ChatSession",
    "Client",
    "ConnectionFailed",
    "ConversationOptions",
    "DeadlineExceeded",
    "Delta",
    "EarlyStopping",
    "ErrorDetails",
    "FailedPrecondition",
    "FieldViolation",
    "Finish",
    "FinishReason",
    "GeneratedSequence",
    "Generation",
    "GenerationOptions",
    "GenerationWarning",
    "GreenListWatermark",
    "InternalError",
    "InvalidArgument",
    "Model",
    "ModelLimits",
    "NotFound",
    "PermissionDenied",
    "PositionLogprobs",
    "ProcessorEffect",
    "RenderedChat",
    "ResourceExhausted",
    "SpecialToken",
    "Start",
    "Stream",
    "StreamPosition",
    "SynthIdTextWatermark",
    "Timings",
    "Token",
    "TokenDetail",
    "TokenExplanation",
    "TokenLogprob",
    "TokenStanding",
    "TokenwireError",
    "ToolCall",
    "Unauthenticated",
    "Unavailable",
    "Usage",
]
