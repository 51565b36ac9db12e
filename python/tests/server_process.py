"""The server program under test, and a proxy that breaks its connections."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

PROGRAM = os.environ.get("CHARLSTM_SERVER", "")

#: A server that hangs fails the test; ample for a slow machine.
START_SECONDS = 60
STOP_SECONDS = 60


#: Runs a command in a namespace of its own.
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
MOUNT = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'


def can_mount() -> bool:
    """Whether this system lets a test mount a disk."""
    try:
        return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def clean_environment() -> dict[str, str]:
    """The environment without the settings of the person who runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CHARLSTM_")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """The program `charlstm-server` on a port and a data folder of its own."""

    def __init__(self, folder: Path, *flags: str, disk_bytes: int | None = None) -> None:
        """Starts it; with `disk_bytes`, its data folder is a disk of that size."""
        self.folder = folder
        self.flags = flags
        self.disk_bytes = disk_bytes
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, on the same port and folder as before."""
        command = [
            *self._on_own_disk(),
            PROGRAM,
            *("--listen", self.address, "--device", "cpu"),
            *("--data-dir", str(self.folder / "data"), *self.flags),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=clean_environment()
            )
        # Ends the wait for the line if the server hangs.
        watchdog = threading.Timer(START_SECONDS, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        watchdog.cancel()
        assert line.startswith("listening on "), self.log()

    def _on_own_disk(self) -> list[str]:
        """The start of a command that runs where a disk is mounted on the data folder."""
        if self.disk_bytes is None:
            return []
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        return [*UNSHARE, "sh", "-c", MOUNT, "sh", f"size={self.disk_bytes}", str(data)]

    def resize_disk(self, disk_bytes: int) -> None:
        """Gives the disk of the data folder another size."""
        assert self.process is not None
        namespace = ("nsenter", "-t", str(self.process.pid), "--user", "--mount")
        remount = ("mount", "-o", f"remount,size={disk_bytes}", str(self.folder / "data"))
        subprocess.run([*namespace, "--preserve-credentials", *remount], check=True)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Waits for its end, and returns its exit code."""
        assert self.process is not None
        code = self.process.wait(STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    def kill(self) -> None:
        """Kills it, as a power failure would."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Stops it cleanly."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.log()

    def close(self) -> None:
        if self.process is not None:
            self.kill()

    def log(self) -> str:
        return (self.folder / "server.log").read_text()


class Proxy:
    """Forwards connections to a server, and breaks them on demand."""

    def __init__(self, server: ServerProcess, cuts: tuple[int, ...] = ()) -> None:
        self._server = server
        #: After so many bytes from the server, a connection breaks; then the next
        #: number applies.
        self.cuts = list(cuts)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._server.port))
            except OSError:
                client.close()
                continue
            self.connections += 1
            for arguments in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, from_server: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1024):
                allowed = self._allow(len(data)) if from_server else len(data)
                target.sendall(data[:allowed])
                if allowed < len(data):
                    break
        for connection in (source, target):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _allow(self, count: int) -> int:
        """Returns how many of `count` bytes to forward before the connection breaks."""
        with self._lock:
            if not self.cuts:
                return count
            allowed = min(self.cuts[0], count)
            self.cuts[0] -= allowed
            if allowed < count:
                self.cuts.pop(0)
            return allowed
