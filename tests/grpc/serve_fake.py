"""`tokenwire serve` over a fake engine, for tests that need a process of its own: ``serve_fake.py JSON``.

Keys of the object: ``port``, ``mode`` (ready, loading, broken), ``drain_grace``, ``log_format``, ``callers``,
``metrics_port``.
"""

import asyncio
import json
import sys
from pathlib import Path

from fakes import FakeEngine, FakeStream

from tokenwire.config import LogConfig, ModelConfig, SecurityConfig, ServerConfig, ServiceConfig, TelemetryConfig
from tokenwire.server import run


def script(stream: FakeStream) -> None:
    """A prompt "hold" is begun and never answered, "crash" fails, the rest is answered with itself."""
    text = bytes(stream.prompt_ids).decode()
    if text == "hold":
        stream.push("a", [97])
    elif text == "crash":
        stream.fail(KeyError("internal"))
    else:
        stream.answer(text)


def main() -> int:
    options = json.loads(sys.argv[1])
    mode = options.get("mode", "ready")
    config = ServiceConfig(
        model=ModelConfig(model="unused"),
        server=ServerConfig(
            host=options.get("host", "127.0.0.1"),
            port=options.get("port", 0),
            drain_grace=options.get("drain_grace", 5.0),
        ),
        security=SecurityConfig(callers=Path(options["callers"]) if "callers" in options else None),
        telemetry=TelemetryConfig(metrics_port=options.get("metrics_port")),
        log=LogConfig(log_format=options.get("log_format", "json")),
    )

    def engine(_: ServiceConfig) -> FakeEngine:
        return FakeEngine(
            script=script,
            load=asyncio.Event() if mode == "loading" else None,
            load_error="no config.json in /models/none" if mode == "broken" else None,
        )

    return run(config, engine)


if __name__ == "__main__":
    sys.exit(main())
