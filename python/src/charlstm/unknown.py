"""What happens to characters that a model does not know."""

from __future__ import annotations

import enum
from typing import Literal

from charlstm.v1 import generation_pb2 as pb


class UnknownCharacters(enum.Enum):
    """What happens to characters that the model does not know."""

    #: The call fails with :class:`charlstm.InvalidArgument`.
    ERROR = "error"
    #: They are left out.
    SKIP = "skip"
    #: Each is replaced by the most frequent character of the model's corpus.
    REPLACE = "replace"


#: A member of the enum, or its value; None is the default, ERROR.
Unknown = UnknownCharacters | Literal["error", "skip", "replace"] | None


def to_message(unknown: Unknown) -> pb.UnknownCharacters.ValueType:
    """Returns the value of the contract.

    Raises:
        ValueError: The value does not exist.
    """
    if unknown is None:
        return pb.UNKNOWN_CHARACTERS_UNSPECIFIED
    return pb.UnknownCharacters.Value(f"UNKNOWN_CHARACTERS_{UnknownCharacters(unknown).name}")
