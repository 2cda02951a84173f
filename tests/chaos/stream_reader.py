"""A client that can be killed or stopped: ``stream_reader.py ADDRESS PROMPT NUM_TOKENS`` reads one stream.

Writes a line to standard output when the first token has come.
"""

import sys

import grpc

from tokenwire.v1 import generation_pb2, generation_service_pb2, generation_service_pb2_grpc

if __name__ == "__main__":
    address, prompt, num_tokens = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        stub = generation_service_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        request = generation_service_pb2.GenerateRequest(
            prompt=generation_service_pb2.Prompt(text=prompt),
            generation_config=generation_pb2.GenerationConfig(max_new_tokens=int(num_tokens)),
        )
        for event in stub.GenerateStream(request):
            if event.HasField("delta"):
                sys.stdout.write("begun\n")
                sys.stdout.flush()
