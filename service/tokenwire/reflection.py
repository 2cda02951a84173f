"""Server reflection v1 and v1alpha, for grpcurl and the like.

grpcio-reflection has v1alpha only. Version 1 has the same messages under another package name, so the same servicer
answers both, and the descriptors of v1 are made from those of v1alpha.
"""

from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"
_FILE = "grpc/reflection/v1/reflection.proto"


def add_reflection(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Answer reflection on ``server`` for ``services`` and for reflection itself."""
    _add_v1_descriptors(descriptor_pool.Default())
    versions = [f"{version}.ServerReflection" for version in (V1, V1ALPHA)]
    servicer = reflection.aio.ReflectionServicer([*services, *versions], pool=_Pool())  # type: ignore[attr-defined]
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in versions]
    )


class _Pool:
    """The default pool, which does not find methods by their full name; ``grpcurl describe`` asks for them."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        """The file that defines ``symbol``. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service_name, _, method = symbol.rpartition(".")
            service = self._pool.FindServiceByName(service_name)
            return service.methods_by_name[method].containing_service.file


def _add_v1_descriptors(pool: descriptor_pool.DescriptorPool) -> None:
    try:
        pool.FindFileByName(_FILE)
    except KeyError:
        pass
    else:
        return
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    alpha.name, alpha.package = _FILE, V1
    for message in alpha.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(V1ALPHA, V1)
    for service in alpha.service:
        for method in service.method:
            method.input_type = method.input_type.replace(V1ALPHA, V1)
            method.output_type = method.output_type.replace(V1ALPHA, V1)
    pool.AddSerializedFile(alpha.SerializeToString())
