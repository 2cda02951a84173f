"""`tokenwire keys`."""

import re
from typing import Annotated

from cyclopts import Parameter

from tokenwire.cli.output import stderr, stdout
from tokenwire.errors import ConfigurationError
from tokenwire.security.keys import hash_of, new_key

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def keys(name: Annotated[str, Parameter(help="Name of the caller: letters, digits, - and _.")], /) -> int:
    """Make an API key. The key goes to standard output; what the callers file of `serve` needs, to standard error.

    The key is not kept anywhere: the file holds its hash only.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"a caller's name must be 1 to 64 letters, digits, - and _, got {name!r}")
    key = new_key()
    stderr().line(f'[callers.{name}]\nkey_hashes = ["{hash_of(key)}"]')
    stdout().line(key)
    return 0
