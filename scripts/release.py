"""The release programs, run from Python: a server that is started on a free
port and stopped again. What is done with it is not here."""

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"

# Seconds that the server may take to start, and to stop.
START_SECONDS = 60
STOP_SECONDS = 60


class Failure(Exception):
    """Something went wrong that a message explains."""


@contextmanager
def running_server(data: Path, log: Path, *flags: str):
    """Runs a server on a free port; gives the process and its address. It is
    killed at the end, where it still runs."""
    command = [RELEASE / "charlstm-server", "--listen", "127.0.0.1:0", "--data-dir", data, *flags]
    with log.open("wb") as errors:
        # Its own session: Ctrl-C is for the script, which then stops it.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    try:
        yield process, listening_address(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def listening_address(process: subprocess.Popen) -> str:
    """The address in the one line that a server prints when it is ready."""
    # A server that hangs is killed, which ends the wait for its line.
    before = signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(START_SECONDS)
    line = process.stdout.readline().strip()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    prefix = "listening on "
    if not line.startswith(prefix):
        raise Failure(f"the server did not say where it listens, but {line!r}")
    return line[len(prefix) :]


def stop_cleanly(process: subprocess.Popen) -> None:
    """Sends SIGTERM; Failure unless it then ends with exit code 0."""
    process.terminate()
    try:
        code = process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failure(f"the server did not stop within {STOP_SECONDS} s of SIGTERM") from None
    if code != 0:
        raise Failure(f"the server ended with exit code {code}, not 0")
