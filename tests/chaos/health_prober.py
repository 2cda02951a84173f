"""``health_prober.py ADDRESS COUNT``: so many health checks, one after the other; prints their seconds as JSON.

A process of its own: what it measures is the service, not the load that a test makes.
"""

import json
import sys
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if __name__ == "__main__":
    address, count = sys.argv[1:]
    seconds = []
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        for _ in range(int(count)):
            began = time.perf_counter()
            status = stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status
            seconds.append(time.perf_counter() - began)
            assert status == health_pb2.HealthCheckResponse.SERVING
    sys.stdout.write(json.dumps(seconds))
