"""The command line: ``tokenwire serve | chat | generate | tokenize | model | top | keys``.

Exit codes: 0 done; 1 the server or the model failed; 2 the command line, a setting or the request is wrong;
130 stopped with Ctrl-C; 141 the reader of the output went away. Every failure is one line on standard error.
"""

import os
import shlex
import signal
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, MissingArgumentError, ValidationError
from cyclopts.config import Env

import tokenwire
from tokenwire.cli.advice import explain
from tokenwire.cli.chat import chat
from tokenwire.cli.environment import refuse_misspelt_variables
from tokenwire.cli.generate import generate
from tokenwire.cli.inspect import model, tokenize
from tokenwire.cli.keys import keys
from tokenwire.cli.options import CLIENT_SETTINGS, ENV_PREFIX, refuse_fractions
from tokenwire.cli.output import fail
from tokenwire.cli.serve import serve
from tokenwire.cli.toml_file import TomlFile
from tokenwire.cli.top import top
from tokenwire.client import InvalidArgument, TokenwireError
from tokenwire.errors import ConfigurationError, ModelLoadError

OK, FAILED, WRONG = 0, 1, 2
_SIGNALLED = 128


def build_app() -> App:
    """The commands and where their settings come from: flags, then environment, then the TOML file."""
    app = App(
        name="tokenwire",
        help="Serve a Hugging Face causal language model over gRPC, and talk to such a server.",
        version=tokenwire.__version__,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    sources = [Env(ENV_PREFIX, command=False), TomlFile(), refuse_misspelt_variables, refuse_fractions]
    app.command(serve, config=sources)
    for command in (chat, generate, tokenize, model):
        # Flags of requests have no environment names: TOKENWIRE_MODEL is the path that `serve` loads.
        app.command(command, config=[TomlFile("client", CLIENT_SETTINGS), refuse_fractions])
    app.command(keys)
    app.command(top, config=[refuse_fractions])
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit code."""
    try:
        code = build_app()(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        return fail(WRONG, _usage_error(error))
    except ConfigurationError as error:
        return fail(WRONG, str(error))
    except ModelLoadError as error:
        return fail(FAILED, str(error))
    except InvalidArgument as error:
        return fail(WRONG, *explain(error))
    except TokenwireError as error:
        return fail(FAILED, *explain(error))
    except BrokenPipeError:
        # Python would flush into the closed pipe once more at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALLED + signal.SIGPIPE
    except KeyboardInterrupt:
        return _SIGNALLED + signal.SIGINT
    return code if isinstance(code, int) else OK


def _usage_error(error: CycloptsError) -> str:
    if (
        isinstance(error, MissingArgumentError)
        and error.argument is not None
        and error.argument.name in ("*", "--model")
    ):
        # cyclopts looks for what is missing before it looks at what is wrong; a mistyped flag is the likelier cause.
        unknown = f"{shlex.quote(error.unused_tokens[0])} is not a flag, and there is " if error.unused_tokens else ""
        return (
            f"{unknown}no model to serve: pass --model PATH (a checkpoint's folder, a GGUF file or a hub id), "
            f'set {ENV_PREFIX}MODEL, or write model = "PATH" into tokenwire.toml'
        )
    if isinstance(error, ValidationError) and error.argument is not None and error.argument.tokens:
        values, token = error.argument.value, error.argument.tokens[0]
        if isinstance(values, tuple):
            # cyclopts would print all values of the flag, as Python's tuple. The message names the wrong one.
            return f"Invalid value for {token.keyword or error.argument.name}: {error.exception_message}"
    # A message of cyclopts may have several lines, for example with a list of choices.
    return " ".join(str(error).split())
