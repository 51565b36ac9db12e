"""Carries out the steps of calls, with asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import grpc

from charlstm.channels import Rotation
from charlstm.driver import timed_out
from charlstm.endpoint import Endpoint
from charlstm.errors import ServerError, from_rpc_error
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

    async def close(self) -> None:
        """Closes the connections; calls that are running end."""
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


class _Execution:
    """One execution of a flow."""

    def __init__(self, driver: AsyncDriver, timeout: float | None) -> None:
        self._driver = driver
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._stream: Any = None
        self._index = 0
        self._writer: asyncio.Task[None] | None = None
        #: What the source of an upload has raised.
        self._upload_error: list[Exception] = []

    async def advance(self, flow: Flow[Any], step: Step) -> Step:
        """Carries out a step, and returns the next one."""
        try:
            result = await self._perform(step)
        except (grpc.RpcError, asyncio.CancelledError) as raised:
            if self._upload_error:
                # The writer has cancelled the call.
                source_error = self._upload_error.pop()
                return _next_step(lambda: flow.throw(source_error))
            if not isinstance(raised, grpc.RpcError):
                raise
            error = self._driver.rotation.failed(self._index, from_rpc_error(raised))
            return _next_step(lambda: flow.throw(error))
        except ServerError as raised:
            server_error = raised
            return _next_step(lambda: flow.throw(server_error))
        return _next_step(lambda: flow.send(result))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def _perform(self, step: Step) -> object:
        match step:
            case Call():
                timeout = self._remaining()
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
                    timeout=self._remaining(),
                    metadata=self._driver.endpoint.metadata,
                )
                return None
            case Upload():
                return await self._upload(step)
            case Read():
                response = await self._stream.read()
                self._driver.rotation.answered()
                return None if response is grpc.aio.EOF else response
            case Sleep():
                await self._sleep(step.seconds)
                return None
            case Write():
                await asyncio.to_thread(step.write, step.data)
                return None
            case Emit():
                raise AssertionError("emitted values are for the caller")

    def _method(self, rpc: Rpc) -> Callable[..., Any]:
        self._index, method = self._driver.method(rpc)
        return method

    async def _upload(self, step: Upload) -> object:
        self.close()
        call = self._stream = self._method(step.rpc)(
            timeout=self._remaining(), metadata=self._driver.endpoint.metadata
        )
        self._writer = asyncio.create_task(self._write(step, call))
        if step.streamed:
            return None
        return await call

    async def _write(self, step: Upload, call: Any) -> None:
        """Writes the messages of an upload. Ends early if the call has ended."""
        try:
            await call.write(step.first)
            while (chunk := await asyncio.to_thread(next, step.chunks, None)) is not None:
                await call.write(step.message(chunk))
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The error of the call is reported to its reader.
            return
        except Exception as error:
            # The end of the messages would mean that the upload is complete.
            self._upload_error.append(error)
            call.cancel()

    def _remaining(self) -> float | None:
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), 0.0)

    async def _sleep(self, seconds: float) -> None:
        remaining = self._remaining()
        if remaining is not None and seconds >= remaining:
            await asyncio.sleep(remaining)
            raise timed_out()
        await asyncio.sleep(seconds)
