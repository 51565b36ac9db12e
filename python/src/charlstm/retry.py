"""Decides whether and when a failed call is repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass

from charlstm.errors import (
    CannotConnect,
    ConnectionLost,
    ResourceExhausted,
    ServerError,
    StorageUnavailable,
)

#: First delay after a lost connection, in seconds: bridges a network hiccup.
_FIRST_DELAY = 0.1
#: Each delay is longer than the previous one by this factor.
_FACTOR = 2.2
#: Longest delay, in seconds.
_MAX_DELAY = 4.0
#: Delays vary by this fraction, so that the clients of a server that restarts do
#: not all come back at the same moment.
_JITTER = 0.2
#: Delay if a server that rejects a call does not say when to retry, in seconds.
_DEFAULT_RETRY_AFTER = 1.0
#: A text is generated again at most this often because the storage failed at its
#: end. The server rejects calls that it could not store before they generate.
_MAX_REGENERATIONS = 2
#: A reason of RESOURCE_EXHAUSTED: the server gave up on a reader that paused.
_STALLED = "STREAM_STALLED"


@dataclass(frozen=True)
class Retry:
    """How long a client waits for a server, per call and without progress.

    Calls are repeated only if that is safe: generations, because a repeated call
    gives the same text and never advances its session twice; calls that only
    read; and calls that the server rejected before they had an effect.
    """

    #: Seconds to wait in total for a server that cannot be reached or restarts.
    connection_seconds: float = 60.0
    #: Seconds to wait in total for a server that rejects calls because it is at
    #: capacity or cannot store sessions. It says itself when to retry.
    overload_seconds: float = 120.0

    @classmethod
    def never(cls) -> Retry:
        """Returns a setting with which each failure is reported immediately."""
        return cls(connection_seconds=0.0, overload_seconds=0.0)


class Backoff:
    """Tracks how long one call has waited because of failures."""

    def __init__(self, limits: Retry) -> None:
        self._limits = limits
        self.reset()

    def reset(self) -> None:
        """Starts over, because an attempt made progress."""
        self._delay = _FIRST_DELAY
        self._connection_wait = 0.0
        self._overload_wait = 0.0
        self._regenerations = 0

    def pause(self, error: ServerError, *, has_started: bool) -> float | None:
        """Returns the seconds after which the same call may succeed.

        None if it is time to give up or a repetition cannot help. `has_started`
        is True if the server had begun to work on the call.
        """
        if is_overload(error):
            if isinstance(error, StorageUnavailable):
                self._regenerations += has_started
            delay = _DEFAULT_RETRY_AFTER if error.retry_after is None else error.retry_after
            self._overload_wait += delay
            if (
                self._overload_wait > self._limits.overload_seconds
                or self._regenerations > _MAX_REGENERATIONS
            ):
                return None
            return delay
        is_lost = isinstance(error, ConnectionLost) and not isinstance(error, CannotConnect)
        if is_lost or error.reason == _STALLED:
            return self.next_delay()
        return None

    def next_delay(self) -> float | None:
        """Returns the seconds before the next attempt to reach a server.

        None if it is time to give up.
        """
        delay = self._delay
        if self._connection_wait + delay > self._limits.connection_seconds:
            return None
        self._connection_wait += delay
        self._delay = min(delay * _FACTOR, _MAX_DELAY)
        return delay * random.uniform(1 - _JITTER, 1 + _JITTER)


def is_overload(error: ServerError) -> bool:
    """Whether the server rejected the call for now, and says when to retry."""
    return isinstance(error, StorageUnavailable) or (
        isinstance(error, ResourceExhausted) and error.retry_after is not None
    )
