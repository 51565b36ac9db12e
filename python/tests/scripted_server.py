"""A server that gives the answers that a test has written down.

It is for failures that the real server cannot be made to have at a chosen moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from charlstm.v1 import generation_pb2 as pb
from charlstm.v1 import session_pb2

TEXT = "a text that is always the same, whoever asks for it"


def failure(
    code: grpc.StatusCode,
    reason: str,
    *,
    retry_after: float | None = None,
    metadata: dict[str, str] | None = None,
    details: tuple[Message, ...] = (),
) -> Failure:
    """An error as the server sends it."""
    messages: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason, domain="charlstm.v1", metadata=metadata),
        *details,
    ]
    if retry_after is not None:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromMilliseconds(round(retry_after * 1000))
        messages.append(delay)
    status = status_pb2.Status(code=code.value[0], message=reason.lower())
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        status.details.append(packed)
    return Failure(code, reason.lower(), status)


class Failure:
    def __init__(self, code: grpc.StatusCode, message: str, details: status_pb2.Status) -> None:
        self.code = code
        self.message = message
        self.details = details

    def abort(self, context: grpc.ServicerContext) -> None:
        trailer = ("grpc-status-details-bin", self.details.SerializeToString())
        context.set_trailing_metadata((trailer,))
        context.abort(self.code, self.message)


#: What a call does after a number of characters: it fails, or sends `finished`
#: with a reason, with the position that many characters further than its text.
End = Failure | int


class ScriptedServer:
    """Answers each generation with the next entry of a script.

    An entry is the number of characters to send (negative: not even `started`), how
    the call ends, and the text.
    """

    def __init__(self, *script: tuple[int, End] | tuple[int, End, str]) -> None:
        self.script = list(script)
        self.unknown_chars = 0
        self.requests: list[pb.GenerateRequest] = []
        self.sessions: list[session_pb2.Session] = []
        self.get_session_failures: list[Failure] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handlers: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {
            "GenerationService": {
                "Generate": grpc.unary_stream_rpc_method_handler(
                    self._generate,
                    request_deserializer=pb.GenerateRequest.FromString,
                    response_serializer=pb.GenerateResponse.SerializeToString,
                )
            },
            "SessionService": {
                "GetSession": grpc.unary_unary_rpc_method_handler(
                    self._get_session,
                    request_deserializer=session_pb2.GetSessionRequest.FromString,
                    response_serializer=session_pb2.GetSessionResponse.SerializeToString,
                )
            },
        }
        for service, methods in handlers.items():
            handler = grpc.method_handlers_generic_handler(f"charlstm.v1.{service}", methods)
            self._server.add_generic_rpc_handlers((handler,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None)

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(
        self, request: pb.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        chars, end, *rest = self.script.pop(0)
        text = rest[0] if rest else TEXT
        unknown = self.unknown_chars if request.prime else 0
        start = request.expected_position + len(request.prime) - unknown
        if chars >= 0:
            started = pb.GenerationStarted(
                session_id=request.session_id,
                model="book",
                version=3,
                seed=request.sampling.seed or 99,
                position=request.expected_position,
                precision="int8",
                unknown_chars=unknown,
            )
            yield pb.GenerateResponse(started=started)
        for index, character in enumerate(text[: max(chars, 0)], start + 1):
            piece = pb.GeneratedText(text=character, position=index, logprobs=[-1.0])
            yield pb.GenerateResponse(text=piece)
        if isinstance(end, Failure):
            end.abort(context)
        else:
            finished = pb.GenerationFinished(
                reason=pb.FinishReason.ValueType(end),
                chars=chars,
                position=start + chars,
                seconds=1.0,
            )
            yield pb.GenerateResponse(finished=finished)

    def _get_session(
        self, request: session_pb2.GetSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.GetSessionResponse:
        if self.get_session_failures:
            self.get_session_failures.pop(0).abort(context)
        if not self.sessions:
            failure(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND").abort(context)
        session = self.sessions.pop(0) if len(self.sessions) > 1 else self.sessions[0]
        return session_pb2.GetSessionResponse(session=session)


def lost() -> Failure:
    """A server that is shutting down."""
    return failure(grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
