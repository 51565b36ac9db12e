"""Damaged files, files of other versions, and backups."""

import shutil
import subprocess
import time

import grpc

from base import corpus
from client import Client, Interrupted
from ledger import PROMPT, Broken, Ledger
from server import ROOT, Server, StartFailed, program
from workload import Workload


def damaged_files(base, folder, rng, _count):
    """Every file of the data folder truncated, emptied, flipped or replaced."""
    source = folder / "source"
    base.copy(source)
    server = Server(source)
    client = Client(server.address)
    for number in range(6):
        client.generate(session=f"s{number}", chars=20, prime=PROMPT, seed=1, model="verse@1")
    client.start_training(corpus(3000), model="long", hidden_size=16, batch_size=8,
                          sequence_length=20, epochs=5000, seed=7, sample_chars=0)
    time.sleep(1)
    client.close()
    server.stop()
    files = sorted(path.relative_to(source / "data") for path in (source / "data").rglob("*")
                   if path.is_file() and path.name != "lock")
    cases = refused = 0
    for name in files:
        # Some bits make the library that reads the database panic.
        flips = 16 if name.suffix == ".redb" else 1
        for kind in ("empty", "half", *["flip"] * flips, "garbage", "other version"):
            case = folder / "case"
            shutil.rmtree(case, ignore_errors=True)
            case.mkdir()
            shutil.copytree(source / "data", case / "data")
            target = case / "data" / name
            content = bytearray(target.read_bytes())
            if kind == "empty":
                content = b""
            elif kind == "half":
                content = content[:len(content) // 2]
            elif kind == "flip" and content:
                # Most of the database is empty.
                used = [at for at, byte in enumerate(content) if byte] or [0]
                content[rng.choice(used)] ^= 1 << rng.randrange(8)
            elif kind == "garbage":
                content = bytes(rng.randrange(256) for _ in range(200))
            elif kind == "other version":
                content = of_version_0_1(name)
                if content is None:
                    continue
            target.write_bytes(content)
            cases += 1
            before = {path for path in (case / "data").rglob("*") if path.is_file()}
            try:
                server = Server(case)
            except StartFailed as error:
                refused += 1
                if error.code != 1 or "panicked" in error.log:
                    raise Broken(f"{name} {kind}: {error}") from error
                missing = [path for path in before if not path.exists()]
                if missing:
                    raise Broken(f"{name} {kind}: a failed start removed {missing}") from error
                continue
            client = Client(server.address)
            try:
                check_undamaged(client, name)
            except (grpc.RpcError, Interrupted) as error:
                raise Broken(f"{name} {kind}: {error}") from error
            finally:
                client.close()
                server.kill()
            if "panicked" in server.log():
                raise Broken(f"{name} {kind}: a thread panicked")
    return f"{len(files)} files, {cases} cases, {refused} refused at the start with a message"


def of_version_0_1(name):
    """Returns the content of a file of this name in the data of version 0.1."""
    old = sorted((ROOT / "tests/golden/data-0.1").rglob(name.name))
    return old[0].read_bytes() if old else None


def check_undamaged(client, damaged):
    """Checks that what does not depend on the damaged file works."""
    parts = damaged.parts
    if parts[0] != "models":
        client.generate(chars=5, prime=PROMPT, seed=1, model="verse@1")
    if parts[0] != "sessions":
        ids = set(client.list_sessions())
        if ids != {f"s{number}" for number in range(6)}:
            raise Broken(f"damage of {damaged} lost sessions: {sorted(ids)} remain")


def version_0_1(_base, folder, _rng, _count):
    """A data folder of version 0.1 is read, and its sessions continue."""
    shutil.copytree(ROOT / "tests/golden/data-0.1", folder / "data")
    lines = (ROOT / "tests/golden/data-0.1.texts").read_text().splitlines()
    texts = dict(line.rstrip("|").split("|", 1) for line in lines)
    for attempt in range(2):
        server = Server(folder)
        client = Client(server.address)
        if set(client.list_sessions()) != set(texts):
            raise Broken(f"start {attempt + 1}: sessions {client.list_sessions()}")
        try:
            client.generate(session="poem", chars=1)
            raise Broken("an evicted session of version 0.1 was started afresh")
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
        client.close()
        server.kill()
    server = Server(folder)
    client = Client(server.address)
    for name, expected in texts.items():
        # The default of the command line, which made the expected texts.
        text, _ = client.generate(session=name, chars=len(expected), top_k=3)
        if text != expected:
            raise Broken(f"session {name}: expected {expected!r}, got {text!r}")
    client.close()
    server.stop()
    return f"{len(texts)} sessions"


def backup(base, folder, rng, _count):
    """A backup made under load starts a server with everything acknowledged before it."""
    base.copy(folder)
    ledger = Ledger(base.reference)
    server = Server(folder)
    client = Client(server.address)
    positions = {}
    for number in range(10):
        _, done = client.generate(session=f"b{number}", chars=10 + number, prime=PROMPT, seed=1,
                                  model="verse@1")
        positions[f"b{number}"] = done.position
    load = Workload(server.address, ledger, base.model_file, rng, publish=False)
    load.start()
    time.sleep(0.3)
    copy = folder / "copy" / "data"
    copy.parent.mkdir()
    made = subprocess.run([str(program()), "backup", str(copy), "--data-dir", str(server.data)],
                          capture_output=True, text=True, timeout=60, check=False)
    server.kill()
    load.join()
    client.close()
    if made.returncode != 0:
        raise Broken(f"backup failed: {made.stderr}")
    server = Server(folder / "copy")
    client = Client(server.address)
    for name, position in positions.items():
        if client.position(name) != position:
            raise Broken(f"the backup has {name} at {client.position(name)}, not {position}")
    client.generate(chars=5, prime=PROMPT, seed=1, model="verse@1")
    client.close()
    server.stop()
    return f"{len(positions)} sessions"
