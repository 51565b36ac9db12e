"""The steps of which calls consist, apart from how they are carried out.

The logic of a call, in particular when to repeat it, is a generator that yields
steps and receives their results. It performs no I/O, so that the blocking and the
asyncio client share it: `driver` and `async_driver` carry out the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from charlstm.errors import ConnectionLost, ServerError
from charlstm.retry import Backoff, Retry, is_overload

#: Reports repeated calls, as warnings.
_LOGGER = logging.getLogger("charlstm")

M = TypeVar("M", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True)
class Rpc:
    """A method of a service."""

    service: str
    method: str


@dataclass(frozen=True)
class Call:
    """Makes a unary call. The result is the response."""

    rpc: Rpc
    request: Message
    #: Whether the call may take as long as it needs, unless the caller has set a
    #: timeout.
    unlimited: bool = False


@dataclass(frozen=True)
class Open:
    """Opens a stream of responses, which replaces the current one."""

    rpc: Rpc
    request: Message


@dataclass(frozen=True)
class Upload:
    """Streams chunks to the server.

    With `streamed`, opens a stream of responses; otherwise the result is the
    response. An exception of `first` or `chunks` cancels the call and is raised here.
    """

    rpc: Rpc
    first: Callable[[], Message]
    chunks: Iterator[bytes]
    message: Callable[[bytes], Message]
    streamed: bool


@dataclass(frozen=True)
class Read:
    """Reads the next response of the stream; the result is None at its end."""


@dataclass(frozen=True)
class Sleep:
    """Waits."""

    seconds: float


def wait_after(error: ServerError, seconds: float) -> Sleep:
    """Returns the wait before a call is repeated because of an error, and logs it."""
    _LOGGER.warning("%s; trying again in %.1f s", error, seconds)
    return Sleep(seconds)


@dataclass(frozen=True)
class Emit:
    """Hands a value to the caller of the client."""

    value: object


@dataclass(frozen=True)
class Write:
    """Writes bytes of a download."""

    write: Callable[[bytes], object]
    data: bytes


Step = Call | Open | Upload | Read | Sleep | Emit | Write

#: Logic that yields steps and returns a T. A step that fails raises its error in
#: the generator.
Flow = Generator[Step, object, T]


def call(rpc: Rpc, request: Message, response_type: type[M], *, unlimited: bool = False) -> Flow[M]:
    """Makes a unary call once."""
    response = yield Call(rpc, request, unlimited)
    assert isinstance(response, response_type)
    return response


def read(response_type: type[M]) -> Flow[M | None]:
    """Reads the next response of the stream; None at its end."""
    response = yield Read()
    assert response is None or isinstance(response, response_type)
    return response


def query(
    rpc: Rpc, request: Message, response_type: type[M], retry: Retry, *, unlimited: bool = False
) -> Flow[M]:
    """Makes a unary call that only reads, and repeats it after a transient error."""
    backoff = Backoff(retry)
    while True:
        try:
            return (yield from call(rpc, request, response_type, unlimited=unlimited))
        except ServerError as error:
            delay = backoff.pause(error, has_started=False)
            if delay is None:
                raise
            pause = wait_after(error, delay)
        yield pause


def change(rpc: Rpc, request: Message, response_type: type[M], retry: Retry) -> Flow[M]:
    """Makes a unary call that changes something.

    It is repeated only if the server rejected it before it had an effect. After a
    lost connection the change may have happened.
    """
    backoff = Backoff(retry)
    while True:
        try:
            return (yield from call(rpc, request, response_type))
        except ServerError as error:
            delay = backoff.pause(error, has_started=False) if is_overload(error) else None
            if delay is None:
                raise
            pause = wait_after(error, delay)
        yield pause


def stream_ended(what: str) -> ServerError:
    """Returns the error of a stream that ended without its last event."""
    return ConnectionLost(grpc.StatusCode.UNAVAILABLE, f"the stream ended before the {what} did")
