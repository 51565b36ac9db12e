"""The logic of a generation.

Locates the session, and repeats or continues a call that was interrupted.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypedDict

import grpc

from charlstm.errors import (
    Aborted,
    CallCancelled,
    ConnectionLost,
    DeadlineExceeded,
    NotFound,
    ServerError,
    SessionBusy,
    SessionEvicted,
)
from charlstm.flow import Emit, Flow, Open, Rpc, Sleep, call, read, stream_ended, wait_after
from charlstm.repeatable_call import RepeatableCall
from charlstm.retry import Backoff, Retry
from charlstm.unknown import Unknown, to_message
from charlstm.v1.generation_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_SHUTDOWN,
    GeneratedText,
    GenerateRequest,
    GenerateResponse,
    GenerateTextRequest,
    GenerateTextResponse,
    GenerationFinished,
    Sampling,
)
from charlstm.v1.session_pb2 import GetSessionRequest, GetSessionResponse, Session

GENERATE = Rpc("GenerationService", "Generate")
GENERATE_TEXT = Rpc("GenerationService", "GenerateText")
GET_SESSION = Rpc("SessionService", "GetSession")


class GenerateOptions(TypedDict, total=False):
    """What to generate and how. An option that is None or missing has its default."""

    max_chars: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    greedy: bool | None
    stop: str | Sequence[str]
    logprobs: bool | None
    precision: str | None
    expected_position: int | None
    unknown: Unknown


def generate_request(
    prime: str,
    *,
    model: str = "",
    session_id: str = "",
    owner: str | None = None,
    session_snapshot: bytes = b"",
    return_session: bool = False,
    max_chars: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    greedy: bool | None = None,
    stop: str | Sequence[str] = (),
    logprobs: bool | None = None,
    precision: str | None = None,
    expected_position: int | None = None,
    unknown: Unknown = None,
) -> GenerateRequest:
    """Creates the request of a generation."""
    return GenerateRequest(
        model=model,
        prime=prime,
        max_chars=max_chars,
        session_id=session_id or None,
        sampling=Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            greedy=greedy,
        ),
        stop=[stop] if isinstance(stop, str) else list(stop),
        logprobs=logprobs,
        expected_position=expected_position,
        precision=precision,
        session_snapshot=session_snapshot,
        return_session=return_session or None,
        unknown=to_message(unknown),
        owner=owner,
    )


class SessionCursor:
    """What a client knows about the position of a session."""

    def __init__(self) -> None:
        #: Position after the last call; None if it is not known.
        self.position: int | None = None
        #: Whether a call of this client was interrupted, so that the server may not
        #: have noticed its end yet.
        self.was_interrupted = False
        #: Whether the server had begun to generate in that call.
        self.had_started = False

    def begin(self) -> None:
        """Records that a call begins: until it ends, the position is not known."""
        self.position = None

    def end(self, position: int) -> None:
        """Records that a call has ended at a position."""
        self.position = position
        self.was_interrupted = False
        self.had_started = False


def generate(
    request: GenerateRequest, retry: Retry, cursor: SessionCursor, *, streamed: bool = True
) -> Flow[None]:
    """Generates a text; emits what the server sends, each event once.

    If it is not `streamed`, the server sends the whole text in one message.

    In a session whose position is not known, the server is asked for it first. A
    call that does not continue a state gets a seed. Both make it safe to repeat the
    call even if the answer to the first attempt is lost.
    """
    backoff = Backoff(retry)
    is_repeated = cursor.was_interrupted
    if request.session_id:
        if not request.HasField("expected_position") and cursor.position is not None:
            request.expected_position = cursor.position
        cursor.begin()
        if not request.HasField("expected_position"):
            yield from _locate(request, cursor, is_repeated, backoff)
        cursor.was_interrupted = True
    elif not request.session_snapshot:
        _choose_seed(request)
    cursor.had_started = False
    current = RepeatableCall(request)
    total = _Total()
    while True:
        delivered = current.delivered_chars
        if streamed:
            outcome = yield from _attempt(current, total, cursor)
        else:
            outcome = yield from _unary_attempt(current, total, cursor)
        if current.delivered_chars > delivered:
            backoff.reset()
        if isinstance(outcome, GenerationFinished):
            delay = None
            if outcome.reason == FINISH_REASON_SHUTDOWN:
                if current.is_complete(outcome):
                    # The server shut down after the last character.
                    outcome.reason = FINISH_REASON_LENGTH
                else:
                    delay = backoff.next_delay()
            total.seconds += outcome.seconds
            if delay is None:
                _record_end(cursor, request, outcome)
                yield Emit(total.finished(outcome))
                return
            current = current.after_shutdown(outcome)
            pause = wait_after(_shutting_down(), delay)
        else:
            # ABORTED: the server may not have noticed yet that the previous attempt
            # has ended, and still reserves the session for it.
            if isinstance(outcome, Aborted) and is_repeated and outcome.reason in _BUSY:
                delay = backoff.next_delay()
            else:
                delay = backoff.pause(outcome, has_started=current.has_started)
            if delay is None:
                if not is_repeated and not current.has_started and not _is_unclear(outcome):
                    cursor.was_interrupted = False
                raise outcome
            pause = wait_after(outcome, delay)
        is_repeated = True
        yield pause


def _shutting_down() -> ServerError:
    return ConnectionLost(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")


#: Reasons of ABORTED that end by themselves. With a third one, the session was
#: deleted.
_BUSY = ("SESSION_BUSY", "SESSION_FENCED", "")


def _record_end(
    cursor: SessionCursor, request: GenerateRequest, finished: GenerationFinished
) -> None:
    if request.session_id and finished.reason != FINISH_REASON_CANCELLED:
        cursor.end(finished.position)


def _is_unclear(error: ServerError) -> bool:
    """Whether the call may still be running on the server."""
    return isinstance(error, (CallCancelled, ConnectionLost, DeadlineExceeded))


class _Total:
    """The length and the duration of a generation over all its calls."""

    def __init__(self) -> None:
        self.chars = 0
        self.seconds = 0.0

    def finished(self, finished: GenerationFinished) -> GenerationFinished:
        """Returns the last event, for the whole generation."""
        finished.chars = self.chars
        finished.seconds = self.seconds
        return finished


#: Reasons of a generation that has not come to its end.
_CUT_OFF = (FINISH_REASON_SHUTDOWN, FINISH_REASON_CANCELLED)


def _attempt(
    current: RepeatableCall, total: _Total, cursor: SessionCursor
) -> Flow[GenerationFinished | ServerError]:
    """Makes the call once and emits its text. Returns its last event or its error."""
    request = current.next_attempt()
    try:
        yield Open(GENERATE, request)
        while (response := (yield from read(GenerateResponse))) is not None:
            if response.HasField("started"):
                cursor.had_started = True
                if current.record_start(response.started) and not total.chars:
                    yield Emit(response.started)
            elif response.HasField("text"):
                new = current.new_part(response.text.text)
                if new:
                    total.chars += len(new)
                    yield Emit(_tail(response.text, len(new)))
            elif response.HasField("finished"):
                # A repetition may be cut off before it has caught up.
                if response.finished.reason not in _CUT_OFF:
                    current.check_end()
                return response.finished
    except ServerError as error:
        return error
    return stream_ended("generation")


def _unary_attempt(
    current: RepeatableCall, total: _Total, cursor: SessionCursor
) -> Flow[GenerationFinished | ServerError]:
    """As `_attempt`, with a call that returns the whole text."""
    # Both requests have the same fields.
    request = GenerateTextRequest.FromString(current.next_attempt().SerializeToString())
    try:
        response = yield from call(GENERATE_TEXT, request, GenerateTextResponse, unlimited=True)
    except ServerError as error:
        return error
    cursor.had_started = True
    if current.record_start(response.started) and not total.chars:
        yield Emit(response.started)
    new = current.new_part(response.text)
    if new:
        total.chars += len(new)
        text = GeneratedText(
            text=response.text, logprobs=response.logprobs, position=response.finished.position
        )
        yield Emit(_tail(text, len(new)))
    if response.finished.reason not in _CUT_OFF:
        current.check_end()
    return response.finished


def _tail(text: GeneratedText, chars: int) -> GeneratedText:
    """Returns the last `chars` characters of a piece of text."""
    start = len(text.text) - chars
    if start == 0:
        return text
    return GeneratedText(
        text=text.text[start:], logprobs=text.logprobs[start:], position=text.position
    )


#: Delays in seconds before a session counts as not created by a call that has
#: started and was interrupted: a server shows a session once it is stored, which
#: it does as soon as it notices the end of the call.
_CREATION_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


def _locate(
    request: GenerateRequest, cursor: SessionCursor, is_repeated: bool, backoff: Backoff
) -> Flow[None]:
    """Completes a request with what makes its repetition safe.

    These are the position of the session, and the seed of a call that creates one.
    """
    creation_delays = iter(_CREATION_DELAYS if cursor.had_started else ())
    while True:
        try:
            session = yield from _get_session(request)
        except ServerError as error:
            delay = backoff.pause(error, has_started=False)
            if delay is None:
                raise
            pause = wait_after(error, delay)
        else:
            delay = None if session.session_id else next(creation_delays, None)
            if session.busy and is_repeated:
                delay = backoff.next_delay()
                if delay is None:
                    raise SessionBusy(
                        grpc.StatusCode.ABORTED,
                        f"another call is generating in session {request.session_id!r}",
                        reason="SESSION_BUSY",
                    )
            if delay is None:
                if not session.session_id:
                    _check_can_create(request)
                    _choose_seed(request)
                request.expected_position = session.position
                backoff.reset()
                return
            pause = Sleep(delay)
        yield pause


def _check_can_create(request: GenerateRequest) -> None:
    if not request.prime:
        raise NotFound(
            grpc.StatusCode.NOT_FOUND,
            f"there is no session {request.session_id!r}; give it a prompt (prime) to create it",
            reason="SESSION_NOT_FOUND",
        )


def _get_session(request: GenerateRequest) -> Flow[Session]:
    """Describes a session; an empty description if it can be created."""
    owner = request.owner if request.HasField("owner") else None
    get = GetSessionRequest(session_id=request.session_id, owner=owner)
    try:
        response = yield from call(GET_SESSION, get, GetSessionResponse)
    except NotFound as error:
        # Any other reason means that the session was evicted or lost.
        if isinstance(error, SessionEvicted) or error.reason not in ("", "SESSION_NOT_FOUND"):
            raise
        return Session()
    return response.session


def _choose_seed(request: GenerateRequest) -> None:
    if not request.sampling.HasField("seed"):
        request.sampling.seed = secrets.randbits(64)
