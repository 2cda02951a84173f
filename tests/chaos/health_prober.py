"""``health_prober.py ADDRESS COUNT [anew]``: so many health checks, one after the other; prints their seconds as JSON.

All on one connection, or ``anew``, each on one of its own, whose making counts.

A process of its own: what it measures is the service, not the load that a test makes.
"""

import json
import sys
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if __name__ == "__main__":
    address, count, *anew = sys.argv[1:]
    seconds = []

    def check(channel: grpc.Channel) -> None:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING

    with grpc.insecure_channel(address) as kept:
        for _ in range(int(count)):
            began = time.perf_counter()
            if anew:
                with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as own:
                    check(own)
            else:
                check(kept)
            seconds.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps(seconds))
