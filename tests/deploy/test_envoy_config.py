"""Envoy's configuration and the callers' service configs: valid, and safe in what they send again."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment_settings import DEPLOY

from tokenwire.client.channel import ChannelSettings
from tokenwire.config import LimitsConfig, ServerConfig
from tokenwire.server import GENERATION
from tokenwire.v1 import generation_service_pb2, model_service_pb2, tokenizer_service_pb2

PATH = DEPLOY / "envoy" / "envoy.yaml"
CONFIG: Any = yaml.safe_load(PATH.read_text())
MANAGER = CONFIG["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
ROUTES = MANAGER["route_config"]["virtual_hosts"][0]["routes"]
CLUSTER = CONFIG["static_resources"]["clusters"][0]
SERVICES = [
    *generation_service_pb2.DESCRIPTOR.services_by_name.values(),
    *tokenizer_service_pb2.DESCRIPTOR.services_by_name.values(),
    *model_service_pb2.DESCRIPTOR.services_by_name.values(),
]
METHODS = [(service.full_name, method) for service in SERVICES for method in service.methods]
SAFE = {"connect-failure", "refused-stream", "reset-before-request"}
"""What Envoy calls a failure before a replica has seen the request."""


def route_of(path: str) -> Any:
    for route in ROUTES:
        match = route["match"]
        if "prefix" in match or re.fullmatch(match["safe_regex"]["regex"], path):
            return route["route"]
    raise AssertionError(path)


def test_envoy_takes_it_without_a_warning() -> None:
    envoy = Path(sys.executable).with_name("envoy")
    flags = ["--mode", "validate", "--disable-hot-restart", "--log-level", "warning"]
    done = subprocess.run([envoy, "-c", PATH, *flags], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "OK" in done.stdout


@pytest.mark.parametrize(("service", "method"), [pytest.param(*each, id=each[1].name) for each in METHODS])
def test_only_a_unary_call_is_sent_again_once_a_replica_had_it(service: str, method: Any) -> None:
    route = route_of(f"/{service}/{method.name}")
    retried = set(route["retry_policy"]["retry_on"].split(","))
    streams = method.server_streaming or method.client_streaming
    assert retried == (SAFE if streams else SAFE | {"unavailable"})
    assert route["timeout"] == "0s"


def test_health_and_reflection_are_routed() -> None:
    for path in ("/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
        assert set(route_of(path)["retry_policy"]["retry_on"].split(",")) == SAFE


def test_limits_are_in_step_with_the_service() -> None:
    server = ServerConfig()
    http2 = CLUSTER["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"][
        "explicit_http_config"
    ]["http2_protocol_options"]
    assert http2["max_concurrent_streams"] == server.max_streams_per_connection
    # The service sends a client away that pings more often than every 5 s.
    assert float(http2["connection_keepalive"]["interval"].removesuffix("s")) > 5
    assert CLUSTER["health_checks"][0]["grpc_health_check"]["service_name"] == GENERATION


def test_the_admin_interface_is_on_loopback_alone() -> None:
    assert CONFIG["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


def shipped(name: str) -> Any:
    return json.loads((DEPLOY / name).read_text())


@pytest.mark.parametrize("name", ["service_config.json", "service_config_direct.json"])
def test_a_service_config_tries_as_often_as_the_python_client(name: str) -> None:
    (config,) = shipped(name)["methodConfig"]
    assert config["retryPolicy"]["maxAttempts"] == 1 + ChannelSettings().retries
    assert config == shipped("service_config.json")["methodConfig"][0]


def test_a_service_config_retries_unary_calls_on_unavailable_and_nothing_else() -> None:
    (config,) = shipped("service_config.json")["methodConfig"]
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    for service, method in METHODS:
        named = {"service": service} in config["name"] or {"service": service, "method": method.name} in config["name"]
        assert named is not (method.server_streaming or method.client_streaming), method.name


def test_callers_without_a_proxy_watch_each_replica() -> None:
    config = shipped("service_config_direct.json")
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["healthCheckConfig"] == {"serviceName": GENERATION}


def test_no_stream_is_kept_where_calls_go_to_any_replica() -> None:
    """Whoever keeps streams must bring ResumeStream and CancelStream to the replica that has the stream."""
    assert CLUSTER["lb_policy"] == "LEAST_REQUEST"
    assert LimitsConfig().resume_window == 0
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert "RESUME_WINDOW" not in path.read_text().upper().replace("-", "_"), path
