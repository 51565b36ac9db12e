"""Crashes, stops and failed starts."""

import os
import pty
import signal
import socket
import subprocess
import time

import grpc

from base import corpus, weights
from client import Client, Interrupted, reason_of
from ledger import PROMPT, Broken, Ledger
from server import Server, StartFailed, program
from workload import Workload


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


def crash_during_start(folder, flags, rng):
    """Kills a server at a random moment between its start and its first second."""
    started = subprocess.Popen(
        [str(program()), "--listen", "127.0.0.1:0", "--device", "cpu",
         "--data-dir", str(folder / "data"), *flags],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Squared, because recovery takes milliseconds.
    time.sleep(rng.random() ** 2 * 0.5)
    started.kill()
    started.wait()


def two_crashes(base, folder, rng, count):
    """Two crashes in a row, the second one often during recovery: an evicted session
    stays distinguishable from an unknown one."""
    base.copy(folder)
    flags = ["--max-sessions", "5"]
    server = Server(folder, flags)
    client = Client(server.address)
    for number in range(8):
        client.generate(session=f"s{number}", chars=10, prime=PROMPT, seed=1, model="verse@1")
    for crash in range(count):
        client.close()
        server.kill()
        crash_during_start(folder, flags, rng)
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
    return f"{count} crashes, each followed by one during the start"
