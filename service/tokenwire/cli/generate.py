"""`tokenwire generate`."""

import sys
from typing import Annotated

from cyclopts import Parameter

from tokenwire.cli.answer import show, show_stats, show_whole
from tokenwire.cli.explanation import show_explanations
from tokenwire.cli.options import ConfigFile, ConnectionFlags, GenerationFlags, ModelId, NegativePrompt, Stats
from tokenwire.cli.output import stderr, stdout
from tokenwire.client import Generation, Stream
from tokenwire.errors import ConfigurationError

_DEFAULT_CONNECTION = ConnectionFlags()
_DEFAULT_GENERATION = GenerationFlags()


def text_or_stdin(text: str | None, what: str) -> str:
    """The text, or standard input without its last newline. Raises ConfigurationError where that is a terminal."""
    if text is not None:
        return text
    if sys.stdin.isatty():
        raise ConfigurationError(f"no {what}: give it as an argument or on standard input")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"standard input is not {error.encoding} text: {error.reason}") from None


def generate(
    prompt: Annotated[str | None, Parameter(help="The prompt. Default: standard input.")] = None,
    /,
    *,
    negative_prompt: NegativePrompt = None,
    explain: Annotated[
        bool,
        Parameter(
            help="Print, behind the answer, what each setting did to the distribution of each of its first 256 tokens.",
            negative=(),
        ),
    ] = False,
    stats: Stats = False,
    model: ModelId = "",
    config: ConfigFile = None,
    connection: ConnectionFlags = _DEFAULT_CONNECTION,
    generation: GenerationFlags = _DEFAULT_GENERATION,
) -> int:
    """Continue a prompt and print the text as it arrives; beams are printed when they are complete."""
    text = text_or_stdin(prompt, "prompt")
    options, asked = generation.options(), explain or None
    with connection.connect() as client:
        out, err = stdout(), stderr()
        answer: Stream | Generation
        if (generation.num_beams or 1) > 1:
            whole, watch = show_whole(
                lambda: client.generate(text, model=model, negative_prompt=negative_prompt, explain=asked, **options),
                out,
                err,
            )
            answer = whole
        else:
            answer = client.stream(text, model=model, negative_prompt=negative_prompt, explain=asked, **options)
            watch = show(answer, out, err)
            whole = answer.result()
        if explain:
            show_explanations(whole, out)
        if stats:
            show_stats(answer, watch, client.model(), err)
    return 0
