"""The timeout of a call over all its attempts."""

from __future__ import annotations

import time

import grpc

from charlstm.errors import DeadlineExceeded


class Deadline:
    """The time by which a call must end, including its repetitions."""

    def __init__(self, timeout: float | None) -> None:
        """Starts a timeout in seconds; None: no limit."""
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Returns the seconds that are left, at least 0; None if there is no limit."""
        if self._end is None:
            return None
        return max(self._end - time.monotonic(), 0.0)

    def limit(self, seconds: float) -> float:
        """Returns how long a wait of so many seconds lasts at most."""
        remaining = self.remaining()
        return seconds if remaining is None else min(seconds, remaining)

    def check(self) -> None:
        """Checks that the call may be repeated.

        Raises:
            DeadlineExceeded: No time is left.
        """
        if self.remaining() == 0.0:
            raise DeadlineExceeded(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "the timeout expired before the call could be repeated",
            )
