"""Carries out the steps of calls, blocking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import grpc

from charlstm.channels import Rotation
from charlstm.deadline import Deadline
from charlstm.endpoint import Endpoint
from charlstm.errors import from_rpc_error
from charlstm.flow import Call, Emit, Flow, Open, Read, Rpc, Sleep, Step, Upload, Write
from charlstm.stubs import StubCache

T = TypeVar("T")


class Driver:
    """The connections of a client. Can be used from several threads."""

    def __init__(
        self, endpoint: Endpoint, call_timeout: float | None, rotation: Rotation | None = None
    ) -> None:
        self.endpoint = endpoint
        self.call_timeout = call_timeout
        self.rotation = rotation or Rotation(endpoint)
        self._stubs = StubCache()
        self._channels = [endpoint.open(index) for index in range(len(endpoint.addresses))]

    def close(self) -> None:
        """Closes the connections; calls that are running end."""
        for channel in self._channels:
            channel.close()

    def method(self, rpc: Rpc) -> tuple[int, Callable[..., Any]]:
        """Returns the method on the current server, and the number of its address."""
        index = self.rotation.index
        return index, self._stubs.method(index, self._channels[index], rpc)

    def run(self, flow: Flow[T], timeout: float | None = None) -> T:
        """Carries out a flow that emits nothing, and returns its result."""
        execution = Execution(self, timeout)
        try:
            step = next(flow)
            while True:
                assert not isinstance(step, Emit)
                step = execution.advance(flow, step)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            execution.close()
            flow.close()

    def iterate(
        self, flow: Flow[None], timeout: float | None = None
    ) -> Generator[object, None, None]:
        """Carries out a flow and yields what it emits.

        Closing the generator cancels the call.
        """
        execution = Execution(self, timeout)
        try:
            step = next(flow)
            while True:
                if isinstance(step, Emit):
                    yield step.value
                    step = flow.send(None)
                else:
                    step = execution.advance(flow, step)
        except StopIteration:
            return
        finally:
            execution.close()
            flow.close()


class Execution:
    """One execution of a flow."""

    def __init__(self, driver: Driver, timeout: float | None) -> None:
        self._driver = driver
        self._deadline = Deadline(timeout)
        self._stream: Any = None
        self._index = 0
        #: What the source of an upload has raised.
        self._upload_error: list[Exception] = []

    def advance(self, flow: Flow[Any], step: Step) -> Step:
        """Carries out a step, and returns the next one."""
        try:
            result = self.perform(step)
        except Exception as error:
            return flow.throw(error)
        return flow.send(result)

    def perform(self, step: Step) -> object:
        """Carries out a step, and returns its result."""
        try:
            return self._perform(step)
        except grpc.RpcError as error:
            if self._upload_error:
                raise self._upload_error.pop() from None
            converted = from_rpc_error(error)
            raise self._driver.rotation.failed(self._index, converted) from error

    def close(self) -> None:
        """Cancels the call, if it has not ended."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    def _perform(self, step: Step) -> object:
        match step:
            case Call():
                timeout = self._deadline.remaining()
                if timeout is None and not step.unlimited:
                    timeout = self._driver.call_timeout
                response = self._method(step.rpc)(
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
                return self._upload(step)
            case Read():
                response = next(self._stream, None)
                self._driver.rotation.answered()
                return response
            case Sleep():
                time.sleep(self._deadline.limit(step.seconds))
                self._deadline.check()
                return None
            case Write():
                step.write(step.data)
                return None
            case Emit():
                raise AssertionError("emitted values are for the caller")

    def _method(self, rpc: Rpc) -> Any:
        self._index, method = self._driver.method(rpc)
        return method

    def _upload(self, step: Upload) -> object:
        self.close()
        has_call = threading.Event()

        def messages() -> Iterator[object]:
            # Runs in a thread of the gRPC library.
            try:
                yield step.first()
                for chunk in step.chunks:
                    yield step.message(chunk)
            except Exception as error:
                # The end of the messages would mean that the upload is complete.
                self._upload_error.append(error)
                has_call.wait()
                call.cancel()

        timeout = self._deadline.remaining()
        metadata = self._driver.endpoint.metadata
        method = self._method(step.rpc)
        if step.streamed:
            call = self._stream = method(messages(), timeout=timeout, metadata=metadata)
            has_call.set()
            return None
        call = self._stream = method.future(messages(), timeout=timeout, metadata=metadata)
        has_call.set()
        try:
            return call.result()
        except grpc.FutureCancelledError:
            if self._upload_error:
                raise call from None
            raise
