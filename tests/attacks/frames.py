"""HTTP/2 by single frames, for what no client library does."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RESET, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
CANCEL = 8


def frame(kind, flags, stream, payload=b""):
    """Returns one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(initial_window=None):
    """Returns a SETTINGS frame."""
    payload = b"" if initial_window is None else struct.pack(">HI", 4, initial_window)
    return frame(SETTINGS, 0, 0, payload)


def _length(number, bits):
    """Returns an integer of HPACK with a prefix of this many bits."""
    limit = (1 << bits) - 1
    if number < limit:
        return bytes([number])
    encoded = bytearray([limit])
    number -= limit
    while number >= 128:
        encoded.append(number % 128 + 128)
        number //= 128
    encoded.append(number)
    return bytes(encoded)


def headers(stream, path, end=False, **further):
    """Returns the HEADERS frame of a call."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
        **{name.replace("_", "-"): value for name, value in further.items()},
    }
    block = b""
    for name, value in fields.items():
        # Literal fields that are not indexed, with new names.
        block += b"\x00" + _length(len(name), 7) + name.encode()
        block += _length(len(value), 7) + value.encode()
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, stream, block)


def message(protobuf):
    """Returns a message as gRPC frames it."""
    return b"\x00" + struct.pack(">I", len(protobuf)) + protobuf


class Connection:
    """One connection, with frames out and whatever comes in."""

    def __init__(self, address, initial_window=None):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.sendall(PREFACE + settings(initial_window))
        self.stream = -1

    def call(self, path, data=None, end=False, **further):
        """Begins a call, and returns its stream."""
        self.stream += 2
        out = headers(self.stream, path, end=end and data is None, **further)
        if data is not None:
            out += frame(DATA, END_STREAM if end else 0, self.stream, data)
        self.socket.sendall(out)
        return self.stream

    def frames(self, seconds):
        """Yields (kind, stream, payload) until the connection ends, or nothing
        has come for this time."""
        self.socket.settimeout(seconds)
        received = b""
        while True:
            while len(received) >= 9:
                length = int.from_bytes(received[:3], "big")
                if len(received) < 9 + length:
                    break
                stream = int.from_bytes(received[5:9], "big")
                yield received[3], stream, received[9:9 + length]
                received = received[9 + length:]
            try:
                more = self.socket.recv(65536)
            except OSError:
                return
            if not more:
                return
            received += more

    def close(self):
        self.socket.close()
