"""Every metric: name, kind, labels, meaning. Nowhere else are they written; docs/observability.md shows this table.

No label takes a value that a client could make up: methods, codes, reasons and states are closed sets of the service.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A counter's samples end in ``_total``, a histogram's in ``_bucket``, ``_sum`` and ``_count``."""

    name: str
    """Without the suffixes of its samples."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""

    @property
    def shown_name(self) -> str:
        """The name that queries begin with."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


# Field practice (vLLM, SGLang): from a cached prompt on a fast device to a long queue; each factor 2 to 2.5.
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)

REQUESTS_RUNNING = Metric("tokenwire_requests_running", "gauge", "Requests that the engine has.")
REQUESTS_WAITING = Metric("tokenwire_requests_waiting", "gauge", "Requests that wait for the engine.")
WAITING_TOKENS = Metric("tokenwire_requests_waiting_tokens", "gauge", "Prompt tokens of the requests that wait.")
ROWS_RUNNING = Metric("tokenwire_rows_running", "gauge", "Rows of the engine's batch: one per sequence or beam.")
ROWS_WAITING = Metric("tokenwire_rows_waiting", "gauge", "Rows that wait in the engine, preempted ones among them.")
KV_BLOCKS = Metric("tokenwire_kv_blocks", "gauge", "Blocks of the KV cache; 0 while no engine runs.")
KV_BLOCKS_USED = Metric("tokenwire_kv_blocks_used", "gauge", "Blocks of the KV cache that sequences hold.")
KV_USAGE = Metric("tokenwire_kv_usage_ratio", "gauge", "Part of the KV cache's blocks that is held, 0 to 1.")
ENGINE_MEMORY = Metric(
    "tokenwire_engine_resident_memory_bytes", "gauge", "Resident memory of the engine process; 0 while none runs."
)
ENGINE_STATE = Metric(
    "tokenwire_engine_state",
    "gauge",
    "1 for the state that the engine is in: loading, ready, stalled, draining, stopped.",
    ("state",),
)
SERVING = Metric("tokenwire_serving", "gauge", "1 while health says SERVING, otherwise 0.")
ENGINE_STALLED = Metric(
    "tokenwire_engine_stalled_seconds", "gauge", "Seconds since the engine's loop last got on; 0 where it idles."
)
STARTUP = Metric(
    "tokenwire_startup_phase_seconds",
    "gauge",
    "Seconds that each phase of the engine's last start-up took, or has taken so far.",
    ("phase",),
)
ENGINE_RESTARTS = Metric(
    "tokenwire_engine_restarts", "counter", "Engine processes started in the place of one that ended."
)
STEPS = Metric("tokenwire_engine_steps", "counter", "Steps of the engine: forward passes.")
STEP_SECONDS = Metric(
    "tokenwire_engine_step_seconds",
    "counter",
    "Seconds of all steps by phase: draft, forward, sample, rest. On a GPU, waiting for it counts as sample.",
    ("phase",),
)
PREEMPTIONS = Metric(
    "tokenwire_preemptions", "counter", "Rows that gave their KV blocks back to be computed again later."
)
REQUESTS = Metric("tokenwire_requests", "counter", "Calls that have ended, by method and status.", ("method", "code"))
ERRORS = Metric(
    "tokenwire_errors",
    "counter",
    "Calls and items of batches that ended with an error, by status and reason (that of ErrorInfo), but for CANCELLED.",
    ("code", "reason"),
)
REFUSALS = Metric(
    "tokenwire_admission_refusals",
    "counter",
    "Requests that were not admitted or left the queue unserved, by reason and priority.",
    ("reason", "priority"),
)
SLOW_READERS = Metric("tokenwire_slow_readers", "counter", "Streams cut off because the client stopped reading.")
RETAINED_STREAMS = Metric("tokenwire_retained_streams", "gauge", "Resumable streams that are kept.")
RETAINED_UNREAD = Metric("tokenwire_retained_streams_unread", "gauge", "Those of them that no call reads.")
RETAINED_BYTES = Metric("tokenwire_retained_bytes", "gauge", "Bytes that resumable streams take in the front.")
RELOADS = Metric(
    "tokenwire_reloads",
    "counter",
    "Files read anew: certificates, callers, token_keys; failed: the old value stays.",
    ("what", "result"),
)
SEQUENCES = Metric("tokenwire_sequences", "counter", "Sequences that have ended, by finish reason.", ("reason",))
PROMPT_TOKENS = Metric("tokenwire_prompt_tokens", "counter", "Prompt tokens of admitted requests.")
CACHED_TOKENS = Metric(
    "tokenwire_cached_prompt_tokens",
    "counter",
    "Prompt tokens of finished sequences that another sequence of the request computed.",
)
GENERATION_TOKENS = Metric("tokenwire_generation_tokens", "counter", "Tokens generated, over all sequences.")
DRAFT_TOKENS = Metric("tokenwire_draft_tokens", "counter", "Tokens proposed by drafts, of finished sequences.")
ACCEPTED_TOKENS = Metric("tokenwire_accepted_draft_tokens", "counter", "Those of them that were accepted.")
TIME_TO_FIRST_TOKEN = Metric(
    "tokenwire_time_to_first_token_seconds",
    "histogram",
    "From a call's arrival to the first token of each of its sequences.",
    bounds=_LATENCY,
)
INTER_TOKEN = Metric(
    "tokenwire_inter_token_seconds",
    "histogram",
    "Between two tokens of a sequence; tokens that come together share the time evenly.",
    bounds=_GAPS,
)
REQUEST_SECONDS = Metric(
    "tokenwire_request_seconds",
    "histogram",
    "From arrival to end of calls that ended OK and generated something.",
    bounds=_LATENCY,
)
QUEUE_SECONDS = Metric(
    "tokenwire_queue_seconds",
    "histogram",
    "From admission to the first forward pass, of each sequence.",
    bounds=_LATENCY,
)
PREFILL_SECONDS = Metric(
    "tokenwire_prefill_seconds",
    "histogram",
    "From the first forward pass to the first token, of each sequence.",
    bounds=_LATENCY,
)
DECODE_SECONDS = Metric(
    "tokenwire_decode_seconds", "histogram", "From the first token to the end, of each sequence.", bounds=_LATENCY
)
MODEL_INFO = Metric(
    "tokenwire_model_info",
    "gauge",
    "1, with what is served in its labels; absent until the model is loaded.",
    ("version", "model", "architecture", "quantization", "dtype", "forward_path"),
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in this file's order."""

METRIC_OF_NAME = {metric.name: metric for metric in METRICS}
