"""`tokenwire chat`: one answer, or a conversation at the terminal."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

from cyclopts import Parameter

from tokenwire.cli.advice import explain
from tokenwire.cli.answer import show, show_stats
from tokenwire.cli.generate import text_or_stdin
from tokenwire.cli.options import ConfigFile, ConnectionFlags, GenerationFlags, ModelId, Stats
from tokenwire.cli.output import fail, stderr, stdout
from tokenwire.cli.template import TemplateFlags
from tokenwire.client import (
    Cancelled,
    ChatMessage,
    Client,
    ConversationOptions,
    GenerationOptions,
    Stream,
    TokenwireError,
)

_DEFAULT_CONNECTION = ConnectionFlags()
_DEFAULT_GENERATION = GenerationFlags()
_DEFAULT_TEMPLATE = TemplateFlags()

HELP = (
    "Ctrl-C stops an answer, Ctrl-D or /exit leaves, /reset forgets, /system TEXT sets the system message, /help says "
    "this."
)
_PROMPT = "> "


def chat(
    message: Annotated[
        str | None,
        Parameter(help="Answer this message and end. Default: a conversation, or standard input if it is no terminal."),
    ] = None,
    /,
    *,
    system: Annotated[str, Parameter(help="The system message.", show_default=False)] = "",
    stats: Stats = False,
    model: ModelId = "",
    config: ConfigFile = None,
    connection: ConnectionFlags = _DEFAULT_CONNECTION,
    generation: GenerationFlags = _DEFAULT_GENERATION,
    template: TemplateFlags = _DEFAULT_TEMPLATE,
) -> int:
    """Chat with the model: a conversation at the terminal, or the answer to one message.

    Ctrl-C stops an answer, Ctrl-D or /exit leaves, /reset forgets, /system TEXT sets the system message, /help says
    this.
    """
    interactive = message is None and sys.stdin.isatty()
    text = "" if interactive else text_or_stdin(message, "message")
    with connection.connect() as client:
        session = ChatSession(client, generation.options(), template.options(), model=model, system=system, stats=stats)
        if interactive:
            session.run()
        else:
            session.answer(text)
    return 0


class ChatSession:
    """A conversation: its messages, and how the model is asked to go on."""

    def __init__(
        self,
        client: Client,
        options: GenerationOptions,
        rendering: ConversationOptions,
        *,
        model: str,
        system: str,
        stats: bool,
    ) -> None:
        self._client = client
        self._served = client.model(model=model)
        self._options = options
        self._rendering = rendering
        if "max_new_tokens" not in options and "max_length" not in options:
            # transformers' 20 new tokens would cut nearly every answer of a chat; this one ends by itself or by Ctrl-C.
            limit = min(self._served.context_length, self._served.limits.max_sequence_tokens)
            self._options = GenerationOptions(**options, max_length=limit)
        self._model = model
        self._system = system
        self._stats = stats
        self._turns: list[ChatMessage] = []
        self._out = stdout()
        self._err = stderr()

    def _stream(self, text: str) -> Stream:
        head = [ChatMessage("system", self._system)] if self._system else []
        return self._client.chat_stream(
            [*head, *self._turns, ChatMessage("user", text)], model=self._model, **self._options, **self._rendering
        )

    def answer(self, text: str) -> None:
        """Show the answer to a message; both join the conversation when it is complete."""
        stream = self._stream(text)
        self._show(stream)
        self._turns += [ChatMessage("user", text), ChatMessage("assistant", stream.text_so_far)]

    def _show(self, stream: Stream) -> None:
        watch = show(stream, self._out, self._err)
        if self._stats:
            show_stats(stream, watch, self._served, self._err)

    def run(self) -> None:
        """Converse until the user leaves."""
        # input() edits lines and keeps a history once this module is loaded; some builds of Python lack it.
        with suppress(ImportError):
            import readline  # noqa: F401
        served = self._served
        self._err.line(f"{served.id} ({served.quantization} on {served.device}). {HELP}")
        while (line := self._read()) is not None:
            command, _, argument = line.strip().partition(" ")
            match command:
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    self._err.line(HELP)
                case "/reset":
                    self._turns.clear()
                    self._err.line("The conversation starts anew.")
                case "/system":
                    self._system = argument.strip()
                    self._err.line("System message set." if self._system else "System message removed.")
                case _ if command.startswith("/"):
                    self._err.line(f"Unknown command {command}. {HELP}")
                case _:
                    self._turn(line)

    def _read(self) -> str | None:
        """The next line, or None at its end."""
        while True:
            try:
                return input(_PROMPT)
            except EOFError:
                self._out.line()
                return None
            except KeyboardInterrupt:
                self._out.line()

    def _turn(self, text: str) -> None:
        stream = self._stream(text)
        try:
            with _stopped_by_ctrl_c(stream):
                self._show(stream)
        except Cancelled:
            if not stream.text_so_far:
                self._err.line("[stopped before the answer began; your message is forgotten]")
                return
            self._out.write(" ")
            self._err.line("[stopped]")
        except TokenwireError as error:
            self._out.end_line()
            fail(0, *explain(error))
            self._err.line("[your message is forgotten; ask again, or /reset]")
            return
        self._turns += [ChatMessage("user", text), ChatMessage("assistant", stream.text_so_far)]


@contextmanager
def _stopped_by_ctrl_c(stream: Stream) -> Iterator[None]:
    # A handler that cancels the call, instead of an exception wherever the main thread happens to be, cannot leave
    # gRPC or the conversation half-way through something.
    previous = signal.signal(signal.SIGINT, lambda _number, _frame: stream.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
