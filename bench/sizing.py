#!/usr/bin/env python3
"""Measures what a server needs: memory and disk for a model, a session, a stream, a
connection and a training, and the characters per second of one core.
docs/operations.md, section Sizing, has the results.

    bench/sizing.py [--sessions N] [--streams N] [--connections N] [--seconds N]

Requires grpcio: run it with the Python of `make python`, .venv/bin/python. Uses the
programs in CARGO_TARGET_DIR/release. The model has the notebook's size and is trained
for a few steps only: what it needs does not depend on its quality.
"""

import argparse
import asyncio
import re
import socket
import tempfile
import time
import urllib.request
from pathlib import Path

import grpc
import limits
import many
import measure

# Streams of the load test of one core.
LOADS = (1, 16, 64)

# Calls that are made at once to create sessions.
CONCURRENCY = 32

# Sessions that are created before the measured ones: one-time allocations must not count.
WARMUP_SESSIONS = 500

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def main() -> int:
    options = arguments()
    print(f"{measure.machine()}, one generation thread\n", flush=True)
    rows = [("what", "measured")]
    with tempfile.TemporaryDirectory(prefix="charlstm-sizing-") as name:
        folder = Path(name)
        pb = limits.protos(name)
        rows += training(options, folder)
        rows += serving(options, folder, pb)
    print(measure.aligned(rows), flush=True)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=5, help="duration of each load test")
    options = parser.parse_args()
    options.threads = 1
    return options


def resident(process) -> int:
    """Returns the resident memory in bytes, once it has settled."""
    time.sleep(1)
    return many.resident(process.pid)


def client(address: str, *arguments: str) -> str:
    return measure.call([str(measure.RELEASE / "charlstm-client"), "--addr", address, *arguments])


def training(options, folder: Path) -> list:
    """Trains the model, and exports it into the folder."""
    with measure.server(options) as (process, address, data):
        before = resident(process)
        limits.train(address, folder / "text.txt")
        needed = measure.peak_memory(process.pid) - before
        client(address, "models", "export", many.MODEL, "--output", str(folder / "model"))
        log = (data / "server.log").read_text()
    estimate = int(re.search(r"memory_mib=(\d+)", log).group(1)) << 20
    batch, sequence, hidden, layers, _ = limits.SIZES
    size = f"{layers} layers of {hidden}, {batch} sequences of {sequence}"
    return [
        (f"memory of a training ({size})", megabytes(needed)),
        ("  as estimated before it starts", megabytes(estimate)),
    ]


def serving(options, folder: Path, pb) -> list:
    """Loads the model, and adds sessions, streams and connections."""
    measured = measure.server(options)
    measured.flags += (
        "--max-batch", str(options.streams), "--session-cache-bytes", "1MB",
        "--max-connections", str(options.connections + 100), "--metrics-listen", "127.0.0.1:0",
    )
    rows = []
    with measured as (process, address, data):
        target = address.removeprefix("http://")
        start = resident(process)
        rows.append(("memory at start", megabytes(start)))
        client(address, "models", "import", str(folder / "model"), "--model", many.MODEL)
        shown = client(address, "--json", "models", "show", many.MODEL)
        parameters = int(re.search(r'"parameters":\s*"?(\d+)', shown).group(1))
        client(address, "generate", "--model", many.MODEL, "--prime", many.ALPHABET[0],
               "--length", "100")
        loaded = resident(process)
        rows.append((
            f"memory of a loaded model ({parameters:,} parameters)",
            f"{megabytes(loaded - start)}, {(loaded - start) / parameters:.1f} bytes per parameter"))
        asyncio.run(create_sessions(pb, target, 0, WARMUP_SESSIONS))
        before, stored = resident(process), stored_bytes(data)
        count = options.sessions
        asyncio.run(create_sessions(pb, target, WARMUP_SESSIONS, count))
        rows.append(("memory of a session", f"{(resident(process) - before) / count:,.0f} bytes"))
        rows.append(("disk of a session", f"{(stored_bytes(data) - stored) / count:,.0f} bytes"))
        before = resident(process)
        sockets = [connect(target) for _ in range(options.connections)]
        rows.append((
            "memory of an idle connection",
            f"{(resident(process) - before) / options.connections / 1e3:,.1f} KB"))
        for one in sockets:
            one.close()
        before = resident(process)
        needed = asyncio.run(open_streams(pb, target, process, options.streams)) - before
        rows.append((
            f"memory of a running generation (of {options.streams})",
            f"{needed / options.streams / 1e3:,.0f} KB"))
        for streams in LOADS:
            measure.progress(f"{streams} streams")
            speed = measure.load(address, streams, options.seconds)["chars_per_second"]
            rows.append((f"characters per second of a core, {streams} streams", f"{speed:,.0f}"))
    return rows


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def stored_bytes(data: Path) -> int:
    """Returns the size of all stored sessions in bytes. Their file grows in larger
    steps."""
    log = (data / "server.log").read_text()
    address = re.search(r"serving metrics.* address=(\S+)", log).group(1)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as page:
        found = re.search(r"^charlstm_session_bytes (\d+)", page.read().decode(), re.MULTILINE)
    return int(found.group(1))


def connect(target: str) -> socket.socket:
    """Opens a connection that has begun HTTP/2 and does nothing more."""
    host, port = target.rsplit(":", 1)
    one = socket.create_connection((host, int(port)), timeout=30)
    one.sendall(PREFACE)
    return one


async def create_sessions(pb, target: str, first: int, count: int) -> None:
    """Creates sessions with some characters, numbered from `first`."""
    measure.progress(f"{count:,} sessions")
    async with grpc.aio.insecure_channel(target) as channel:
        stub = pb.GenerationServiceStub(channel)

        async def create(number: int) -> None:
            await stub.GenerateText(pb.GenerateTextRequest(
                model=many.MODEL, prime=many.ALPHABET[:3], max_chars=2,
                session_id=f"s-{first + number}"))

        await many.each(count, CONCURRENCY, create)


async def open_streams(pb, target: str, process, count: int) -> int:
    """Opens streams that are read, and returns the memory of the server then."""
    measure.progress(f"{count} streams at once")
    async with grpc.aio.insecure_channel(target) as channel:
        stub = pb.GenerationServiceStub(channel)
        request = pb.GenerateRequest(
            model=many.MODEL, prime=many.ALPHABET[:3], max_chars=1_000_000)
        readers = [asyncio.create_task(many.read(stub.Generate(request))) for _ in range(count)]
        await asyncio.sleep(5)
        memory = await asyncio.to_thread(resident, process)
        if any(reader.done() for reader in readers):
            raise measure.Failure("a stream ended before the memory was measured")
        # Cancels the calls, too.
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return memory


if __name__ == "__main__":
    measure.run(main)
