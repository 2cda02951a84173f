"""`tokenwire serve`."""

from importlib.util import find_spec
from typing import Annotated

from cyclopts import Parameter

from tokenwire.cli.options import ConfigFile
from tokenwire.config import ServiceConfig
from tokenwire.errors import ConfigurationError, ModelLoadError

_NEEDED = ("torch", "transformers")


def serve(*, config: ConfigFile = None, settings: Annotated[ServiceConfig, Parameter(name="*")]) -> int:
    """Load a model and serve it over gRPC until SIGTERM or Ctrl-C.

    Settings come from flags, then from the environment, then from a TOML file, then from the defaults.
    """
    if problems := settings.problems():
        raise ConfigurationError("; ".join(problems))
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ModelLoadError(f"serving needs {' and '.join(missing)}: pip install 'tokenwire[serve]'")
    # The client commands share this process image and must not pay for the server.
    from tokenwire.server import run

    return run(settings)
