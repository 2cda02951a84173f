"""Reflection v1 and v1alpha: the same answers under both names, and enough to build a call from."""

from typing import Any

import grpc
import pytest
from fakes import FakeEngine
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from harness import Service, service_config

SERVICES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "tokenwire.v1.GenerationService",
    "tokenwire.v1.ModelService",
    "tokenwire.v1.TokenizerService",
}


class Reflection:
    def __init__(self, service: Service, version: str) -> None:
        stream: Any = service.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        self.call = stream()

    async def ask(self, **question: Any) -> reflection_pb2.ServerReflectionResponse:
        await self.call.write(reflection_pb2.ServerReflectionRequest(**question))
        return await self.call.read()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_lists_and_describes_every_service(service: Service, version: str) -> None:
    reflection = Reflection(service, version)
    listed = await reflection.ask(list_services="")
    assert {item.name for item in listed.list_services_response.service} == SERVICES
    pool = descriptor_pool.DescriptorPool()
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    for name in SERVICES:
        answer = await reflection.ask(file_containing_symbol=name)
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            files[file.name] = file

    def add(name: str) -> None:
        file = files.pop(name, None)
        if file is not None:
            for dependency in file.dependency:
                add(dependency)
            pool.Add(file)

    for name in list(files):
        add(name)
    for name in SERVICES:
        assert pool.FindServiceByName(name).methods
    info = pool.FindServiceByName(f"grpc.reflection.{version}.ServerReflection").methods_by_name["ServerReflectionInfo"]
    assert info.input_type.full_name == f"grpc.reflection.{version}.ServerReflectionRequest"
    method = await reflection.ask(file_containing_symbol="tokenwire.v1.GenerationService.Chat")
    assert method.file_descriptor_response.file_descriptor_proto
    for name in ("nobody.Knows", "tokenwire.v1.GenerationService.Dream", "", "x" * 1000):
        unknown = await reflection.ask(file_containing_symbol=name)
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    await reflection.call.done_writing()


async def test_can_be_turned_off(start: Any) -> None:
    service = await start(FakeEngine(), service_config(reflection=False))
    # Nothing is written: a client that comes too late with its message says INTERNAL, whatever the server said.
    assert await Reflection(service, "v1").call.code() is grpc.StatusCode.UNIMPLEMENTED
