"""Replicas of the service on ports that stay theirs over restarts, and Envoy in front of them as it is shipped."""

import json
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import yaml
from chaos_service import PATIENCE_S, Front, until

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
ENVOY_CONFIG = DEPLOY / "envoy" / "envoy.yaml"
ENVOY = Path(sys.executable).with_name("envoy")

DRAIN_DELAY_S = 5.0
"""Of `deploy/kubernetes/deployment.yaml`."""


class Replica:
    """A front that is started again on the same port."""

    def __init__(self, folder: Path, options: dict[str, Any] | None = None, **settings: Any) -> None:
        folder.mkdir()
        self.folder = folder
        self._options = options
        self._settings = settings
        # A socket that is bound and never listens keeps the system from giving the port to anyone while the replica
        # is down; it is no obstacle to one that listens with SO_REUSEADDR.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self.front = self._launch()

    def _launch(self) -> Front:
        return Front(self.folder, self._options, port=self.port, **self._settings)

    def until_ready(self) -> None:
        self.front.until_logged("ready")

    def start_again(self) -> None:
        """Start anew, once the last one has ended."""
        self.front = self._launch()
        self.until_ready()

    def close(self) -> None:
        self.front.close()
        self._reserved.close()


class Envoy:
    """Envoy with the shipped configuration; only addresses and ports are other ones."""

    def __init__(self, folder: Path, replicas: list[Replica]) -> None:
        config = yaml.safe_load(ENVOY_CONFIG.read_text())
        resources = config["static_resources"]
        for address in (config["admin"]["address"], resources["listeners"][0]["address"]):
            address["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
        resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": replica.port}}}}
            for replica in replicas
        ]
        self._replicas = replicas
        self._admin = folder / "admin"
        self._log = folder / "envoy.log"
        path = folder / "envoy.yaml"
        path.write_text(yaml.safe_dump(config))
        flags = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                [ENVOY, "-c", str(path), "--admin-address-path", str(self._admin), *flags], stdout=log, stderr=log
            )

    async def until_healthy(self, count: int) -> None:
        """Wait until it gives calls to so many replicas, and knows of all others that they are not well."""
        await until(lambda: self._num_healthy() == count)

    @property
    def address(self) -> str:
        """Where callers connect, once it is up."""
        (listener,) = self._get("listeners?format=json")["listener_statuses"]
        return "127.0.0.1:{port_value}".format(**listener["local_address"]["socket_address"])

    @property
    def admin_address(self) -> str:
        """Of its admin interface, once it is up."""
        return self._admin.read_text()

    def _num_healthy(self) -> int:
        if self.process.poll() is not None:
            raise AssertionError(f"Envoy ended: {self._log.read_text()}")
        if not self._admin.exists() or not self.admin_address:
            return 0
        (replicas,) = self._get("clusters?format=json")["cluster_statuses"]
        hosts = [each["health_status"] for each in replicas.get("host_statuses", ())]
        if len(hosts) != len(self._replicas):
            return 0
        flags = ("failed_active_health_check", "pending_active_hc", "failed_outlier_check")
        return sum(not any(host.get(flag) for flag in flags) for host in hosts)

    def _get(self, path: str) -> Any:
        # Without the environment's proxy, which knows nothing of this machine's loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.admin_address}/{path}", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
