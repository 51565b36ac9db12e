"""A generation that a client reads, blocking or with asyncio."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from charlstm.errors import GenerationInterrupted
from charlstm.generation_flow import SessionCursor, generate
from charlstm.message import from_message
from charlstm.v1 import generation_pb2

if TYPE_CHECKING:
    from charlstm.async_driver import AsyncDriver
    from charlstm.driver import Driver
    from charlstm.retry import Retry


class FinishReason(enum.Enum):
    """Why a generation ended."""

    #: A reason of a newer version of the contract.
    UNSPECIFIED = "unspecified"
    #: `max_chars` characters were generated.
    LENGTH = "length"
    #: A stop string was generated.
    STOP = "stop"
    #: The session or the model was deleted.
    CANCELLED = "cancelled"
    #: The server shut down, and no server answered in time to continue.
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, kw_only=True)
class GenerationStarted:
    """What the server reported when the generation started."""

    #: Session; empty if the server keeps no state.
    session_id: str
    #: Name of the model.
    model: str
    #: Version of the model.
    version: int
    #: Seed of the random number generator.
    seed: int
    #: Number of characters that the session had seen before this call.
    position: int
    #: Number format of the decode step: ``float32`` or ``int8``.
    precision: str
    #: Number of characters of the prompt that the model does not know, and that were
    #: skipped or replaced.
    unknown_chars: int


@dataclass(frozen=True, kw_only=True)
class GenerationFinished:
    """How the generation ended."""

    #: Why it ended.
    reason: FinishReason
    #: Number of generated characters.
    chars: int
    #: Number of characters that the session has seen.
    position: int
    #: Seconds from the first generated character to the last.
    seconds: float
    #: The state after the call, if `return_session` was set; otherwise empty.
    session_snapshot: bytes


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """A complete generation."""

    #: The generated text, without the prompt.
    text: str
    #: Natural logarithm of the probability of each character, if requested.
    logprobs: tuple[float, ...]
    #: What the server reported at the start.
    started: GenerationStarted
    #: How the generation ended.
    finished: GenerationFinished

    def __str__(self) -> str:
        return self.text


class _Received:
    """What was received of a generation so far."""

    def __init__(self) -> None:
        self._started: GenerationStarted | None = None
        self._finished: GenerationFinished | None = None
        self._parts: list[str] = []
        self._logprobs: list[float] = []

    @property
    def text(self) -> str:
        """The text that was received so far, without the prompt."""
        return "".join(self._parts)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probability of each character so far; empty if not requested."""
        return tuple(self._logprobs)

    @property
    def started(self) -> GenerationStarted | None:
        """What the server reported at the start; None before that."""
        return self._started

    @property
    def finished(self) -> GenerationFinished | None:
        """How the generation ended; None before that."""
        return self._finished

    def _receive(self, event: object) -> str | None:
        """Records an event, and returns its text if it has one."""
        if isinstance(event, generation_pb2.GenerationStarted):
            self._started = from_message(GenerationStarted, event)
        elif isinstance(event, generation_pb2.GeneratedText):
            self._parts.append(event.text)
            self._logprobs.extend(event.logprobs)
            return event.text
        elif isinstance(event, generation_pb2.GenerationFinished):
            self._finished = from_message(GenerationFinished, event)
            self._check_reason(self._finished)
        return None

    def _check_reason(self, finished: GenerationFinished) -> None:
        ends = {
            FinishReason.CANCELLED: "the session or its model was deleted",
            FinishReason.SHUTDOWN: "the server shut down",
        }
        if finished.reason in ends:
            message = f"{ends[finished.reason]} after {finished.chars} characters"
            raise GenerationInterrupted(message, finished)

    def _result(self) -> GenerationResult:
        if self._started is None or self._finished is None:
            raise RuntimeError("the generation was closed before its end")
        return GenerationResult(
            text=self.text,
            logprobs=self.logprobs,
            started=self._started,
            finished=self._finished,
        )


class Generation(_Received, Iterator[str]):
    """A generation: an iterator over pieces of text.

    A piece is one character while the reader keeps up, several when it does not.
    The call begins when the first piece is requested. A call that was interrupted by
    a lost connection, a crash or a restart of the server is repeated or continued,
    and no character is delivered twice.

    Leaving the iteration early cancels the call, at the latest when the object is
    closed: use it in a ``with`` statement, or call :meth:`close`.
    """

    def __init__(
        self,
        driver: Driver,
        request: generation_pb2.GenerateRequest,
        retry: Retry,
        cursor: SessionCursor,
        timeout: float | None,
        *,
        streamed: bool = True,
    ) -> None:
        super().__init__()
        flow = generate(request, retry, cursor, streamed=streamed)
        self._events: Generator[object, None, None] = driver.iterate(flow, timeout)

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        for event in self._events:
            if text := self._receive(event):
                return text
        raise StopIteration

    def result(self) -> GenerationResult:
        """Reads the generation to its end, and returns all of it."""
        for _ in self:
            pass
        return self._result()

    def close(self) -> None:
        """Cancels the call if it has not ended."""
        self._events.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncGeneration(_Received, AsyncIterator[str]):
    """As :class:`Generation`, for asyncio.

    ``await generation`` reads it to its end and returns a :class:`GenerationResult`.
    Cancelling the task that reads it cancels the call.
    """

    def __init__(
        self,
        driver: AsyncDriver,
        request: generation_pb2.GenerateRequest,
        retry: Retry,
        cursor: SessionCursor,
        timeout: float | None,
        *,
        streamed: bool = True,
    ) -> None:
        super().__init__()
        flow = generate(request, retry, cursor, streamed=streamed)
        self._events: AsyncGenerator[object, None] = driver.iterate(flow, timeout)

    def __aiter__(self) -> AsyncGeneration:
        return self

    async def __anext__(self) -> str:
        async for event in self._events:
            if text := self._receive(event):
                return text
        raise StopAsyncIteration

    async def result(self) -> GenerationResult:
        """Reads the generation to its end, and returns all of it."""
        async for _ in self:
            pass
        return self._result()

    def __await__(self) -> Generator[object, None, GenerationResult]:
        return self.result().__await__()

    async def aclose(self) -> None:
        """Cancels the call if it has not ended."""
        await self._events.aclose()

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
