"""Finds the generated stubs by the name of the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from charlstm.flow import Rpc
from charlstm.v1 import (
    generation_pb2_grpc,
    model_pb2_grpc,
    server_pb2_grpc,
    session_pb2_grpc,
    training_pb2_grpc,
)

_STUBS: dict[str, Callable[[Any], object]] = {
    "GenerationService": generation_pb2_grpc.GenerationServiceStub,
    "ModelService": model_pb2_grpc.ModelServiceStub,
    "ServerService": server_pb2_grpc.ServerServiceStub,
    "SessionService": session_pb2_grpc.SessionServiceStub,
    "TrainingService": training_pb2_grpc.TrainingServiceStub,
}


class StubCache:
    """The stubs of the channels of a client, by the number of the channel."""

    def __init__(self) -> None:
        self._stubs: dict[tuple[int, str], object] = {}

    def method(
        self, index: int, channel: grpc.Channel | grpc.aio.Channel, rpc: Rpc
    ) -> Callable[..., Any]:
        """Returns a method of the server that a channel connects to."""
        key = (index, rpc.service)
        if key not in self._stubs:
            self._stubs[key] = _STUBS[rpc.service](channel)
        found: Callable[..., Any] = getattr(self._stubs[key], rpc.method)
        return found
