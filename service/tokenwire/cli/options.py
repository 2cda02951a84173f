"""The flags that the client commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.validators import Number

from tokenwire.cli.output import stderr
from tokenwire.client import DEFAULT_TARGET, Client, DeadlineExceeded, EarlyStopping, GenerationOptions
from tokenwire.errors import ConfigurationError

ENV_PREFIX = "TOKENWIRE_"

_CONNECTION = Group("Connection", sort_key=1)
_GENERATION = Group("Generation", sort_key=2)
_SETTINGS = Group("Settings", sort_key=9)

ConfigFile = Annotated[
    Path | None,
    Parameter(
        help="TOML file with settings. Default: ./tokenwire.toml where there is one.",
        group=_SETTINGS,
        env_var=f"{ENV_PREFIX}CONFIG",
        show_default=False,
        negative=(),
    ),
]
"""The parameter ``config``, which every command has: TomlFile reads it."""

ModelId = Annotated[
    str, Parameter(help="Model id that the server must serve. Default: whatever it serves.", show_default=False)
]
NegativePrompt = Annotated[
    str | None,
    Parameter(
        help="Text that --guidance-scale steers away from. Default: the prompt's last token.",
        group=_GENERATION,
        show_default=False,
    ),
]
Stats = Annotated[
    bool,
    Parameter(
        help="Print times, tokens per second, finish reason, quantization and device after an answer.", negative=()
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative=())]

_SECONDS = Number(gt=0, lte=86_400)


def refuse_fractions(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Last source of settings for cyclopts, which would round 1.5 to 2 where a whole number is asked for."""
    for argument in arguments:
        if int in (argument.hint, *get_args(argument.hint)):
            for token in argument.tokens:
                if "." in token.value:
                    raise ConfigurationError(
                        f"{token.keyword or argument.name} must be a whole number, got {token.value}"
                    )


def _connection(name: str, **extra: Any) -> Parameter:
    return Parameter(group=_CONNECTION, env_var=f"{ENV_PREFIX}{name.upper()}", negative=(), **extra)


def _is_readable(_type: Any, path: Path | None) -> None:
    if path is not None:
        try:
            path.read_bytes()
        except OSError as error:
            raise ValueError(f"Cannot be read: {error.strerror}.") from None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionFlags:
    """How a command reaches the server."""

    address: Annotated[str, _connection("address")] = DEFAULT_TARGET
    """Address of the server, host:port."""
    timeout: Annotated[float | None, _connection("timeout", validator=_SECONDS)] = None
    """Seconds that a call may take. Default: no limit."""
    wait: Annotated[float, _connection("wait", validator=Number(gte=0, lte=86_400))] = 0.0
    """Seconds to wait for a server that is still starting."""
    tls: Annotated[bool, _connection("tls")] = False
    """Encrypt, and trust the system's certificate authorities."""
    root_certificates: Annotated[Path | None, _connection("root_certificates", validator=_is_readable)] = None
    """PEM file of the certificate authorities to trust; implies --tls."""
    client_certificate: Annotated[Path | None, _connection("client_certificate", validator=_is_readable)] = None
    """PEM file of the certificate to show to the server; needs --client-key and implies --tls."""
    client_key: Annotated[Path | None, _connection("client_key", validator=_is_readable)] = None
    """PEM file of the private key of --client-certificate."""
    api_key: Annotated[str | None, _connection("api_key")] = field(default=None, repr=False)
    """API key or token. Better in the environment: other users of the machine can see flags."""

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """A client that is closed in the end. Waits, with a message, if that was asked for."""
        if (self.client_certificate is None) is not (self.client_key is None):
            raise ConfigurationError("--client-certificate and --client-key need each other")
        with Client(
            self.address,
            timeout=self.timeout,
            tls=self.tls,
            root_certificates=self.root_certificates,
            client_certificate=self.client_certificate,
            client_key=self.client_key,
            api_key=self.api_key,
        ) as client:
            if self.wait:
                self._wait(client)
            yield client

    def _wait(self, client: Client) -> None:
        # Says nothing where the server is up already.
        patience = min(0.5, self.wait)
        try:
            client.wait_until_ready(patience)
        except DeadlineExceeded:
            if patience == self.wait:
                raise
            stderr().line(f"waiting up to {self.wait:g} s for {self.address} to serve ...")
            client.wait_until_ready(self.wait - patience)


def _flag(**extra: Any) -> Parameter:
    return Parameter(group=_GENERATION, show_default=False, **extra)


def _is_bias(_type: Any, values: tuple[str, ...]) -> None:
    for value in values:
        _parse_bias(value)


def _parse_bias(text: str) -> tuple[int, float]:
    token, separator, bias = text.partition("=")
    try:
        if separator:
            return int(token), float(bias)
    except ValueError:
        pass
    raise ValueError(f'"{text}" must be ID=BIAS, for example 42=-1.5.')


_EARLY_STOPPING: dict[str, EarlyStopping] = {"false": False, "true": True, "never": "never"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationFlags:
    """How to generate; names and meanings are those of transformers' GenerationConfig. The server checks the ranges."""

    max_new_tokens: Annotated[int | None, _flag()] = None
    """Most tokens to generate. Default: the model's, or 20; in chat, as many as the context holds."""
    max_length: Annotated[int | None, _flag()] = None
    """Most tokens of prompt and answer together."""
    min_new_tokens: Annotated[int | None, _flag()] = None
    """Fewest tokens before an EOS token is allowed."""
    min_length: Annotated[int | None, _flag()] = None
    """Fewest tokens of prompt and answer together before an EOS token is allowed."""
    max_time: Annotated[float | None, _flag()] = None
    """Most seconds until the answer ends as it is."""
    do_sample: Annotated[bool | None, _flag()] = None
    """Draw from the distribution, or take the most likely token. Default: draw if a sampling flag is given."""
    temperature: Annotated[float | None, _flag()] = None
    """Divides the logits before sampling; above 0."""
    top_k: Annotated[int | None, _flag()] = None
    """Keep the k most likely tokens; 0 is off."""
    top_p: Annotated[float | None, _flag()] = None
    """Keep the most likely tokens up to this mass; above 0 to 1."""
    min_p: Annotated[float | None, _flag()] = None
    """Drop tokens less likely than this times the most likely one; 0 to 1."""
    typical_p: Annotated[float | None, _flag()] = None
    """Locally typical sampling up to this mass; above 0 to 1."""
    top_h: Annotated[float | None, _flag()] = None
    """Keep the most likely tokens up to this share of the entropy; above 0 to 1."""
    epsilon_cutoff: Annotated[float | None, _flag()] = None
    """Drop tokens less likely than this; 0 is off."""
    eta_cutoff: Annotated[float | None, _flag()] = None
    """Drop unlikely tokens by entropy; 0 is off."""
    seed: Annotated[int | None, _flag()] = None
    """Seed of the random draws. Default: drawn by the server."""
    stop_strings: Annotated[tuple[str, ...], _flag(negative=())] = ()
    """A string that ends the answer; may be repeated."""
    eos_token_id: Annotated[tuple[int, ...], _flag(negative=())] = ()
    """Id of a token that ends the answer; may be repeated. Default: the model's."""
    stop_token_ids: Annotated[tuple[int, ...], _flag(negative=())] = ()
    """Id of a further token that ends the answer; may be repeated."""
    include_stop_string: Annotated[bool | None, _flag()] = None
    """Keep the matched stop string in the text."""
    repetition_penalty: Annotated[float | None, _flag()] = None
    """Penalty on tokens seen in prompt or answer; 1 is off."""
    presence_penalty: Annotated[float | None, _flag()] = None
    """Subtracted once from tokens already generated; -2 to 2."""
    frequency_penalty: Annotated[float | None, _flag()] = None
    """Subtracted once per time a token was generated; -2 to 2."""
    logit_bias: Annotated[tuple[str, ...], _flag(negative=(), validator=_is_bias)] = ()
    """ID=BIAS, added to the logit of a token; may be repeated."""
    suppress_tokens: Annotated[tuple[int, ...], _flag(negative=())] = ()
    """Id of a token that is never generated; may be repeated."""
    no_repeat_ngram_size: Annotated[int | None, _flag()] = None
    """No n-gram of this many tokens occurs twice in prompt and answer; 0 is off."""
    guidance_scale: Annotated[float | None, _flag()] = None
    """Steer away from the negative prompt; 1 is off."""
    num_return_sequences: Annotated[int | None, _flag()] = None
    """Answers to give; above 1 with sampling or beams."""
    num_beams: Annotated[int | None, _flag()] = None
    """Beams of beam search; the answer then comes at once."""
    length_penalty: Annotated[float | None, _flag()] = None
    """Favour long beams (above 0) or short ones."""
    early_stopping: Annotated[Literal["false", "true", "never"] | None, _flag()] = None
    """When beam search ends."""
    prompt_lookup_num_tokens: Annotated[int | None, _flag()] = None
    """Propose so many tokens per step from the text so far; only faster."""
    num_assistant_tokens: Annotated[int | None, _flag()] = None
    """Tokens per step that the server's draft model proposes; only faster."""
    token_healing: Annotated[bool | None, _flag()] = None
    """Put the most likely token that begins with the prompt's last one in its place."""

    def options(self) -> GenerationOptions:
        """The flags that were given, as options of the client."""
        given: dict[str, Any] = {
            each.name: value for each in fields(self) if (value := getattr(self, each.name)) not in (None, ())
        }
        if self.logit_bias:
            given["logit_bias"] = dict(map(_parse_bias, self.logit_bias))
        if self.early_stopping is not None:
            given["early_stopping"] = _EARLY_STOPPING[self.early_stopping]
        return cast(GenerationOptions, given)


CLIENT_SETTINGS = frozenset(each.name for group in (ConnectionFlags, GenerationFlags) for each in fields(group))
"""Keys of the TOML file's ``[client]`` table."""
