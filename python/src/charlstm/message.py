"""Converts messages of the contract to the dataclasses of the package."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Hashable
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

D = TypeVar("D")


def from_message(kind: type[D], message: Message, **extra: object) -> D:
    """Creates a dataclass whose fields have the names of the fields of a message.

    An optional field that is not set becomes None, a repeated field a tuple, an
    enum value the member with its name, and a message the dataclass of the field's
    type. `extra` are fields that the message does not have.
    """
    values: dict[str, object] = dict(extra)
    for name, annotation in _fields(cast("Hashable", kind)).items():
        if name in extra:
            continue
        optional = _without_none(annotation)
        if optional is not None and not message.HasField(name):
            values[name] = None
        else:
            values[name] = _convert(optional or annotation, message, name)
    return kind(**values)


@functools.cache
def _fields(kind: Hashable) -> dict[str, Any]:
    assert isinstance(kind, type)
    annotations = typing.get_type_hints(kind)
    return {field.name: annotations[field.name] for field in dataclasses.fields(kind)}


def _without_none(annotation: Any) -> Any:
    """Returns X for the annotation `X | None`, otherwise None."""
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return None
    (kind,) = (it for it in typing.get_args(annotation) if it is not type(None))
    return kind


def _convert(annotation: Any, message: Message, name: str) -> object:
    value = getattr(message, name)
    if typing.get_origin(annotation) is tuple:
        item = typing.get_args(annotation)[0]
        return tuple(from_message(item, it) if isinstance(it, Message) else it for it in value)
    if isinstance(value, Message):
        return from_message(annotation, value)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _member(annotation, message, name, value)
    return value


def _member(kind: type[enum.Enum], message: Message, name: str, number: int) -> enum.Enum:
    """Returns the member of an enum value: SUCCEEDED for STATE_SUCCEEDED."""
    enum_type = message.DESCRIPTOR.fields_by_name[name].enum_type
    assert enum_type is not None
    value = enum_type.values_by_number.get(number)
    prefix = enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    # A value of a newer version of the contract.
    return kind[value.name.removeprefix(prefix)] if value is not None else kind["UNSPECIFIED"]
