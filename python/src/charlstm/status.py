"""The status of the server, for operators."""

from __future__ import annotations

from dataclasses import dataclass

from charlstm.errors import ConnectionLost
from charlstm.flow import Flow, Rpc, Sleep, call, query
from charlstm.message import from_message
from charlstm.retry import Retry
from charlstm.v1 import server_pb2 as pb

_STATUS = Rpc("ServerService", "GetServerStatus")


@dataclass(frozen=True, kw_only=True)
class StepCheck:
    """Result of the check of a model's decode step on the server's machine."""

    #: Model, as ``NAME@VERSION``.
    model: str
    #: True if the result for one sequence is bit for bit the same in every batch.
    row_invariant: bool
    #: Duration of a decode step for one sequence.
    microseconds_one_row: float
    #: Duration of a decode step in a batch, per sequence.
    microseconds_row_in_batch: float
    #: Number format of the decode step: ``float32`` or ``int8``.
    precision: str


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """The current status of the server."""

    #: Version of the program.
    server_version: str
    #: Device that trains and generates: ``cpu`` or ``cuda:N``.
    device: str
    #: Number of threads.
    threads: int
    #: Seconds since the server started.
    uptime_seconds: int
    #: Number of model names.
    models: int
    #: Number of sessions.
    sessions: int
    #: Maximum number of sessions.
    max_sessions: int
    #: Number of generations in the batch.
    generations_running: int
    #: Maximum number of generations in the batch.
    max_batch: int
    #: Number of generations waiting for a slot in the batch.
    generations_queued: int
    #: Maximum number of waiting generations.
    max_queue: int
    #: Number of running trainings.
    trainings_running: int
    #: Number of waiting trainings.
    trainings_queued: int
    #: Result of the check of each loaded model.
    step_checks: tuple[StepCheck, ...]
    #: Number format in which models generate by default.
    precision: str
    #: The kernels that compute decode steps on the CPU.
    kernels: str


#: Seconds between two checks whether the server has started.
_READY_INTERVAL = 0.2


def wait_until_ready() -> Flow[None]:
    """Waits until the server answers. Ends with the timeout of the flow."""
    request = pb.GetServerStatusRequest()
    while True:
        try:
            yield from call(_STATUS, request, pb.GetServerStatusResponse)
        except ConnectionLost:
            yield Sleep(_READY_INTERVAL)
        else:
            return


def server_status(retry: Retry) -> Flow[ServerStatus]:
    """Asks for the status of the server."""
    request = pb.GetServerStatusRequest()
    response = yield from query(_STATUS, request, pb.GetServerStatusResponse, retry)
    return from_message(ServerStatus, response)
