"""A server that stops when it is called for the second time."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK, END_STREAM, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STATUS_200 = b"\x88"
EMPTY_MESSAGE = bytes(5)
FIRST_STREAM = 1
NO_ERROR = 0


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    """A literal field of HPACK that is not indexed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class LeavingServer:
    """Answers the first call with an empty message. The second call it rejects with
    GOAWAY as not processed, as a server that stops does, and is gone."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError, EOFError):
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        def read(size: int) -> bytes:
            received = connection.recv(size, socket.MSG_WAITALL)
            if len(received) < size:
                raise EOFError
            return received

        read(len(PREFACE))
        connection.sendall(_frame(SETTINGS, 0, 0))
        while True:
            head = read(9)
            payload = read(int.from_bytes(head[:3], "big"))
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            if kind in (SETTINGS, PING) and not flags & ACK:
                connection.sendall(_frame(kind, ACK, 0, payload if kind == PING else b""))
            if kind != DATA or not flags & END_STREAM:
                continue
            if stream != FIRST_STREAM:
                self._listener.close()
                last = struct.pack(">II", FIRST_STREAM, NO_ERROR)
                connection.sendall(_frame(GOAWAY, 0, 0, last))
                return
            connection.sendall(
                _frame(
                    HEADERS,
                    END_HEADERS,
                    stream,
                    STATUS_200 + _header(b"content-type", b"application/grpc"),
                )
                + _frame(DATA, 0, stream, EMPTY_MESSAGE)
                + _frame(HEADERS, END_HEADERS | END_STREAM, stream, _header(b"grpc-status", b"0"))
            )
