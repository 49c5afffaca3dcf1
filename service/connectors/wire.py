"""Bodies unpacked within a limit: snappy, gzip, zlib, and protobuf messages of which nothing is generated.

What a body would unpack to is looked up, or counted while unpacking, before it is held: a bomb costs no more than the
limit. Exceptions are DecodeError and its children, whatever the bytes are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

import cramjam
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from tsgdn2.service.connectors.decoded import DecodeError, OversizeError, UnsupportedError

_WINDOWS: Final = {"gzip": 31, "deflate": 15}


def header(headers: Mapping[str, str], name: str) -> str:
    """A header by its name in lower case, "" where it is not; names in `headers` may be of any case."""
    found = headers.get(name)
    if found is None:
        found = next((value for key, value in headers.items() if key.lower() == name), "")
    return found.strip()


def unpacked(body: bytes, encoding: str, most: int) -> bytes:
    """The body without its Content-Encoding ("", identity, gzip, deflate, snappy); at most `most` bytes."""
    encoding = encoding.lower()
    if encoding == "snappy":
        return _unsnapped(body, most)
    if encoding in _WINDOWS:
        return _inflated(body, _WINDOWS[encoding], encoding, most)
    if encoding not in ("", "identity"):
        raise UnsupportedError(
            f"Content-Encoding: {encoding[:40]!r} is not read here; send gzip, deflate, snappy or plain"
        )
    if len(body) > most:
        raise _oversize(len(body), most)
    return body


def _unsnapped(body: bytes, most: int) -> bytes:
    try:
        size = cramjam.snappy.decompress_raw_len(body)
        if size > most:
            raise _oversize(size, most)
        content = bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise DecodeError(f"body: no snappy block ({error}); the framed format is not read, send raw blocks") from None
    return content


def _inflated(body: bytes, window: int, encoding: str, most: int) -> bytes:
    inflate = zlib.decompressobj(window)
    try:
        content = inflate.decompress(body, most + 1)
    except zlib.error as error:
        raise DecodeError(f"body: no {encoding} ({error})") from None
    if len(content) > most:
        raise _oversize(None, most)
    if not inflate.eof:
        raise DecodeError(f"body: {encoding} ends too early; it was cut off")
    if inflate.unused_data:
        raise DecodeError(f"body: {len(inflate.unused_data)} bytes behind the end of {encoding}")
    return content


def _oversize(size: int | None, most: int) -> OversizeError:
    came = "more" if size is None else f"{size}"
    return OversizeError(f"body: may have {most} bytes unpacked, got {came}; send less at once, or raise body_bytes")


Field = tuple[str, int, str]
"""Name, number and type of a field: a scalar's name (string, double, int64), or that of a message, repeated."""
_SCALARS: Final = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
}


def message_class(package: str, messages: Mapping[str, tuple[Field, ...]], root: str) -> type[Message]:
    """The class of a protobuf message, from its published numbers; fields that are not named are skipped on reading."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        described = file.message_type.add(name=name)
        for field, number, kind in fields:
            if kind in _SCALARS:
                described.field.add(name=field, number=number, type=_SCALARS[kind], label=kinds.LABEL_OPTIONAL)
            else:
                described.field.add(
                    name=field, number=number, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED,
                    type_name=f".{package}.{kind}",
                )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{root}"))


def parse(kind: type[Message], content: bytes) -> Message:
    """A message of this kind; DecodeError where the bytes are none."""
    message = kind()
    try:
        message.ParseFromString(content)
    except (ProtobufError, ValueError, RecursionError) as error:
        raise DecodeError(f"body: no {kind.DESCRIPTOR.full_name} in protobuf ({error})") from None
    return message
