"""Opens many streams and reads all of them, in a process of its own, so that it
takes no time from the clients that are measured.

    python tests/attacks/greedy.py ADDRESS TOKEN STREAMS REQUEST

REQUEST is a serialized GenerateRequest in hexadecimal. Reads until its standard
input is closed, and then prints the number of bytes that it has received.
"""

import os
import select
import struct
import sys

from frames import ACK, PING, SETTINGS, WINDOW_UPDATE, Connection, frame, message, take_frames

GENERATE = "/charlstm.v1.GenerationService/Generate"

# The largest window in HTTP/2, so that the server never waits for this client.
WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65535

STREAMS_PER_CONNECTION = 250


class Reader:
    """A connection whose frames are counted and dropped."""

    def __init__(self, address):
        self.connection = Connection(address, initial_window=WINDOW)
        self.socket = self.connection.socket
        self._extend_window(WINDOW - DEFAULT_WINDOW)
        self.received = bytearray()
        self.bytes = 0
        self.unacknowledged = 0

    def _extend_window(self, by):
        self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", by)))

    def read(self):
        """Reads what is there. Returns whether the connection is still open."""
        more = self.socket.recv(1 << 20)
        self.bytes += len(more)
        self.unacknowledged += len(more)
        if self.unacknowledged > 1 << 24:
            self._extend_window(self.unacknowledged)
            self.unacknowledged = 0
        self.received += more
        for kind, flags, _, payload in take_frames(self.received):
            if kind == PING and not flags & ACK:
                self.socket.sendall(frame(PING, ACK, 0, payload))
            if kind == SETTINGS and not flags & ACK:
                self.socket.sendall(frame(SETTINGS, ACK, 0))
        return bool(more)


def main():
    address, token, streams, request = sys.argv[1:]
    streams = int(streams)
    request = message(bytes.fromhex(request))
    # Stands for a client on another machine, which takes no time from the server.
    os.nice(10)
    readers = []
    for number in range(streams):
        if number % STREAMS_PER_CONNECTION == 0:
            readers.append(Reader(address))
        readers[-1].connection.call(
            GENERATE, request, end=True, authorization=f"Bearer {token}")
    sockets = {reader.socket: reader for reader in readers}
    while True:
        ready, _, _ = select.select([sys.stdin, *sockets], [], [])
        for one in ready:
            if one is sys.stdin:
                print(sum(reader.bytes for reader in readers))
                return
            if not sockets[one].read():
                raise SystemExit("the server has closed the connection")


if __name__ == "__main__":
    main()
