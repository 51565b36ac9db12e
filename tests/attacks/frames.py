"""HTTP/2 by single frames, for what no client library does."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
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


def take_frames(received):
    """Returns the complete frames at the start of a bytearray, as (kind, flags,
    stream, payload), and removes them from it."""
    frames, start = [], 0
    while len(received) >= start + 9:
        length = int.from_bytes(received[start:start + 3], "big")
        end = start + 9 + length
        if len(received) < end:
            break
        kind, flags, stream = struct.unpack_from(">BBI", received, start + 3)
        frames.append((kind, flags, stream, bytes(received[start + 9:end])))
        start = end
    del received[:start]
    return frames


def connect(address):
    """Opens a connection that has sent nothing."""
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=30)


class Connection:
    """One connection, with frames out and whatever comes in."""

    def __init__(self, address, initial_window=None):
        self.socket = connect(address)
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
        received = bytearray()
        while True:
            for kind, _, stream, payload in take_frames(received):
                yield kind, stream, payload
            try:
                more = self.socket.recv(65536)
            except OSError:
                return
            if not more:
                return
            received += more

    def close(self):
        self.socket.close()
