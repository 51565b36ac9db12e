"""Makes the repetition of an interrupted generation invisible.

The server generates the same text again, and what was delivered already is
dropped. Performs no I/O.
"""

from __future__ import annotations

from charlstm.errors import TextDiverged
from charlstm.v1.generation_pb2 import (
    UNKNOWN_CHARACTERS_SKIP,
    GenerateRequest,
    GenerationFinished,
    GenerationStarted,
)

#: Number of characters that a call generates if it does not say so, from the
#: contract.
_DEFAULT_MAX_CHARS = 200


class RepeatableCall:
    """A call and how much of its text was delivered, over all its attempts.

    If the server shuts down during a call in a session, the generation continues
    with another call.
    """

    def __init__(self, request: GenerateRequest) -> None:
        """Wraps a call of which nothing was delivered yet.

        The request should contain everything that the text depends on, in
        particular the seed and, in a session, the position.
        """
        self._request = GenerateRequest()
        self._request.CopyFrom(request)
        self._start: int | None = None
        self._prime_chars = len(request.prime)
        self._delivered = ""
        # Number of characters of `_delivered` that this attempt has generated again.
        self._repeated = 0
        self.has_started = False

    def next_attempt(self) -> GenerateRequest:
        """Starts an attempt and returns its request."""
        self._repeated = 0
        self.has_started = False
        return self._request

    @property
    def in_session(self) -> bool:
        """Whether the server keeps the state of the call."""
        return bool(self._request.session_id)

    @property
    def delivered_chars(self) -> int:
        """Number of characters that were delivered."""
        return len(self._delivered)

    def record_start(self, started: GenerationStarted) -> bool:
        """Records that this attempt has started.

        From now on every attempt names the model version, the precision and the
        seed that the server reported, so that each generates the same text.
        Returns True for the first attempt that gets this far.

        Raises:
            TextDiverged: The session is at another position than before.
        """
        self.has_started = True
        if self._start is not None:
            if started.position != self._start and self.in_session:
                raise TextDiverged(
                    f"the repeated call began at position {started.position} instead of "
                    f"{self._start}"
                )
            return False
        self._start = started.position
        if self._request.unknown == UNKNOWN_CHARACTERS_SKIP:
            self._prime_chars -= started.unknown_chars
        if started.model:
            self._request.model = f"{started.model}@{started.version}"
        if started.precision:
            self._request.precision = started.precision
        self._request.sampling.seed = started.seed
        if self.in_session:
            self._request.expected_position = started.position
        return True

    def new_part(self, text: str) -> str:
        """Returns the part of `text` that was not delivered before, and counts it.

        Raises:
            TextDiverged: The attempt generates another text than before.
        """
        expected = self._delivered[self._repeated :]
        if expected.startswith(text):
            self._repeated += len(text)
            return ""
        if not text.startswith(expected):
            same = 0
            while same < len(text) and text[same] == expected[same]:
                same += 1
            raise self._diverged(self._repeated + same)
        new = text[len(expected) :]
        self._delivered += new
        self._repeated = len(self._delivered)
        return new

    def check_end(self) -> None:
        """Checks at the end of an attempt that it has repeated what was delivered.

        Raises:
            TextDiverged: The attempt ended before that.
        """
        if self._repeated != len(self._delivered):
            raise self._diverged(self._repeated)

    def is_complete(self, finished: GenerationFinished) -> bool:
        """Whether nothing is left to generate although the server has shut down.

        That is so if all characters were delivered and the state after them is where
        the caller expects it: in the session, or in the returned snapshot.
        """
        if self._chars_left() > 0 or not self._has_caught_up():
            return False
        if self.in_session:
            return self._is_at_end(finished)
        return bool(finished.session_snapshot) or not self._request.return_session

    def after_shutdown(self, finished: GenerationFinished) -> RepeatableCall:
        """Returns the call that generates the rest after the server has shut down.

        The call must not be complete. In a session that is at the end of the delivered text, this is a new call at
        that position. Otherwise the call is repeated: a repeated call that is cut
        off before it has caught up does not move the session, and a call without a
        session has no position.
        """
        if not (self.in_session and self._has_caught_up() and self._is_at_end(finished)):
            return self
        rest = RepeatableCall(self._request)
        rest._request.expected_position = finished.position
        rest._request.prime = ""
        rest._request.max_chars = self._chars_left()
        # The session keeps its random state.
        rest._request.sampling.ClearField("seed")
        return rest

    def _chars_left(self) -> int:
        request = self._request
        max_chars = request.max_chars if request.HasField("max_chars") else _DEFAULT_MAX_CHARS
        return max_chars - len(self._delivered)

    def _has_caught_up(self) -> bool:
        """Whether this attempt has generated all that was delivered, and anything."""
        return self._delivered != "" and self._repeated == len(self._delivered)

    def _is_at_end(self, finished: GenerationFinished) -> bool:
        """Whether the session is at the end of the delivered text."""
        if self._start is None:
            return False
        return finished.position == self._start + self._prime_chars + len(self._delivered)

    def _diverged(self, same: int) -> TextDiverged:
        return TextDiverged(
            f"the repeated call generated another text after {same} of {len(self._delivered)} "
            "characters: the model, the session or the server's arithmetic has changed"
        )
