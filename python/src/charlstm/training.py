"""Trainings that a client follows, blocking or with asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from charlstm.errors import TrainingNotSucceeded
from charlstm.flow import Flow
from charlstm.history import History
from charlstm.progress import ProgressBar
from charlstm.training_events import (
    State,
    TrainingAccepted,
    TrainingEvent,
    TrainingFinished,
    TrainingInfo,
    TrainingInfos,
)
from charlstm.training_flow import TrainingFlows

if TYPE_CHECKING:
    from charlstm.async_driver import AsyncDriver
    from charlstm.driver import Driver
    from charlstm.retry import Retry


class _Followed:
    """What was received of a training so far."""

    def __init__(self, training_id: str, bar: ProgressBar | None) -> None:
        self._id = training_id
        self._bar = bar
        self._accepted: TrainingAccepted | None = None
        self._finished: TrainingFinished | None = None
        #: The losses so far.
        self.history = History()

    @property
    def id(self) -> str:
        """Id of the training; empty until its first event has arrived."""
        return self._id

    @property
    def accepted(self) -> TrainingAccepted | None:
        """What the server reported at the start; None before that."""
        return self._accepted

    @property
    def finished(self) -> TrainingFinished | None:
        """How the training ended; None before that."""
        return self._finished

    def _receive(self, event: object) -> TrainingEvent:
        assert isinstance(event, TrainingEvent)
        self._id = event.training_id
        self.history.record(event)
        if isinstance(event, TrainingAccepted):
            self._accepted = event
        elif isinstance(event, TrainingFinished):
            self._finished = event
        if self._bar is not None:
            self._bar.show(event)
        return event

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _result(self) -> TrainingFinished:
        if self._finished is None:
            raise RuntimeError("the training was closed before its end")
        if self._finished.state is not State.SUCCEEDED:
            raise TrainingNotSucceeded(self._id, self._finished)
        return self._finished


class Training(_Followed, Iterator[TrainingEvent]):
    """A training: an iterator over its events, from accepted to finished.

    The call begins when the first event is requested. After the connection was lost,
    it continues with the next event. The training runs on the server: leaving the
    iteration early does not end it, :meth:`cancel` does.
    """

    def __init__(
        self,
        driver: Driver,
        flows: TrainingFlows,
        events: Flow[None],
        training_id: str,
        bar: ProgressBar | None,
    ) -> None:
        super().__init__(training_id, bar)
        self._driver = driver
        self._flows = flows
        self._events: Generator[object, None, None] = driver.iterate(events)

    def __iter__(self) -> Training:
        return self

    def __next__(self) -> TrainingEvent:
        try:
            return self._receive(next(self._events))
        except BaseException:
            self._close_bar()
            raise

    def result(self) -> TrainingFinished:
        """Follows the training to its end.

        Raises:
            TrainingNotSucceeded: It published no model.
        """
        for _ in self:
            pass
        return self._result()

    def cancel(self) -> TrainingInfo:
        """Asks the server to cancel the training, after it has saved a checkpoint.

        Returns immediately; continue the iteration to see it end. ``resume`` of
        ``client.trainings`` resumes it.
        """
        if not self._id:
            raise RuntimeError("the training has not been accepted yet")
        return self._driver.run(self._flows.cancel(self._id))

    def close(self) -> None:
        """Stops following the training, which continues on the server."""
        self._events.close()
        self._close_bar()

    def __enter__(self) -> Training:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Trainings:
    """The trainings of the server."""

    def __init__(self, driver: Driver, retry: Retry) -> None:
        self._driver = driver
        self._flows = TrainingFlows(retry)

    def __call__(self, *, owner: str | None = None) -> TrainingInfos:
        """The same as :meth:`list`."""
        return self.list(owner=owner)

    def list(self, *, owner: str | None = None) -> TrainingInfos:
        """Lists trainings, newest first.

        Args:
            owner: Only those of this principal; default: those of the caller, for the
                role ``admin`` those of all.
        """
        return self._driver.run(self._flows.list(owner))

    def get(self, training_id: str) -> TrainingInfo:
        """Describes a training."""
        return self._driver.run(self._flows.get(training_id))

    def watch(
        self, training_id: str, *, from_sequence: int = 0, progress: bool | None = None
    ) -> Training:
        """Follows a training from its first event, or from the one with a number."""
        return Training(
            self._driver,
            self._flows,
            self._flows.watch(training_id, from_sequence),
            training_id,
            ProgressBar.create(progress),
        )

    def cancel(self, training_id: str) -> TrainingInfo:
        """Asks the server to cancel a training, after it has saved a checkpoint."""
        return self._driver.run(self._flows.cancel(training_id))

    def delete(self, training_id: str) -> TrainingInfo:
        """Deletes a training that has ended, but not the model that it published.

        Returns:
            The training, as it was before.
        """
        return self._driver.run(self._flows.delete(training_id))

    def resume(self, training_id: str) -> TrainingInfo:
        """Resumes a training from its last checkpoint; :meth:`watch` follows it."""
        return self._driver.run(self._flows.resume(training_id))


class AsyncTraining(_Followed, AsyncIterator[TrainingEvent]):
    """As :class:`Training`, for asyncio. ``await training.result()`` follows it to its end."""

    def __init__(
        self,
        driver: AsyncDriver,
        flows: TrainingFlows,
        events: Flow[None],
        training_id: str,
        bar: ProgressBar | None,
    ) -> None:
        super().__init__(training_id, bar)
        self._driver = driver
        self._flows = flows
        self._events: AsyncGenerator[object, None] = driver.iterate(events)

    def __aiter__(self) -> AsyncTraining:
        return self

    async def __anext__(self) -> TrainingEvent:
        try:
            return self._receive(await anext(self._events))
        except BaseException:
            self._close_bar()
            raise

    async def result(self) -> TrainingFinished:
        """As :meth:`Training.result`."""
        async for _ in self:
            pass
        return self._result()

    async def cancel(self) -> TrainingInfo:
        """As :meth:`Training.cancel`."""
        if not self._id:
            raise RuntimeError("the training has not been accepted yet")
        return await self._driver.run(self._flows.cancel(self._id))

    async def aclose(self) -> None:
        """Stops following the training, which continues on the server."""
        await self._events.aclose()
        self._close_bar()

    async def __aenter__(self) -> AsyncTraining:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class AsyncTrainings:
    """As :class:`Trainings`, for asyncio."""

    def __init__(self, driver: AsyncDriver, retry: Retry) -> None:
        self._driver = driver
        self._flows = TrainingFlows(retry)

    async def __call__(self, *, owner: str | None = None) -> TrainingInfos:
        """The same as :meth:`list`."""
        return await self.list(owner=owner)

    async def list(self, *, owner: str | None = None) -> TrainingInfos:
        """As :meth:`Trainings.list`."""
        return await self._driver.run(self._flows.list(owner))

    async def get(self, training_id: str) -> TrainingInfo:
        """As :meth:`Trainings.get`."""
        return await self._driver.run(self._flows.get(training_id))

    def watch(
        self, training_id: str, *, from_sequence: int = 0, progress: bool | None = None
    ) -> AsyncTraining:
        """As :meth:`Trainings.watch`."""
        return AsyncTraining(
            self._driver,
            self._flows,
            self._flows.watch(training_id, from_sequence),
            training_id,
            ProgressBar.create(progress),
        )

    async def cancel(self, training_id: str) -> TrainingInfo:
        """As :meth:`Trainings.cancel`."""
        return await self._driver.run(self._flows.cancel(training_id))

    async def delete(self, training_id: str) -> TrainingInfo:
        """As :meth:`Trainings.delete`."""
        return await self._driver.run(self._flows.delete(training_id))

    async def resume(self, training_id: str) -> TrainingInfo:
        """As :meth:`Trainings.resume`."""
        return await self._driver.run(self._flows.resume(training_id))
