"""Variables of the environment that look like settings and are none."""

import difflib
import os

from cyclopts import App, ArgumentCollection

from tokenwire.cli.options import CLIENT_SETTINGS, ENV_PREFIX
from tokenwire.errors import ConfigurationError

_OTHERS = frozenset({"CACHE", "CONFIG"})
"""Variables that are read, but are no settings of `serve`."""

_LIKENESS = 0.85
"""From here on (of 1) a name is taken for a misspelt one. Others with the prefix may be anybody's: Kubernetes sets
variables such as TOKENWIRE_SERVICE_HOST for a service of this name."""


def refuse_misspelt_variables(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A source of settings for cyclopts that gives none: raises ConfigurationError for a misspelt variable."""
    names = {name.removeprefix("--") for argument in arguments for name in argument.names if name.startswith("--")}
    known = {name.replace("-", "_").upper() for name in names}
    for variable in sorted(os.environ):
        name = variable.removeprefix(ENV_PREFIX)
        if name == variable or name in known or name in _OTHERS or name.lower() in CLIENT_SETTINGS:
            continue
        if close := difflib.get_close_matches(name.upper(), known, n=1, cutoff=_LIKENESS):
            raise ConfigurationError(f"{variable} is no setting; did you mean {ENV_PREFIX}{close[0]}?")
