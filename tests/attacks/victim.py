"""The attacked server, and what an attack does to it and to a well-behaved client."""

import contextlib
import pathlib
import re
import statistics
import threading
import time
import urllib.request

import grpc

from client import Client, reason_of
from server import Server

# Memory that the server may take in addition, in megabytes.
MORE_MEMORY = 50

# Percentiles below this, in milliseconds, are noise of a busy machine.
NOISE = 50


class Violated(Exception):
    """The server did not behave as required."""


def require(condition, text):
    """Raises `Violated` unless the condition holds."""
    if not condition:
        raise Violated(text)


def memory_mb(server):
    """Returns the resident memory of the server in megabytes."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024


def threads(server):
    return len(list(pathlib.Path(f"/proc/{server.process.pid}/task").iterdir()))


def open_files(server):
    return len(list(pathlib.Path(f"/proc/{server.process.pid}/fd").iterdir()))


def metrics_address(server):
    """Returns the address of the metrics that the server has logged."""
    found = re.findall(r"serving metrics.* address=(\S+)", server.log())
    require(found, "the server did not log the address of its metrics")
    return found[-1]


def metric(server, name):
    """Returns the sum of all samples of a metric, or the one with these labels."""
    with urllib.request.urlopen(f"http://{metrics_address(server)}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    sample = re.compile(re.escape(name) + (" " if "{" in name else "[ {]"))
    values = [line.rsplit(" ", 1)[1] for line in lines if sample.match(line)]
    return sum(map(float, values))


def wait_for(condition, seconds, text):
    """Waits until the condition holds; `text` says what is then the case."""
    until = time.monotonic() + seconds
    while not condition():
        require(time.monotonic() < until, f"not within {seconds} s: {text}")
        time.sleep(0.1)


class GoodClient:
    """A client that generates short texts, one after the other, and measures
    how long each takes."""

    def __init__(self, address, chars=20, ca=None, token=None):
        self.client = Client(address, ca=ca, token=token)
        self.chars = chars
        self.seconds = []
        self.stopping = threading.Event()
        self.failure = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        while not self.stopping.is_set():
            begin = time.monotonic()
            try:
                text, _ = self.client.generate(model="verse", prime="arma ", chars=self.chars, seed=1)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    time.sleep(0.05)
                    continue
                self.failure = f"{error.code()} {reason_of(error)}"
                return
            except Exception as error:  # noqa: BLE001 (reported below)
                self.failure = repr(error)
                return
            self.seconds.append(time.monotonic() - begin)
            if len(text) != self.chars:
                self.failure = f"{len(text)} characters instead of {self.chars}"
                return
            time.sleep(0.01)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(timeout=60)
        require(not self.thread.is_alive(), "the well-behaved client hangs")
        self.client.close()

    def percentile(self, part):
        """Returns a percentile of the times, in milliseconds."""
        require(self.failure is None, f"the well-behaved client failed: {self.failure}")
        require(len(self.seconds) >= 5, f"only {len(self.seconds)} calls of the good client ended")
        cut = statistics.quantiles(self.seconds, n=100, method="inclusive")
        return cut[round(part * 100) - 1] * 1000


def measure(address, seconds, ca=None):
    """Returns the 99th percentile of a well-behaved client, in milliseconds."""
    with GoodClient(address, ca=ca) as client:
        time.sleep(seconds)
    return client.percentile(0.99)


@contextlib.contextmanager
def serving(folder, *flags, **options):
    """Runs a server with the model `verse`."""
    server = Server(folder, flags=["--metrics-listen", "127.0.0.1:0", *flags], **options)
    try:
        yield server
    finally:
        server.kill()


def attacked(server, attack, full, ca=None):
    """Runs an attack next to a well-behaved client, which uses TLS with the
    authority `ca` if it is given. Requires that neither latency nor memory grow
    much; returns the figures and what the attack has returned."""
    seconds = 10 if full else 3
    idle = measure(server.address, seconds, ca)
    before = memory_mb(server)
    with GoodClient(server.address, ca=ca) as good:
        result = attack()
        time.sleep(seconds)
    during = good.percentile(0.99)
    grown = memory_mb(server) - before
    require(during <= max(2 * idle, NOISE), f"p99 {idle:.0f} ms idle, {during:.0f} ms attacked")
    require(grown <= MORE_MEMORY, f"memory grew by {grown:.0f} MB")
    return f"p99 {idle:.0f} -> {during:.0f} ms, memory +{max(grown, 0):.0f} MB", result


def assert_unharmed(server, attack, full, ca=None):
    """Runs an attack, a function that returns what ends it, as `attacked` does, and
    ends it. Requires that no connection and no thread remains; returns the
    figures."""
    figures, end = attacked(server, attack, full, ca)
    end()
    wait_for(lambda: metric(server, "charlstm_connections") <= 1, 30, "connections are closed")
    wait_for(lambda: threads(server) < 60, 30, "threads have ended")
    return figures
