"""The messages and stubs of the contract, generated from the .proto files.

Most programs need only :class:`charlstm.Client`. These modules are for calls that
it does not cover.
"""

import warnings as _warnings

with _warnings.catch_warnings():
    # Generated code runs with the version of protobuf that it was generated for
    # and with the next major version, where protobuf warns about it.
    _warnings.filterwarnings("ignore", message="Protobuf gencode version", category=UserWarning)
    from charlstm.v1 import (
        generation_pb2,
        generation_pb2_grpc,
        model_pb2,
        model_pb2_grpc,
        server_pb2,
        server_pb2_grpc,
        session_pb2,
        session_pb2_grpc,
        training_pb2,
        training_pb2_grpc,
    )

__all__ = [
    "generation_pb2",
    "generation_pb2_grpc",
    "model_pb2",
    "model_pb2_grpc",
    "server_pb2",
    "server_pb2_grpc",
    "session_pb2",
    "session_pb2_grpc",
    "training_pb2",
    "training_pb2_grpc",
]
