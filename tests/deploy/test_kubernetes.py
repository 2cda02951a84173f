"""The Kubernetes manifests: valid by the published schemas, and in step with the service and with Envoy."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment_settings import DEPLOY, unknown_settings

from tokenwire.config import ServerConfig
from tokenwire.health import LIVENESS
from tokenwire.server import CLOSING_GRACE_S, GENERATION

KUBERNETES_VERSIONS = ("1.34", "1.37")
"""The oldest whose preStop can sleep without a feature gate, and the newest that the schemas know."""
FOLDERS = (DEPLOY / "kubernetes", DEPLOY / "envoy")


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every document that is for Kubernetes itself: not kustomize's own, no patch, not Envoy's configuration."""
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*.yaml")):
            if path.name in ("kustomization.yaml", "envoy.yaml") or path.relative_to(DEPLOY) in PATCHES:
                continue
            for document in yaml.safe_load_all(path.read_text()):
                yield path.relative_to(DEPLOY), document


PATCHES = {Path("kubernetes/tls/deployment.yaml"), Path("kubernetes/cuda/deployment.yaml")}


def load(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def pod_of(path: str) -> Any:
    return load(path)["spec"]["template"]["spec"]


POD = pod_of("kubernetes/deployment.yaml")
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {item["name"]: item.get("value") for item in CONTAINER["env"]}
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(("path", "document"), [pytest.param(*each, id=str(each[0])) for each in manifests()])
def test_a_manifest_is_valid(path: Path, document: dict[str, Any], version: str) -> None:
    with warnings.catch_warnings():
        # The validator's own, of its resources.
        warnings.simplefilter("ignore")
        import kubernetes_validate

        assert kubernetes_validate.validate(document, version, strict=True) == version


def test_a_field_that_is_not_kubernetes_is_found() -> None:
    """So that the test above can fail."""
    import kubernetes_validate

    document = load("kubernetes/deployment.yaml")
    document["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(document, KUBERNETES_VERSIONS[-1], strict=True)


def test_every_file_is_in_a_kustomization() -> None:
    named = set()
    for folder in FOLDERS:
        for path in folder.rglob("kustomization.yaml"):
            kustomization = yaml.safe_load(path.read_text())
            names = [
                *kustomization.get("resources", ()),
                *(patch["path"] for patch in kustomization.get("patches", ())),
                *(name for each in kustomization.get("configMapGenerator", ()) for name in each["files"]),
            ]
            for name in names:
                assert (path.parent / name).exists(), (path, name)
                named.add((path.parent / name).resolve())
    files = {path for folder in FOLDERS for path in folder.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert files | {DEPLOY / "envoy"} == named


@pytest.mark.parametrize("path", ["kubernetes/deployment.yaml", "envoy/deployment.yaml"])
def test_a_pod_is_as_the_restricted_policy_asks_and_cannot_write_to_its_root(path: str) -> None:
    pod = pod_of(path)
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in pod["containers"]:
        own = container["securityContext"]
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_what_may_be_written_to_is_a_volume_and_what_is_secret_is_a_folder() -> None:
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    for path, mount in mounts.items():
        assert ("emptyDir" in volumes[mount["name"]]) is (not mount.get("readOnly", False)), path
        # Kubernetes does not renew files that are mounted one by one.
        assert "subPath" not in mount
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {"/cache", "/tmp"}
    assert ENVIRONMENT["TOKENWIRE_MODEL"] in mounts
    assert "secret" in volumes[mounts[str(Path(str(ENVIRONMENT["TOKENWIRE_CALLERS"])).parent)]["name"]]


def test_every_setting_is_one() -> None:
    names = set(ENVIRONMENT)
    for path in PATCHES:
        (container,) = pod_of(str(path))["containers"]
        names |= {item["name"] for item in container["env"]}
    assert not unknown_settings(names)
    # Of a Service named tokenwire Kubernetes would make TOKENWIRE_PORT=tcp://10.0.0.1:50051.
    assert POD["enableServiceLinks"] is False


def test_probes_ask_the_health_port_for_what_the_service_knows() -> None:
    startup, readiness, liveness = (CONTAINER[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
    for probe in (startup, readiness, liveness):
        assert probe["grpc"]["port"] == PORTS["health"] == int(str(ENVIRONMENT["TOKENWIRE_HEALTH_PORT"]))
    assert startup["grpc"]["service"] == readiness["grpc"]["service"] == GENERATION
    # What loads, restarts or drains is not killed for it; what hangs is, and it cannot be drained.
    assert liveness["grpc"]["service"] == LIVENESS
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1200
    assert load("kubernetes/deployment.yaml")["spec"]["progressDeadlineSeconds"] > 1200
    assert liveness["terminationGracePeriodSeconds"] < POD["terminationGracePeriodSeconds"]


def test_ports_are_those_of_the_settings() -> None:
    for name in ("", "HEALTH_", "METRICS_"):
        port = PORTS[{"": "grpc", "HEALTH_": "health", "METRICS_": "metrics"}[name]]
        assert int(str(ENVIRONMENT[f"TOKENWIRE_{name}PORT"])) == port
    annotations = load("kubernetes/deployment.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert int(annotations["prometheus.io/port"]) == PORTS["metrics"]
    service = load("kubernetes/service.yaml")
    assert service["spec"]["clusterIP"] == "None"
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(PORTS)


def test_there_is_time_to_drain() -> None:
    delay_s, grace_s = (float(str(ENVIRONMENT[f"TOKENWIRE_DRAIN_{name}"])) for name in ("DELAY", "GRACE"))
    pre_stop_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] >= pre_stop_s + delay_s + grace_s + CLOSING_GRACE_S + 10
    assert grace_s >= ServerConfig().drain_grace
    (check,) = load("envoy/envoy.yaml")["static_resources"]["clusters"][0]["health_checks"]
    interval_s, jitter_s, timeout_s = (seconds(check[name]) for name in ("interval", "interval_jitter", "timeout"))
    noticed_s = check["unhealthy_threshold"] * (interval_s + jitter_s)
    assert delay_s >= noticed_s + timeout_s
    envoy = pod_of("envoy/deployment.yaml")
    (sleep_s,) = re.findall(r"sleep (\d+)", envoy["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert envoy["terminationGracePeriodSeconds"] > int(sleep_s) >= grace_s


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_envoy_finds_the_replicas_and_its_own_version_is_the_one_that_is_tested() -> None:
    cluster = load("envoy/envoy.yaml")["static_resources"]["clusters"][0]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    service = load("kubernetes/service.yaml")
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address == {"address": service["metadata"]["name"], "port_value": PORTS["grpc"]}
    version = subprocess.run(
        [Path(sys.executable).with_name("envoy"), "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    (container,) = pod_of("envoy/deployment.yaml")["containers"]
    assert f"/{container['image'].rpartition(':v')[2]}/" in version


def test_only_names_and_traces_leave_the_pods() -> None:
    spec = load("kubernetes/network-policy.yaml")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    ports = {(port["protocol"], port["port"]) for rule in spec["egress"] for port in rule["ports"]}
    assert ports == {("UDP", 53), ("TCP", 53), ("TCP", 4317)}
    assert all(rule["to"] for rule in spec["egress"])
    assert all(rule["from"] for rule in spec["ingress"])


def test_selectors_select_the_pods() -> None:
    labels = load("kubernetes/deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    for path in ("kubernetes/disruption-budget.yaml", "kubernetes/network-policy.yaml", "kubernetes/service.yaml"):
        spec = load(path)["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert selector.get("matchLabels", selector) == labels, path
    assert json.dumps(load("kubernetes/autoscaling/autoscaler.yaml")["spec"]["scaleTargetRef"]["name"]) == '"tokenwire"'
