"""Carries out the steps of calls, with asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from charlstm.channels import Rotation
from charlstm.deadline import Deadline
from charlstm.driver import Driver, Execution
from charlstm.endpoint import Endpoint
from charlstm.errors import from_rpc_error
from charlstm.flow import Call, Emit, Flow, Open, Read, Rpc, Sleep, Step, Upload, Write
from charlstm.stubs import StubCache

T = TypeVar("T")


class AsyncDriver:
    """The connections of an asyncio client. Belongs to one event loop."""

    def __init__(self, endpoint: Endpoint, call_timeout: float | None) -> None:
        self.endpoint = endpoint
        self.call_timeout = call_timeout
        self.rotation = Rotation(endpoint)
        self._stubs = StubCache()
        # Opened at the first call, when the event loop is running.
        self._channels: list[grpc.aio.Channel] | None = None
        self._blocking: Driver | None = None

    async def close(self) -> None:
        """Closes the connections; calls that are running end."""
        if self._blocking is not None:
            self._blocking.close()
            self._blocking = None
        channels, self._channels = self._channels or [], None
        for channel in channels:
            await channel.close()

    def method(self, rpc: Rpc) -> tuple[int, Callable[..., Any]]:
        """Returns the method on the current server, and the number of its address."""
        if self._channels is None:
            count = len(self.endpoint.addresses)
            self._channels = [self.endpoint.open_async(index) for index in range(count)]
        index = self.rotation.index
        return index, self._stubs.method(index, self._channels[index], rpc)

    def blocking(self) -> Driver:
        """Returns the driver of uploads."""
        if self._blocking is None:
            self._blocking = Driver(self.endpoint, self.call_timeout, self.rotation)
        return self._blocking

    async def run(self, flow: Flow[T], timeout: float | None = None) -> T:
        """Carries out a flow that emits nothing, and returns its result."""
        execution = _Execution(self, timeout)
        try:
            step = _next_step(lambda: next(flow))
            while True:
                assert not isinstance(step, Emit)
                step = await execution.advance(flow, step)
        except _End as end:
            result: T = end.value
            return result
        finally:
            execution.close()
            flow.close()

    async def iterate(
        self, flow: Flow[None], timeout: float | None = None
    ) -> AsyncGenerator[object, None]:
        """Carries out a flow and yields what it emits.

        Closing the generator, or cancelling the task that reads it, cancels the call.
        """
        execution = _Execution(self, timeout)
        try:
            step = _next_step(lambda: next(flow))
            while True:
                if isinstance(step, Emit):
                    yield step.value
                    step = _next_step(lambda: flow.send(None))
                else:
                    step = await execution.advance(flow, step)
        except _End:
            return
        finally:
            execution.close()
            flow.close()


class _End(Exception):
    """The end of a flow. A coroutine must not raise StopIteration."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _next_step(advance: Callable[[], Step]) -> Step:
    try:
        return advance()
    except StopIteration as end:
        raise _End(end.value) from None


class _Upload:
    """An upload and the responses to it, in a thread of its own.

    If the server ends a call while the client writes, the asyncio part of the gRPC
    library can lose the status that says why, and report an internal error instead.
    The blocking part does not.
    """

    def __init__(self, driver: Driver, timeout: float | None) -> None:
        self._execution = Execution(driver, timeout)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="charlstm-upload")

    async def perform(self, step: Upload | Read) -> object:
        """Carries out a step, and returns its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._execution.perform, step)

    def close(self) -> None:
        """Cancels the call, which ends the thread."""
        self._execution.close()
        self._thread.shutdown(wait=False)


class _Execution:
    """One execution of a flow."""

    def __init__(self, driver: AsyncDriver, timeout: float | None) -> None:
        self._driver = driver
        self._deadline = Deadline(timeout)
        self._stream: Any = None
        self._index = 0
        self._upload: _Upload | None = None

    async def advance(self, flow: Flow[Any], step: Step) -> Step:
        """Carries out a step, and returns the next one."""
        try:
            result = await self._perform(step)
        except grpc.RpcError as rpc_error:
            error = self._driver.rotation.failed(self._index, from_rpc_error(rpc_error))
            return _next_step(lambda: flow.throw(error))
        except Exception as raised:
            source_error = raised
            return _next_step(lambda: flow.throw(source_error))
        return _next_step(lambda: flow.send(result))

    def close(self) -> None:
        if self._upload is not None:
            self._upload.close()
            self._upload = None
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def _perform(self, step: Step) -> object:
        match step:
            case Call():
                timeout = self._deadline.remaining()
                if timeout is None and not step.unlimited:
                    timeout = self._driver.call_timeout
                response = await self._method(step.rpc)(
                    step.request, timeout=timeout, metadata=self._driver.endpoint.metadata
                )
                self._driver.rotation.answered()
                return response
            case Open():
                self.close()
                self._stream = self._method(step.rpc)(
                    step.request,
                    timeout=self._deadline.remaining(),
                    metadata=self._driver.endpoint.metadata,
                )
                return None
            case Upload():
                self.close()
                self._upload = _Upload(self._driver.blocking(), self._deadline.remaining())
                return await self._upload.perform(step)
            case Read():
                if self._upload is not None:
                    return await self._upload.perform(step)
                response = await self._stream.read()
                self._driver.rotation.answered()
                return None if response is grpc.aio.EOF else response
            case Sleep():
                await asyncio.sleep(self._deadline.limit(step.seconds))
                self._deadline.check()
                return None
            case Write():
                await asyncio.to_thread(step.write, step.data)
                return None
            case Emit():
                raise AssertionError("emitted values are for the caller")

    def _method(self, rpc: Rpc) -> Callable[..., Any]:
        self._index, method = self._driver.method(rpc)
        return method
