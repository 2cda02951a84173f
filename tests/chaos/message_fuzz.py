"""Messages that no honest client sends: random valid ones of any type, and bytes that were damaged on the wire."""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tokenwire.v1 import generation_service_pb2, model_service_pb2, tokenizer_service_pb2

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)
"""Wire types."""

TEXTS = (
    *("", "a", "Once upon a time", "user", "system", "assistant", "tool", "default", "END", "x" * 300),
    *("<|im_start|>", "<|im_end|>", "ünïcode 漢字 🙂", "\0", "\n\r\t", "{}", '{"a": [1, {"b": null}]}', "{{ 7 * 7 }}"),
    *('{"a": ' * 40 + "1" + "}" * 40, "[" * 3000, "%s%n", "../../etc/passwd", "role", "content", "\u202e\ufeff"),
)
WHOLE_NUMBERS = (0, 0, 1, 1, 2, 3, 4, 5, 7, 16, 64, 255, 511, 512, -1, -2, 2**31 - 1, -(2**31))
LONG_NUMBERS = (*WHOLE_NUMBERS, 2**63 - 1, -(2**63))
NUMBERS = (*(0.0, 0.1, 0.5, 0.9, 1.0, 1.0, 1.5, 2.0, -1.0, 1e-30, 1e30), *(math.nan, math.inf, -math.inf, -0.0))

MODEST: dict[str, tuple[Any, ...]] = {
    "max_new_tokens": (0, 1, 2, 3, 8),
    "max_length": (1, 5, 20),
    "max_time": (0.01, 1.0, 0.0),
    "model": ("", "", "", "tiny", "other"),
    "request_id": ("mine", "mine", "yours", "x" * 128, "other", ""),
    "role": ("user", "user", "assistant", "system", "tool", "nobody"),
    "arguments_json": ("", "{}", TEXTS[13], TEXTS[15], TEXTS[16]),
    "parameters_json": ("", "{}", TEXTS[13], TEXTS[15], TEXTS[16]),
}
"""Values of fields that decide how much is computed, or whether anything is."""


class Method(NamedTuple):
    """One RPC, and the type of its request."""

    path: str
    request: Descriptor


def methods() -> list[Method]:
    """Every RPC of the service."""
    files = (generation_service_pb2, tokenizer_service_pb2, model_service_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [
        Method(f"/{service.full_name}/{method.name}", method.input_type)
        for service in services
        for method in service.methods
    ]


# ---- valid messages ----------------------------------------------------------------------------------------


def random_message(descriptor: Descriptor, rng: random.Random, *, density: float | None = None) -> Message:
    """A message with some of its fields, any value being one of its type; ``density``: how many fields, 0 to 1."""
    message: Message = message_factory.GetMessageClass(descriptor)()
    share = rng.choice((0.0, 0.02, 0.05, 0.1, 0.3, 0.8)) if density is None else density
    for field in descriptor.fields:
        # Without these nothing is computed, and their rules hide all others.
        is_needed = field.name in ("prompt", "prompts", "conversation", "messages", "content", "role", "text")
        if rng.random() < (0.9 if is_needed else share):
            _fill(message, field, rng, share)
    return message


def _fill(message: Any, field: FieldDescriptor, rng: random.Random, share: float) -> None:
    if not field.is_repeated:
        if field.message_type is not None:
            getattr(message, field.name).CopyFrom(random_message(field.message_type, rng, density=share))
        else:
            setattr(message, field.name, _value(field, rng))
        return
    count = rng.choice((1, 1, 2, 3, 6))
    values = getattr(message, field.name)
    if field.message_type is None:
        values.extend(_value(field, rng) for _ in range(count))
    elif field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        for _ in range(count):
            if value.message_type is None:
                values[_value(key, rng)] = _value(value, rng)
            else:
                values[_value(key, rng)].CopyFrom(random_message(value.message_type, rng, density=0.5))
    else:
        values.extend(random_message(field.message_type, rng, density=share) for _ in range(count))


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.name in MODEST:
        return rng.choice(MODEST[field.name])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.randbytes(rng.randrange(20))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(TEXTS[:8] if rng.random() < 0.7 else TEXTS)
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice(WHOLE_NUMBERS[:13] if rng.random() < 0.8 else WHOLE_NUMBERS)
        case FieldDescriptor.CPPTYPE_INT64:
            return rng.choice(LONG_NUMBERS)
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(NUMBERS[:8] if rng.random() < 0.8 else NUMBERS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case _:
            # An open enum also takes numbers that it does not know.
            return rng.choice((0, 1, 2, 3, 99, -1))


# ---- damage ------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One field on the wire, by its places in the message."""

    start: int
    """Of its tag."""
    length: int
    """Where its length begins; as ``value`` for other wire types."""
    value: int
    end: int
    wire_type: int


def varint(number: int) -> bytes:
    """``number``, from 0 on, as it is written on the wire."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def fields_of(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of a message, as far as they can be read; those inside of others (or of texts) behind theirs."""
    end = len(data) if end is None else end
    at = start
    while at < end:
        begin = at
        key, at = _read_varint(data, at)
        length = at
        match key & 7:
            case 0:
                _, at = _read_varint(data, at)
                value = length
            case 1:
                value, at = at, at + 8
            case 5:
                value, at = at, at + 4
            case 2:
                size, value = _read_varint(data, at)
                at = value + size
            case _:
                return
        if at > end or key >> 3 == 0:
            return
        yield Field(begin, length, value, at, key & 7)
        if key & 7 == LENGTH:
            yield from fields_of(data, value, at)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    return number, at


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _put_bytes(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.randint(1, 8)) + data[place + rng.choice((0, 1, 4)) :]


def _cut_off(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _leave_out(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.randint(1, 8) :]


def _lie_about_a_length(data: bytes, rng: random.Random) -> bytes:
    fields = [field for field in fields_of(data) if field.wire_type == LENGTH]
    if not fields:
        return data + tag(1, LENGTH) + varint(2**31)
    field = rng.choice(fields)
    true = field.end - field.value
    lie = rng.choice((0, max(true - 1, 0), true + 1, 2 * true + 3, 2**31 - 1, 2**32, 2**63))
    return data[: field.length] + varint(lie) + data[field.value :]


def _repeat_a_field(data: bytes, rng: random.Random) -> bytes:
    fields = list(fields_of(data))
    if not fields:
        return data + data
    field = rng.choice(fields)
    piece = data[field.start : field.end]
    count = rng.choice((1, 2, 10, 2_000))
    if len(piece) > 200:
        count = min(count, 10)
    if rng.random() < 0.5:
        return data + piece * count
    return data[: field.end] + piece * count + data[field.end :]


def _change_a_number(data: bytes, rng: random.Random) -> bytes:
    fields = [field for field in fields_of(data) if field.wire_type == VARINT]
    if not fields:
        return data + tag(rng.randint(1, 80), VARINT) + varint(2**64 - 1)
    field = rng.choice(fields)
    return data[: field.value] + varint(rng.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1))) + data[field.end :]


def _change_a_wire_type(data: bytes, rng: random.Random) -> bytes:
    fields = list(fields_of(data))
    if not fields:
        return bytes([rng.randrange(256)])
    place = rng.choice(fields).start
    return data[:place] + bytes([data[place] & 0xF8 | rng.randrange(8)]) + data[place + 1 :]


def _add_an_unknown_field(data: bytes, rng: random.Random) -> bytes:
    number = rng.choice((19, 99, 1000, 2**29 - 1, 0))
    added = rng.choice(
        (
            tag(number, VARINT) + varint(rng.getrandbits(63)),
            tag(number, FIXED64) + rng.randbytes(8),
            tag(number, FIXED32) + rng.randbytes(4),
            tag(number, LENGTH) + varint(40) + rng.randbytes(40),
        )
    )
    return added + data if rng.random() < 0.5 else data + added


def _nest(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((10, 99, 101, 5_000))
    if rng.random() < 0.5:
        return data + tag(1000, GROUP) * depth + tag(1000, END_GROUP) * depth
    inner = b""
    number = rng.choice((1, 2, 3, 5, 34, 1000))
    for _ in range(min(depth, 500)):
        inner = tag(number, LENGTH) + varint(len(inner)) + inner
    return data + inner


def _count_hugely(data: bytes, rng: random.Random) -> bytes:
    number = rng.randint(1, 20)
    values = varint(rng.choice((0, 5, 2**31))) * rng.choice((1_000, 10_000))
    packed = tag(number, LENGTH) + varint(len(values)) + values
    inside = tag(rng.choice((2, 3, 11, 13, 54)), LENGTH) + varint(len(packed)) + packed
    return data + rng.choice((packed, inside, (tag(number, LENGTH) + b"\0") * 5_000))


def _break_a_text(data: bytes, rng: random.Random) -> bytes:
    fields = [field for field in fields_of(data) if field.wire_type == LENGTH and field.end > field.value]
    if not fields:
        return data + tag(1, LENGTH) + b"\x02\xc3\x28"
    field = rng.choice(fields)
    place = rng.randrange(field.value, field.end)
    return data[:place] + bytes([rng.choice((0xFF, 0xC0, 0x80, 0xED))]) + data[place + 1 :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip_bits, _put_bytes, _cut_off, _leave_out, _lie_about_a_length, _repeat_a_field, _change_a_number),
    *(_change_a_wire_type, _add_an_unknown_field, _nest, _count_hugely, _break_a_text),
)
_WEIGHTS = (6, 6, 4, 4, 4, 4, 6, 4, 4, 1, 1, 4)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to three damages of any kind."""
    for damage in rng.choices(DAMAGES, _WEIGHTS, k=rng.choice((1, 1, 2, 3))):
        data = damage(data, rng) if data else rng.randbytes(4)
    return data
