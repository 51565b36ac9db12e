"""The program under test: starts, kills and stops a real charlstm-server."""

import os
import pathlib
import queue
import shutil
import signal
import subprocess
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Reached only by a server that hangs.
START_SECONDS = 60
STOP_SECONDS = 60


def program():
    """Returns the path of the server: CHARLSTM_SERVER, or the debug build."""
    path = pathlib.Path(os.environ.get("CHARLSTM_SERVER", ROOT / "target/debug/charlstm-server"))
    if not path.exists():
        raise SystemExit(f"{path} does not exist: run `cargo build -p charlstm-server` first")
    return path


class StartFailed(Exception):
    """The server exited before it listened; `code` and `log` say why."""

    def __init__(self, code, log):
        super().__init__(f"exit code {code}: {log[-600:]}")
        self.code = code
        self.log = log


class Server:
    """One process. Its data folder and log outlive it."""

    def __init__(self, folder, flags=(), prefix=(), environment=None, path=None):
        """`path`: of another program than the one under test."""
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        self.log_path = self.folder / "server.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CHARLSTM_")}
        clean.update(environment or {})
        command = [
            *prefix, str(path or program()), "--listen", "127.0.0.1:0", "--device", "cpu",
            "--threads", "2", "--data-dir", str(self.data), *flags,
        ]
        log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=clean
            )
        lines = queue.Queue()
        reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        reader.start()
        try:
            line = lines.get(timeout=START_SECONDS)
        except queue.Empty:
            self.kill()
            raise StartFailed(None, "the server neither listened nor exited") from None
        if not line.startswith("listening on "):
            code = self.process.wait(timeout=STOP_SECONDS)
            with open(self.log_path, "rb") as log:
                log.seek(log_start)
                raise StartFailed(code, log.read().decode(errors="replace"))
        self.address = line.split("://", 1)[1].strip()

    def _read(self, lines):
        for line in self.process.stdout:
            lines.put(line.decode())
        lines.put("")

    def signal(self, number):
        """Sends a signal."""
        self.process.send_signal(number)

    def kill(self):
        """Ends the process as a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Stops the server with SIGTERM and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        """Waits for the exit and returns the exit code."""
        return self.process.wait(timeout=STOP_SECONDS)

    def log(self):
        """Returns everything that was logged in this folder so far."""
        return self.log_path.read_text(errors="replace")


def can_mount():
    """Returns whether this system lets a test mount a file system of its own."""
    if shutil.which("unshare") is None:
        return False
    test = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


def on_small_disk(data, megabytes):
    """Returns the command prefix that runs a program with a small disk at `data`."""
    script = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'
    return [
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh",
        f"size={megabytes}m", str(data),
    ]
