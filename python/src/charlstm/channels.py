"""Which of its servers a client uses, and the errors of reaching none."""

from __future__ import annotations

import threading

from charlstm.endpoint import Endpoint
from charlstm.errors import CannotConnect, ConnectionLost, ServerError


class Rotation:
    """Chooses the server for each call: the same one until it is lost.

    Can be used from several threads.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._index = 0
        self._failures = 0
        self._has_answered = False

    @property
    def index(self) -> int:
        """Number of the address to use."""
        return self._index

    def answered(self) -> None:
        """Records that a server has answered."""
        self._has_answered = True

    def failed(self, index: int, error: ServerError) -> ServerError:
        """Records the error of a call to the address `index`; returns what to raise.

        The next call uses another address if this one was lost. If no server has
        ever answered at any of them, waiting does not help.
        """
        is_lost = isinstance(error, ConnectionLost)
        if error.reason or not is_lost:
            self._has_answered = True
        if not is_lost:
            return error
        addresses = self._endpoint.addresses
        with self._lock:
            if index == self._index:
                self._index = (index + 1) % len(addresses)
            self._failures += 1
            unreachable = not self._has_answered and self._failures >= len(addresses)
        if not unreachable:
            return error
        names = ", ".join(str(address) for address in addresses)
        return CannotConnect(
            error.code,
            f"no charlstm server answers at {names}: {error.message}; check the address, and "
            "that the server is running",
        )
