"""The exceptions of the package, and how statuses of the server become them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from charlstm.generation import GenerationFinished
    from charlstm.training_events import TrainingFinished

#: Trailer with the details of an error: a serialized google.rpc.Status.
_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    """A field of a request that the server has rejected."""

    #: Name of the field, as in the contract, such as ``sampling.top_p``.
    field: str
    #: What is wrong with it, and what would be valid.
    description: str


@dataclass(frozen=True)
class QuotaViolation:
    """A quota that a call would have exceeded."""

    #: What the quota applies to.
    subject: str
    #: Which quota it is, and its limit.
    description: str


class CharlstmError(Exception):
    """Base class of all exceptions of this package."""


class ServerError(CharlstmError):
    """A call failed. There is a subclass for each status code.

    Attributes:
        code: Status code of gRPC.
        message: What is wrong, where, and what would be valid.
        reason: Machine-readable reason such as ``MODEL_NOT_FOUND``; empty if the
            server sent none.
        metadata: Values that belong to the reason.
        fields: Rejected fields of the request.
        quotas: Quotas that were exceeded.
        retry_after: Seconds after which the server asks to retry; None if it did
            not say so.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        fields: Iterable[FieldViolation] = (),
        quotas: Iterable[QuotaViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.fields: tuple[FieldViolation, ...] = tuple(fields)
        self.quotas: tuple[QuotaViolation, ...] = tuple(quotas)
        self.retry_after = retry_after

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.code.name}{reason}: {self.message}"


class InvalidArgument(ServerError, ValueError):
    """A field of the request is not valid; `fields` says which one, and why."""


class NotFound(ServerError, LookupError):
    """A model, session or training does not exist."""


class SessionEvicted(NotFound):
    """The server has evicted or lost the session; `reason` says why.

    Deleting the session makes its id usable again.
    """


class AlreadyExists(ServerError):
    """The id is in use."""


class FailedPrecondition(ServerError):
    """The call is not possible in the present state."""


class PositionMismatch(FailedPrecondition):
    """The session is at another position than expected: something else used it."""

    @property
    def position(self) -> int | None:
        """Position of the session."""
        return _number(self.metadata.get("position"))

    @property
    def last_call_position(self) -> int | None:
        """Position at which the last call in the session began."""
        return _number(self.metadata.get("last_call_position"))


class Aborted(ServerError):
    """Another call interfered."""


class SessionBusy(Aborted):
    """Another call is generating in the session."""


class ResourceExhausted(ServerError):
    """A limit of the server is reached."""


class QuotaExceeded(ResourceExhausted):
    """A quota of the caller is reached; `quotas` says which one."""


class PermissionDenied(ServerError):
    """The caller does not have the required role."""


class Unauthenticated(ServerError):
    """The server requires a valid access token."""


class DeadlineExceeded(ServerError, TimeoutError):
    """The call did not end within its timeout."""


class Unavailable(ServerError):
    """The server cannot serve the call now."""


class StorageUnavailable(Unavailable):
    """The server cannot store sessions now, usually because its disk is full.

    The session is at its last commit.
    """


class ConnectionLost(Unavailable, ConnectionError):
    """The connection was lost, or the server is shutting down.

    The call may have had an effect.
    """


class CannotConnect(ConnectionLost):
    """No server has ever answered at the address."""


class Unimplemented(ServerError):
    """The server does not support the call."""


class DataLoss(ServerError):
    """Data on the server is damaged."""


class InternalError(ServerError):
    """The server has a fault; its log has the details."""


class CallCancelled(ServerError):
    """The call was cancelled."""


class TextDiverged(CharlstmError):
    """A repeated call generated another text than before the interruption.

    The model, the session or the server's arithmetic has changed.
    """


class GenerationInterrupted(CharlstmError):
    """A generation ended before it was complete.

    Attributes:
        finished: The last event of the generation, with the reason.
    """

    def __init__(self, message: str, finished: GenerationFinished) -> None:
        super().__init__(message)
        self.finished = finished


class TrainingNotSucceeded(CharlstmError):
    """A training ended without a model.

    Attributes:
        training_id: Id of the training. If it was cancelled or interrupted,
            ``client.trainings.resume(training_id)`` continues it.
        finished: The last event of the training.
    """

    def __init__(self, training_id: str, finished: TrainingFinished) -> None:
        reason = f": {finished.message}" if finished.message else ""
        super().__init__(f"training {training_id} ended as {finished.state.name}{reason}")
        self.training_id = training_id
        self.finished = finished


_BY_CODE: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.CANCELLED: CallCancelled,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNAVAILABLE: ConnectionLost,
    grpc.StatusCode.DATA_LOSS: DataLoss,
}

_BY_REASON: dict[str, type[ServerError]] = {
    "POSITION_MISMATCH": PositionMismatch,
    "SESSION_BUSY": SessionBusy,
    "STORAGE_UNAVAILABLE": StorageUnavailable,
    "QUOTA": QuotaExceeded,
}

#: Reasons of a session that existed; such an id is not used for a new session.
_EVICTED = ("SESSION_EVICTED", "SESSION_LOST")

#: Codes with which the gRPC library reports a broken stream, apart from
#: UNAVAILABLE. The server sends details with every error, the library does not.
_LOCAL_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)
_BROKEN_STREAM = ("RST_STREAM", "Stream removed", "GOAWAY", "transport")


def from_rpc_error(error: grpc.RpcError) -> ServerError:
    """Converts an error of the gRPC library."""
    call = error if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)) else None
    code = call.code() if call is not None else grpc.StatusCode.UNKNOWN
    message = (call.details() if call is not None else str(error)) or ""
    trailers = call.trailing_metadata() if call is not None else None
    details = _details(trailers)
    return _create(code or grpc.StatusCode.UNKNOWN, message, details)


def _details(trailers: object) -> status_pb2.Status | None:
    if not isinstance(trailers, Iterable):
        return None
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _create(code: grpc.StatusCode, message: str, details: status_pb2.Status | None) -> ServerError:
    reason = ""
    metadata: dict[str, str] = {}
    fields: list[FieldViolation] = []
    quotas: list[QuotaViolation] = []
    retry_after: float | None = None
    for detail in details.details if details is not None else ():
        if detail.Unpack(info := error_details_pb2.ErrorInfo()):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry := error_details_pb2.RetryInfo()):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Unpack(request := error_details_pb2.BadRequest()):
            fields += [FieldViolation(it.field, it.description) for it in request.field_violations]
        elif detail.Unpack(quota := error_details_pb2.QuotaFailure()):
            quotas += [QuotaViolation(it.subject, it.description) for it in quota.violations]
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, ServerError)
    if reason.startswith(_EVICTED):
        kind = SessionEvicted
    is_local = details is None and code in _LOCAL_CODES
    if is_local and any(sign in message for sign in _BROKEN_STREAM):
        kind = ConnectionLost
    return kind(
        code,
        message,
        reason=reason,
        metadata=metadata,
        fields=fields,
        quotas=quotas,
        retry_after=retry_after,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
