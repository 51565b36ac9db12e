"""Starts and stops the release build of the server, for the demo and the
benchmarks."""

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"

# Timeouts in seconds for starting and stopping the server.
START_SECONDS = 60
STOP_SECONDS = 60


class Failure(Exception):
    """An expected failure: shown as a message, without a traceback."""


@contextmanager
def running_server(data: Path, log: Path, *flags: str):
    """Runs a server on a free port; yields its process and its address. Kills
    the server at the end if it is still running."""
    command = [RELEASE / "charlstm-server", "--listen", "127.0.0.1:0", "--data-dir", data, *flags]
    with log.open("wb") as errors:
        # In its own session, so that Ctrl-C interrupts only the script, which
        # then stops the server.
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
    """Waits for the line that the server prints when it is ready; returns the
    address in it."""
    # Killing a server that hangs ends the wait.
    before = signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(START_SECONDS)
    line = process.stdout.readline().strip()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    prefix = "listening on "
    if not line.startswith(prefix):
        raise Failure(f"expected the server to print its address, got {line!r}")
    return line[len(prefix) :]


def stop_cleanly(process: subprocess.Popen) -> None:
    """Sends SIGTERM; raises Failure unless the server exits with code 0."""
    process.terminate()
    try:
        code = process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failure(f"the server did not stop within {STOP_SECONDS} s of SIGTERM") from None
    if code != 0:
        raise Failure(f"the server exited with code {code}, expected 0")
