"""The faults: each scenario returns a line for the report, or raises."""

import json
import os
import pathlib
import pty
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import grpc

from client import Client, Interrupted, reason_of, retry
from ledger import PROMPT, Broken, Ledger, Reference
from server import Server, StartFailed, can_mount, on_small_disk, program
from workload import Workload

WORDS = "arma virumque cano Troiae qui primus ab oris".split()
REFERENCE_CHARS = 4100


def corpus(chars):
    """Returns verse with a simple rule, which a small network learns in seconds."""
    words = []
    length = 0
    number = 0
    while length < chars:
        word = WORDS[(number * number + number // 7) % len(WORDS)]
        words.append(word + ("\n" if number % 9 == 8 else " "))
        length += len(words[-1])
        number += 1
    return "".join(words)


def weights(file):
    """Returns the weights of a model file without its metadata."""
    length = int.from_bytes(file[:8], "little")
    return file[8 + length:]


def train(client, model, epochs=1, **spec):
    """Trains a small model and waits for it."""
    training = client.start_training(
        corpus(3000), model=model, hidden_size=16, num_layers=2, batch_size=8,
        sequence_length=20, epochs=epochs, seed=5, sample_chars=0, **spec)
    for event in client.training_events(training):
        if event.WhichOneof("event") == "finished":
            return training, event.finished
    raise Broken("the events of a training ended without `finished`")


class Base:
    """A server with one small model, its reference texts and its model file."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        server = Server(self.folder)
        client = Client(server.address)
        _, finished = train(client, "verse")
        if finished.version != 1:
            raise Broken(f"the first training published version {finished.version}")
        self.reference = Reference(client, "verse@1", REFERENCE_CHARS, range(1, 5))
        self.model_file = client.export_model("verse@1")
        client.close()
        code = server.stop()
        if code != 0:
            raise Broken(f"a clean stop exited with {code}:\n{server.log()[-2000:]}")

    def copy(self, folder):
        """Copies the data folder for one scenario."""
        target = pathlib.Path(folder) / "data"
        shutil.copytree(self.folder / "data", target)
        return pathlib.Path(folder)


def kills(base, folder, rng, count):
    """kill -9 at random moments under mixed load, with a training that resumes each time."""
    base.copy(folder)
    flags = ["--resume-interrupted"]
    ledger = Ledger(base.reference)
    server = Server(folder, flags)
    client = Client(server.address)
    spec = {"model": "book", "hidden_size": 16, "num_layers": 2, "batch_size": 8,
            "sequence_length": 20, "epochs": 40 * count, "seed": 7, "sample_chars": 0}
    training = client.start_training(corpus(3000), **spec)
    calls = 0
    for number in range(count):
        load = Workload(server.address, ledger, base.model_file, rng)
        load.start()
        time.sleep(0.1 + rng.random() * 0.9)
        server.kill()
        load.join()
        calls += load.calls
        client.close()
        server = Server(folder, flags)
        client = Client(server.address)
        try:
            ledger.verify(client)
        except (Broken, grpc.RpcError, Interrupted) as error:
            raise Broken(f"after kill {number + 1}: {error}") from error
        state = client.training_state(training)
        if state not in {"STATE_QUEUED", "STATE_RUNNING", "STATE_SUCCEEDED"}:
            raise Broken(f"after kill {number + 1} the training is {state}")
    epochs = []
    for event in client.training_events(training):
        kind = event.WhichOneof("event")
        if kind == "epoch":
            epochs.append(event.epoch.epoch)
        if kind == "finished" and event.finished.version != 1:
            raise Broken(f"the resumed training ended with {event.finished.message}")
    if epochs != sorted(set(epochs)):
        raise Broken("an epoch was reported twice")
    resumed = client.export_model("book@1")
    undisturbed = client.start_training(corpus(3000), **{**spec, "model": "undisturbed"})
    for _ in client.training_events(undisturbed):
        pass
    if weights(client.export_model("undisturbed@1")) != weights(resumed):
        raise Broken("the resumed training and the undisturbed one have different weights")
    client.close()
    server.kill()
    return (f"{count} kills, {calls} calls, {ledger.acknowledged} acknowledged changes, "
            f"{len(ledger.entries)} sessions")


def stops(base, folder, rng, count):
    """SIGTERM, SIGINT and the end of a terminal under load: nothing acknowledged is lost."""
    base.copy(folder)
    ledger = Ledger(base.reference)
    for number in range(count):
        server = Server(folder)
        load = Workload(server.address, ledger, base.model_file, rng, publish=False)
        load.start()
        time.sleep(0.2 + rng.random() * 0.3)
        server.signal(signal.SIGTERM if number % 2 else signal.SIGINT)
        code = server.wait()
        load.join()
        if code != 0:
            raise Broken(f"stop {number + 1} exited with {code}")
        server = Server(folder)
        client = Client(server.address)
        ledger.verify(client)
        client.close()
        server.stop()
    return f"{count} stops, {ledger.acknowledged} acknowledged changes"


def terminal_closed(base, folder, _rng, _count):
    """SIGHUP: a clean stop if the server was started from a terminal, otherwise a log line."""
    base.copy(folder)
    server = Server(folder)
    client = Client(server.address)
    client.generate(session="tale", chars=20, prime=PROMPT, seed=1, model="verse@1")
    server.signal(signal.SIGHUP)
    time.sleep(0.3)
    if client.position("tale") != 20 + len(PROMPT):
        raise Broken("SIGHUP without a terminal disturbed the server")
    client.close()
    server.stop()
    # The same with a controlling terminal.
    child, terminal = pty.fork()
    if child == 0:
        # Whoever runs the suite may ignore it, and a program inherits that.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        log = os.open(folder / "terminal.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.execv(program(), [str(program()), "--listen", "127.0.0.1:0", "--device", "cpu",
                             "--data-dir", str(folder / "data")])
    address = None
    for _ in range(600):
        lines = (folder / "terminal.log").read_text() if (folder / "terminal.log").exists() else ""
        if "listening on" in lines:
            address = lines.split("://", 1)[1].split()[0]
            break
        time.sleep(0.05)
    if address is None:
        raise Broken("the server did not start on a terminal")
    client = Client(address)
    client.generate(session="tale", chars=20, expected=20 + len(PROMPT))
    client.close()
    os.close(terminal)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        raise Broken("the server outlived its terminal")
    if os.waitstatus_to_exitcode(status) != 0:
        raise Broken(f"closing the terminal ended the server with {status}")
    server = Server(folder)
    client = Client(server.address)
    if client.position("tale") != 40 + len(PROMPT):
        raise Broken("closing the terminal lost a call")
    client.close()
    server.stop()
    return "with and without a terminal"


def failed_starts(base, folder, _rng, count):
    """A start that fails between two good ones loses nothing."""
    base.copy(folder)
    server = Server(folder)
    client = Client(server.address)
    for number in range(20):
        client.generate(session=f"s{number}", chars=10, prime=PROMPT, seed=1, model="verse@1")
    client.close()
    server.stop()
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    empty = folder / "empty.pem"
    empty.write_text("no certificate")
    trainings = folder / "data" / "trainings"
    causes = 0
    for number in range(count):
        kind = number % 3
        flags, repair = [], lambda: None
        if kind == 0:
            flags = ["--metrics-listen", f"127.0.0.1:{port}"]
        elif kind == 1:
            flags = ["--tls-cert", str(empty), "--tls-key", str(empty)]
        else:
            moved = folder / "trainings-aside"
            trainings.rename(moved)
            trainings.write_text("a file, not a folder")

            def repair():
                trainings.unlink()
                moved.rename(trainings)
        try:
            Server(folder, flags).kill()
            raise Broken(f"a start with {flags} succeeded")
        except StartFailed as error:
            if error.code != 1:
                raise Broken(f"a failed start exited with {error.code}") from error
            causes += 1
        finally:
            repair()
        server = Server(folder)
        client = Client(server.address)
        if len(client.list_sessions()) != 20:
            raise Broken(f"after failed start {number + 1} there are "
                         f"{len(client.list_sessions())} of 20 sessions")
        client.close()
        if number % 2:
            server.kill()
        else:
            server.stop()
    taken.close()
    return f"{causes} failed starts, 20 sessions"


def two_crashes(base, folder, _rng, count):
    """Two crashes in a row: an evicted session stays distinguishable from an unknown one."""
    base.copy(folder)
    flags = ["--max-sessions", "5"]
    server = Server(folder, flags)
    client = Client(server.address)
    for number in range(8):
        client.generate(session=f"s{number}", chars=10, prime=PROMPT, seed=1, model="verse@1")
    for crash in range(count):
        client.close()
        server.kill()
        server = Server(folder, flags)
        client = Client(server.address)
        for number in range(3):
            try:
                client.generate(session=f"s{number}", chars=1, expected=10 + len(PROMPT))
                raise Broken(f"crash {crash + 1}: an evicted session was started afresh")
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND or "EVICTED" not in (
                        reason_of(error) or ""):
                    raise Broken(f"crash {crash + 1}: evicted session: {error.code()} "
                                 f"{reason_of(error)}") from error
        if len(client.list_sessions()) != 5:
            raise Broken(f"crash {crash + 1}: {len(client.list_sessions())} of 5 sessions")
    # The documented way to use the name again.
    client.delete("s0")
    client.generate(session="s0", chars=5, prime=PROMPT, seed=1, model="verse@1")
    client.close()
    server.kill()
    return f"{count} crashes"


def interleavings(base, folder, rng, count):
    """Late duplicates, interrupted retries and new branches in one session."""
    base.copy(folder)
    server = Server(folder)
    client = Client(server.address)
    reference = base.reference
    prefix = len(PROMPT)
    for number in range(count):
        name = f"i{number}"
        seed = 1 + number % 4
        first = rng.randrange(5, 30)
        text, done = client.generate(session=name, chars=first, prime=PROMPT, seed=seed,
                                     expected=0, model="verse@1")
        reference.check(seed, prefix, text, name)
        begin, chars = done.position, rng.randrange(5, 40)
        text, done = client.generate(session=name, chars=chars, expected=begin)
        reference.check(seed, begin, text, name)
        end = done.position
        action = number % 4
        if action == 0:
            # A late duplicate that is dropped midway never moves the session back.
            client.generate(session=name, chars=chars, expected=begin,
                            stop_after=rng.randrange(1, 5))
            settle(client, name)
            if client.position(name) != end:
                raise Broken(f"{name}: a dropped duplicate moved the session from {end} "
                             f"to {client.position(name)}")
        elif action == 1:
            again, done = client.generate(session=name, chars=chars, expected=begin)
            if (again, done.position) != (text, end):
                raise Broken(f"{name}: the repeated call differs")
        elif action == 2:
            # Other parameters: a new branch from the same beginning.
            _, done = client.generate(session=name, chars=7, seed=99, expected=begin)
            if done.position != begin + 7:
                raise Broken(f"{name}: a new branch ended at {done.position}")
        else:
            # A model published in between does not answer the repeat of a first call.
            if number < 8:
                client.import_model(base.model_file, "verse")
            other = f"{name}-first"
            client.generate(session=other, chars=20, prime=PROMPT, seed=seed, expected=0,
                            model="verse@1", stop_after=3)
            settle(client, other)
            again, done = client.generate(session=other, chars=20, prime=PROMPT, seed=seed,
                                          expected=0, model="verse@1")
            reference.check(seed, prefix, again, other)
            if client.get_session(other).version != 1:
                raise Broken(f"{other}: the repeat moved to another model version")
        try:
            client.generate(session=name, chars=1, expected=end + 1000)
            raise Broken(f"{name}: a wrong expected_position was accepted")
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise
    client.close()
    server.stop()
    return f"{count} interleavings"


def settle(client, name):
    """Waits until no call is generating in a session."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if not client.get_session(name).busy:
                return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return
        time.sleep(0.002)
    raise Broken(f"{name} stays busy")


def full_disk(base, folder, _rng, _count):
    """A full disk: calls in sessions are refused before they generate, and it recovers."""
    if not can_mount():
        if os.environ.get("CHARLSTM_REQUIRE_ALL"):
            raise Broken("this system does not let a test mount a file system")
        return "skipped: this system does not let a test mount a file system"
    data = folder / "data"
    data.mkdir()
    server = Server(folder, prefix=on_small_disk(data, 96))
    client = Client(server.address)
    client.import_model(base.model_file, "verse")
    reference = Reference(client, "verse@1", 400, [1])
    text, done = client.generate(session="tale", chars=30, prime=PROMPT, seed=1, model="verse@1")
    reference.check(1, len(PROMPT), text, "tale")
    disk = pathlib.Path(f"/proc/{server.process.pid}/root") / str(data).lstrip("/")
    ballast = disk / "ballast"
    fill(ballast)
    # The store has reserved space for what it has accepted, and uses it up.
    stored, refused = {}, 0
    until = time.monotonic() + 60
    while refused < 5 and time.monotonic() < until:
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
        raise Broken(f"a full disk refused {refused} calls in 60 s and stored {len(stored)}")
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
        for kind in ("empty", "half", "flip", "garbage"):
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
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            elif kind == "garbage":
                content = bytes(rng.randrange(256) for _ in range(200))
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
    from server import ROOT
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


SCENARIOS = {
    # name: (function, repetitions in the short suite, in the full suite); 0: not
    # part of the short suite.
    "kill-9": (kills, 12, 200),
    "clean-stop": (stops, 4, 20),
    "terminal-closed": (terminal_closed, 1, 1),
    "failed-start": (failed_starts, 6, 20),
    "two-crashes": (two_crashes, 4, 20),
    "interleavings": (interleavings, 60, 1000),
    "full-disk": (full_disk, 0, 1),
    "damaged-files": (damaged_files, 1, 1),
    "version-0.1": (version_0_1, 1, 1),
    "backup": (backup, 1, 1),
}


def names(full):
    """Returns the scenarios of the full or of the short suite."""
    return [name for name, (_, short, _) in SCENARIOS.items() if full or short]


def run(name, base, rng, full, keep):
    """Runs one scenario in a temporary folder; returns (result, seconds)."""
    function, short, long = SCENARIOS[name]
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"charlstm-{name}-"))
    begin = time.monotonic()
    try:
        result = function(base, folder, rng, long if full else short)
    except BaseException:
        print(json.dumps({"scenario": name, "kept": str(folder)}), flush=True)
        raise
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return result, time.monotonic() - begin
