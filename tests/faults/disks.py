"""Full, read-only and slow disks."""

import os
import pathlib
import shutil
import subprocess
import time

import grpc

from base import corpus, train
from client import Client, Interrupted, reason_of, retry
from ledger import PROMPT, Broken, Ledger, Reference
from server import Server, can_mount, on_small_disk
from workload import Workload

# Sessions of 16 KB each that the disk of 256 MB has no room for.
MAX_STORED = 30_000

def full_disk(_base, folder, _rng, _count):
    """A full disk: calls in sessions are refused before they generate, and it recovers."""
    if not can_mount():
        if os.environ.get("CHARLSTM_REQUIRE_ALL"):
            raise Broken("this system does not let a test mount a file system")
        return "skipped: this system does not let a test mount a file system"
    data = folder / "data"
    data.mkdir()
    # A limit in bytes that is not reached: nothing is evicted before the disk
    # is full.
    flags = ["--session-store-bytes", "10GB"]
    server = Server(folder, flags, prefix=on_small_disk(data, 256))
    client = Client(server.address)
    # Wide, so that its sessions fill the disk within seconds.
    train(client, "verse", hidden_size=512)
    reference = Reference(client, "verse@1", 400, [1])
    text, done = client.generate(session="tale", chars=30, prime=PROMPT, seed=1, model="verse@1")
    reference.check(1, len(PROMPT), text, "tale")
    disk = pathlib.Path(f"/proc/{server.process.pid}/root") / str(data).lstrip("/")
    ballast = disk / "ballast"
    fill(ballast)
    # The store has reserved space for what it has accepted, and uses it up.
    stored, refused = {}, 0
    while refused < 5 and len(stored) < MAX_STORED:
        name = f"full{len(stored)}"
        try:
            _, end = client.generate(session=name, chars=5, prime=PROMPT, seed=1,
                                     model="verse@1")
            stored[name] = end.position
        except grpc.RpcError as error:
            if reason_of(error) != "STORAGE_UNAVAILABLE":
                raise Broken(f"full disk: {error.code()} {reason_of(error)} "
                             f"{error.details()}") from error
            refused += 1
    if refused < 5:
        raise Broken(f"a full disk refused {refused} calls and stored {len(stored)}")
    if client.position("tale") != done.position:
        raise Broken(f"a full disk moved a session from {done.position} "
                     f"to {client.position('tale')}")
    client.generate(chars=20, prime=PROMPT, seed=1, model="verse@1")
    ballast.unlink()
    text, done = retry(lambda: client.generate(session="tale", chars=30, expected=done.position))
    reference.check(1, 30 + len(PROMPT), text, "tale after the full disk")
    for name, position in stored.items():
        if client.position(name) != position:
            raise Broken(f"{name} was acknowledged at {position}")
    client.close()
    server.kill()
    return f"{len(stored)} calls stored in reserved space, {refused} refused, then recovered"


def fill(path):
    """Writes a file until the disk is full to the last byte."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    for size in (65536, 4096, 1):
        try:
            while os.write(file, b"\1" * size):
                pass
        except OSError:
            continue
    os.close(file)


def faulty_disk(folder):
    """Returns the environment of a server whose disk fails on demand, and the file whose
    content says how (faulty_disk.c); or None without a C compiler."""
    compiler = next((name for name in ("gcc", "g++", "cc") if shutil.which(name)), None)
    if compiler is None:
        if os.environ.get("CHARLSTM_REQUIRE_ALL"):
            raise Broken("there is no C compiler")
        return None
    library, mode = folder / "faulty_disk.so", folder / "mode"
    source = pathlib.Path(__file__).with_name("faulty_disk.c")
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-O1", str(source), "-o",
                    str(library), "-ldl"], check=True)
    mode.write_text("")
    return {"LD_PRELOAD": str(library), "FAULTY_DISK": str(folder / "data"),
            "FAULTY_DISK_MODE": str(mode)}, mode


def read_only_disk(base, folder, _rng, _count):
    """A disk that becomes read-only: calls in sessions are refused before they generate, and
    the server recovers."""
    base.copy(folder)
    disk = faulty_disk(folder)
    if disk is None:
        return "skipped: there is no C compiler"
    environment, mode = disk
    server = Server(folder, environment=environment)
    client = Client(server.address)
    reference = base.reference
    text, done = client.generate(session="tale", chars=30, prime=PROMPT, seed=1, model="verse@1")
    reference.check(1, len(PROMPT), text, "tale")
    mode.write_text("read-only")
    calls = {
        "generate": lambda: client.generate(session="tale", chars=5, expected=done.position),
        "first call": lambda: client.generate(session="new", chars=5, prime=PROMPT, seed=1,
                                              expected=0, model="verse@1"),
        "fork": lambda: client.fork("tale", "fork"),
        "delete": lambda: client.delete("tale"),
        "import": lambda: client.import_session(client.export("tale"), "copy"),
        "model import": lambda: client.import_model(base.model_file, "copy"),
        "training": lambda: client.start_training(corpus(3000), model="book", hidden_size=16),
    }
    for round_number in range(2):
        for name, call in calls.items():
            try:
                answer = call()
            except grpc.RpcError as error:
                if reason_of(error) not in {"STORAGE_UNAVAILABLE", "DATA_FOLDER_NOT_WRITABLE"}:
                    raise Broken(f"read-only disk, {name}: {error.code()} {reason_of(error)} "
                                 f"{error.details()}") from error
                continue
            raise Broken(f"read-only disk, {name}: acknowledged {answer} in round {round_number}")
    if client.position("tale") != done.position:
        raise Broken(f"a read-only disk moved a session to {client.position('tale')}")
    client.generate(chars=20, prime=PROMPT, seed=1, model="verse@1")
    if client.position("new") is not None or client.position("fork") is not None:
        raise Broken("a refused change is visible")
    mode.write_text("")
    text, done = retry(lambda: client.generate(session="tale", chars=30, expected=done.position))
    reference.check(1, done.position - 30, text, "tale after the read-only disk")
    for call in ("first call", "fork", "import", "model import", "training"):
        retry(calls[call])
    client.close()
    server.kill()
    server = Server(folder)
    client = Client(server.address)
    for name in ("tale", "fork", "copy"):
        if client.position(name) != done.position:
            raise Broken(f"{name} is at {client.position(name)} after a crash")
    client.close()
    server.stop()
    return f"{2 * len(calls)} changes refused, then recovered"


def slow_disk(base, folder, rng, count):
    """100 ms for each sync: every acknowledged change is there after kill -9."""
    base.copy(folder)
    disk = faulty_disk(folder)
    if disk is None:
        return "skipped: there is no C compiler"
    environment, mode = disk
    mode.write_text("slow")
    ledger = Ledger(base.reference)
    calls = 0
    for number in range(count):
        server = Server(folder, environment=environment)
        load = Workload(server.address, ledger, base.model_file, rng, threads=8)
        load.start()
        time.sleep(2)
        server.kill()
        load.join()
        calls += load.calls
        server = Server(folder)
        client = Client(server.address)
        try:
            ledger.verify(client)
        except (Broken, grpc.RpcError, Interrupted) as error:
            raise Broken(f"after kill {number + 1}: {error}") from error
        client.close()
        server.stop()
    return f"{count} kills, {calls} calls, {ledger.acknowledged} acknowledged changes"
