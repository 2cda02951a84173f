"""The command line without a server: settings and their sources, help, errors and exit codes."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tokenwire import cli
from tokenwire.cli.options import CLIENT_SETTINGS, GenerationFlags
from tokenwire.cli.output import escape_controls
from tokenwire.client import GenerationOptions
from tokenwire.config import ServiceConfig
from tokenwire.errors import ConfigurationError, ModelLoadError

ROOT = Path(__file__).resolve().parents[2]


class FakeServerModule(types.ModuleType):
    """Stands in for tokenwire.server: notes the settings instead of serving."""

    def __init__(self) -> None:
        super().__init__("tokenwire.server")
        self.config: ServiceConfig | None = None
        self.error: Exception | None = None

    def run(self, config: ServiceConfig) -> int:
        if self.error is not None:
            raise self.error
        self.config = config
        return 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeServerModule:
    module = FakeServerModule()
    monkeypatch.setitem(sys.modules, "tokenwire.server", module)
    monkeypatch.chdir(tmp_path)
    return module


def served(server: FakeServerModule, *arguments: str) -> ServiceConfig:
    assert cli.main(["serve", *arguments]) == 0
    assert server.config is not None
    return server.config


def leaves(config: Any) -> dict[str, Any]:
    """Every setting by name; the names of all groups are distinct."""
    found: dict[str, Any] = {}
    for group in dataclasses.fields(config):
        for setting in dataclasses.fields(getattr(config, group.name)):
            assert setting.name not in found
            found[setting.name] = getattr(getattr(config, group.name), setting.name)
    return found


# Another valid value than the default for every setting, as it is written and as it is read.
OTHER: dict[str, tuple[str, Any]] = {
    "model": ("m2", "m2"),
    "model_id": ("name", "name"),
    "revision": ("main", "main"),
    "device": ("cuda:1", "cuda:1"),
    "device_map": ("", None),
    "dtype": ("float16", "float16"),
    "quantize": ("nf4", "nf4"),
    "double_quant": ("true", True),
    "compute_dtype": ("bfloat16", "bfloat16"),
    "skip_modules": ("lm_head", ("lm_head",)),
    "draft_model": ("m3", "m3"),
    "max_running": ("3", 3),
    "max_step_tokens": ("100", 100),
    "prefill_share": ("0.25", 0.25),
    "block_size": ("32", 32),
    "kv_cache_memory": ("64MiB", "64MiB"),
    "kv_cache_fraction": ("0.5", 0.5),
    "max_context": ("99", 99),
    "threads": ("2", 2),
    "num_assistant_tokens": ("7", 7),
    "forward_path": ("padded", "padded"),
    "forward_kernels": ("off", "off"),
    "hang_timeout": ("30", 30.0),
    "max_restarts": ("7", 7),
    "restart_delay": ("0.25", 0.25),
    "restart_reset": ("90", 90.0),
    "host": ("::1", "::1"),
    "port": ("0", 0),
    "reflection": ("false", False),
    "drain_grace": ("1.5", 1.5),
    "drain_delay": ("0.5", 0.5),
    "health_port": ("0", 0),
    "slow_reader_timeout": ("2", 2.0),
    "max_connection_age": ("60", 60.0),
    "max_connections": ("22", 22),
    "max_streams_per_connection": ("23", 23),
    "max_metadata_bytes": ("4096", 4096),
    "tls_certificate": ("a.crt", Path("a.crt")),
    "tls_key": ("a.key", Path("a.key")),
    "tls_client_ca": ("b.crt", Path("b.crt")),
    "callers": ("c.toml", Path("c.toml")),
    "jwt_keys": ("d.json", Path("d.json")),
    "jwt_issuer": ("us", "us"),
    "jwt_audience": ("them", "them"),
    "jwt_roles_claim": ("scope", "scope"),
    "max_queued": ("11", 11),
    "max_queued_tokens": ("24", 24),
    "queue_timeout": ("2.5", 2.5),
    "max_batch_size": ("12", 12),
    "max_stop_strings": ("13", 13),
    "max_stop_string_bytes": ("14", 14),
    "max_token_ids": ("15", 15),
    "max_logit_bias": ("16", 16),
    "max_token_sequences": ("9", 9),
    "max_return_sequences": ("3", 3),
    "max_beams": ("5", 5),
    "max_logprobs": ("0", 0),
    "max_messages": ("17", 17),
    "max_tools": ("18", 18),
    "max_documents": ("20", 20),
    "max_template_variables": ("21", 21),
    "max_message_bytes": ("19", 19),
    "resume_window": ("1.5", 1.5),
    "max_retained_stream_bytes": ("26", 26),
    "max_retained_bytes": ("27", 27),
    "metrics_port": ("9000", 9000),
    "metrics_host": ("::1", "::1"),
    "otlp_endpoint": ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
    "trace_ratio": ("0.25", 0.25),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
}
GIVEN = {name: (text, value) for name, (text, value) in OTHER.items() if text}


def toml_line(name: str) -> str:
    text, value = GIVEN[name]
    match value:
        case bool() | int() | float():
            return f"{name} = {text}\n"
        case tuple():
            return f"{name} = {list(value)}\n"
        case _:
            return f'{name} = "{text}"\n'


def flags(name: str) -> list[str]:
    text, value = GIVEN[name]
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", text]


def test_the_table_knows_every_setting(server: FakeServerModule) -> None:
    assert set(leaves(served(server, "--model", "x"))) == set(OTHER)


def test_every_setting_from_flags(server: FakeServerModule) -> None:
    config = served(server, *(argument for name in GIVEN for argument in flags(name)))
    assert leaves(config) == {name: value for name, (_, value) in OTHER.items()}


def test_every_setting_from_the_environment(server: FakeServerModule, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (text, _) in GIVEN.items():
        monkeypatch.setenv(f"TOKENWIRE_{name.upper()}", text)
    assert leaves(served(server)) == {name: value for name, (_, value) in OTHER.items()}


def test_every_setting_from_the_file(server: FakeServerModule) -> None:
    Path("tokenwire.toml").write_text("".join(map(toml_line, GIVEN)) + "[client]\naddress = 'elsewhere:1'\n")
    assert leaves(served(server)) == {name: value for name, (_, value) in OTHER.items()}


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ((), 64),
        (("file",), 1),
        (("environment",), 2),
        (("flag",), 3),
        (("file", "environment"), 2),
        (("file", "flag"), 3),
        (("environment", "flag"), 3),
        (("file", "environment", "flag"), 3),
    ],
)
def test_flags_win_over_environment_over_file_over_default(
    server: FakeServerModule, monkeypatch: pytest.MonkeyPatch, sources: tuple[str, ...], expected: int
) -> None:
    if "file" in sources:
        Path("tokenwire.toml").write_text("max_running = 1\n")
    if "environment" in sources:
        monkeypatch.setenv("TOKENWIRE_MAX_RUNNING", "2")
    arguments = ["--max-running", "3"] if "flag" in sources else []
    assert served(server, "--model", "x", *arguments).engine.max_running == expected


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_the_file_can_be_named(server: FakeServerModule, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    Path("tokenwire.toml").write_text("port = 1\n")
    Path("other.toml").write_text("port = 2\nmodel = 'y'\n")
    if by == "environment":
        monkeypatch.setenv("TOKENWIRE_CONFIG", "other.toml")
    config = served(server, *(["--config", "other.toml"] if by == "flag" else []))
    assert (config.server.port, config.model.model) == (2, "y")


WRONG: list[tuple[str, str]] = [
    ("max_runing = 3", 'tokenwire.toml: unknown setting "max_runing"; did you mean "max_running"?'),
    ("max-running = 3", 'tokenwire.toml: unknown setting "max-running"; did you mean "max_running"?'),
    ("config = 'x'", 'tokenwire.toml: unknown setting "config"'),
    ("[engine]\nmax_running = 3", 'tokenwire.toml: unknown setting "engine"'),
    ("device_map = {a = 'cpu'}", "tokenwire.toml: device_map must be a single value, got a table"),
    ("port = ", "tokenwire.toml is no TOML: Invalid value (at end of document)"),
    ("port = true", 'Invalid value for [port] from tokenwire.toml: unable to convert "True" into int.'),
    ("port = 1.5", "[port] must be a whole number, got 1.5"),
    ("port = 65536", 'Invalid value "65536" for [port] provided by tokenwire.toml. Must be <= 65535.'),
    ("quantize = 'q4'", 'Invalid value "q4" for [quantize] from tokenwire.toml. '),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_a_wrong_file_gives_one_line(
    server: FakeServerModule, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    Path("tokenwire.toml").write_text(content)
    assert cli.main(["serve", "--model", "x"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"tokenwire: {message}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_missing_file_gives_one_line(server: FakeServerModule, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--model", "x", "--config", "no.toml"]) == 2
    assert capsys.readouterr().err == "tokenwire: cannot read no.toml: No such file or directory\n"


OUT_OF_RANGE = [
    ("port", "-1"),
    ("port", "65536"),
    ("kv-cache-fraction", "0"),
    ("kv-cache-fraction", "1.01"),
    ("kv-cache-fraction", "nan"),
    ("kv-cache-memory", "0MiB"),
    ("kv-cache-memory", "lots"),
    ("drain-grace", "-1"),
    ("drain-grace", "inf"),
    ("drain-grace", "nan"),
    ("slow-reader-timeout", "0"),
    ("max-connection-age", "-1"),
    ("max-connections", "0"),
    ("max-streams-per-connection", "0"),
    ("max-metadata-bytes", "1023"),
    ("jwt-issuer", ""),
    ("jwt-audience", " "),
    ("max-queued-tokens", "0"),
    ("queue-timeout", "0"),
    ("device", "gpu"),
    ("device", "cuda:x"),
    ("model", ""),
    ("host", " "),
    *((name, "0") for name in ("max-running", "max-step-tokens", "block-size", "max-context", "threads", "max-queued")),
    *((name, "0") for name in ("max-batch-size", "max-messages", "max-message-bytes")),
    *((name, "-1") for name in ("max-stop-strings", "max-stop-string-bytes", "max-token-ids", "max-logit-bias")),
    *((name, "-1") for name in ("max-logprobs", "max-tools")),
    ("max-running", "2147483648"),
    ("max-logprobs", "101"),
    ("max-running", "many"),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_names_its_flag(
    server: FakeServerModule, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    assert cli.main(["serve", *([] if name == "model" else ["--model", "x"]), f"--{name}={value}"]) == 2
    shown = capsys.readouterr().err
    assert f"--{name}" in shown
    assert shown.count("\n") == 1
    assert server.config is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model to serve: pass --model PATH"),
        (["--port", "1"], "no model to serve: pass --model PATH"),
        (["--modle", "x"], "--modle is not a flag, and there is no model to serve: pass --model PATH"),
        (["--model", "x", "--max-runing", "1"], "Unknown option: --max-runing. Did you mean --max-running?"),
        (["--model", "x", "--double-quant"], "double_quant needs quantize nf4 or fp4, got none"),
        (["--model", "x", "--tls-key", "a"], "tls_key needs tls_certificate"),
        (["--model", "x", "--tls-certificate", "a"], "tls_certificate needs tls_key"),
        (["--model", "x", "--tls-client-ca", "a"], "tls_client_ca needs tls_certificate and tls_key"),
        (["--model", "x", "--jwt-keys", "a", "--jwt-issuer", "b"], "jwt_keys needs jwt_audience"),
        (["--model", "x", "--jwt-issuer", "b"], "jwt_issuer without jwt_keys would verify nothing"),
        (["--model", "x", "--port", "1.5"], "--port must be a whole number, got 1.5"),
        (
            ["--model", "x", "--drain-grace", "nan"],
            'Invalid value "nan" for --drain-grace. Must be a number, which nan is not.',
        ),
        (
            ["--model", "x", "--trace-ratio", "nan"],
            'Invalid value "nan" for --trace-ratio. Must be a number, which nan is not.',
        ),
    ],
)
def test_wrong_flags_give_one_line(
    server: FakeServerModule, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"tokenwire: {message}")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(ConfigurationError("port in use"), 2), (ModelLoadError("broken"), 1)])
def test_errors_of_the_server_become_exit_codes(
    server: FakeServerModule, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    server.error = error
    assert cli.main(["serve", "--model", "x"]) == code
    assert capsys.readouterr().err == f"tokenwire: {error}\n"


def test_serving_without_torch_says_what_to_install(
    server: FakeServerModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["tokenwire.cli.serve"], "find_spec", lambda name: None)
    assert cli.main(["serve", "--model", "x"]) == 1
    shown = capsys.readouterr().err
    assert shown == "tokenwire: serving needs torch and transformers: pip install 'tokenwire[serve]'\n"


HELP_GROUPS = ("Model", "Engine", "Server", "Limits", "Security", "Logging", "Settings")


def test_the_help_of_serve_is_complete(server: FakeServerModule, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    positions = [shown.index(f" {group} ─") for group in HELP_GROUPS]
    assert positions == sorted(positions)
    joined = "".join(shown.split())
    for name in OTHER:
        assert f"--{name.replace('_', '-')}" in joined
        assert f"TOKENWIRE_{name.upper()}" in joined


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_the_flags_of_requests_are_the_options_of_the_client() -> None:
    assert {field.name for field in dataclasses.fields(GenerationFlags)} <= set(GenerationOptions.__annotations__)
    assert GenerationFlags().options() == {}
    given = GenerationFlags(top_k=0, do_sample=False, stop_strings=("a",), logit_bias=("5=-1.5", "6=2"))
    assert given.options() == {
        "top_k": 0,
        "do_sample": False,
        "stop_strings": ("a",),
        "logit_bias": {5: -1.5, 6: 2.0},
    }


@pytest.mark.parametrize("value", ["5", "x=1", "5=x", "=1"])
def test_a_bias_needs_its_form(capsys: pytest.CaptureFixture[str], value: str) -> None:
    assert cli.main(["generate", "x", "--logit-bias", value]) == 2
    error = f'tokenwire: Invalid value for --logit-bias: "{value}" must be ID=BIAS, for example 42=-1.5.\n'
    assert capsys.readouterr().err == error


def test_a_template_variable_needs_its_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "x", "--template-var", "a=1", "--template-var", "b"]) == 2
    assert capsys.readouterr().err == (
        'tokenwire: Invalid value for --template-var: "b" must be NAME=VALUE, for example enable_thinking=false.\n'
    )


def test_an_unknown_client_setting_gives_one_line(server: FakeServerModule, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tokenwire.toml").write_text("[client]\naddres = 'x'\n")
    assert cli.main(["model"]) == 2
    assert capsys.readouterr().err == ('tokenwire: tokenwire.toml: unknown setting "addres"; did you mean "address"?\n')
    Path("tokenwire.toml").write_text("client = 3\n")
    assert cli.main(["model"]) == 2
    assert capsys.readouterr().err == "tokenwire: tokenwire.toml: client must be a table, [client]\n"


def test_client_settings_are_flags() -> None:
    arguments = cli.build_app()["chat"].assemble_argument_collection()
    assert {f"--{name.replace('_', '-')}" for name in CLIENT_SETTINGS} <= {each.name for each in arguments}


def test_the_command_line_imports_no_model_library() -> None:
    heavy = ("torch", "transformers", "bitsandbytes", "tokenwire.server", "tokenwire.engine", "tokenwire._native")
    code = f"import sys, tokenwire.cli; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


def test_the_configuration_page_is_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "generate_configuration_docs.py"), "--check"]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text\n\tzäh 日本 🙂", "plain text\n\tzäh 日本 🙂"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\rb\x08\x7f\x9b", "a\\rb\\x08\\x7f\\x9b"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\x00", "\\x00"),
    ],
)
def test_controls_are_escaped(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


def test_every_control_character_is_escaped() -> None:
    controls = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"}
    assert all(not set(escape_controls(control)) & controls for control in controls)
