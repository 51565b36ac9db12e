"""The attacks, and what is required of the server under each of them."""

import contextlib
import hashlib
import pathlib
import socket
import threading
import time

import grpc

import client as rpc
from base import corpus, train
from client import Client
from frames import CANCEL, GOAWAY, HEADERS, PREFACE, RESET, Connection, frame, headers, message
from server import Server
from victim import (
    GoodClient, measure, memory_mb, metric, open_files, require, threads, wait_for,
)

LIST = "/charlstm.v1.ModelService/ListModels"
IMPORT = "/charlstm.v1.ModelService/ImportModel"
EXPORT = "/charlstm.v1.ModelService/ExportModel"
TRAIN = "/charlstm.v1.TrainingService/Train"

# Memory that the server may take in addition, in megabytes.
MORE_MEMORY = 50

# Percentiles below this, in milliseconds, are noise of a busy machine.
NOISE = 50


@contextlib.contextmanager
def serving(folder, *flags, **options):
    """Runs a server with the model `verse`."""
    server = Server(folder, flags=["--metrics-listen", "127.0.0.1:0", *flags], **options)
    try:
        yield server
    finally:
        server.kill()


def assert_unharmed(server, attack, full, memory=MORE_MEMORY):
    """Runs an attack, a function that returns what ends it, next to a
    well-behaved client; returns the figures."""
    seconds = 10 if full else 3
    idle = measure(server.address, seconds)
    before = memory_mb(server)
    with GoodClient(server.address) as good:
        end = attack()
        time.sleep(seconds)
    during = good.percentile(0.99)
    grown = memory_mb(server) - before
    end()
    require(during <= max(2 * idle, NOISE), f"p99 {idle:.0f} ms idle, {during:.0f} ms attacked")
    require(grown <= memory, f"memory grew by {grown:.0f} MB")
    wait_for(lambda: metric(server, "charlstm_connections") <= 1, 30, "connections remain")
    wait_for(lambda: threads(server) < 60, 30, "threads remain")
    return f"p99 {idle:.0f} -> {during:.0f} ms, memory +{max(grown, 0):.0f} MB"


def cancelled_uploads(base, full):
    """A client gives up in the middle of an upload: nothing starts."""
    attempts = 60 if full else 15
    with serving(base.fresh_copy()) as server:
        client = Client(server.address)
        spec = rpc._training.TrainingSpec(model="cut-off", hidden_size=16, epochs=1)

        def upload(until):
            yield rpc._training.TrainRequest(spec=spec)
            for _ in range(40):
                yield rpc._training.TrainRequest(corpus_chunk=corpus(1000).encode())
                time.sleep(0.001)
            until.wait(1)

        for number in range(attempts):
            until = threading.Event()
            timeout = 0.03 if number % 3 == 0 else 30
            call = client.trainings.Train(upload(until), timeout=timeout)
            time.sleep(0.02 + number % 5 * 0.01)
            call.cancel()
            until.set()
        time.sleep(1)
        listed = client.trainings.ListTrainings(rpc._training.ListTrainingsRequest(), timeout=30)
        started = [one.spec.model for one in listed.trainings if one.spec.model == "cut-off"]
        require(not started, f"{len(started)} of {attempts} cancelled uploads were trained")
        require("cut-off" not in client.list_models(), "a model was published")
        client.close()
    return f"{attempts} cancelled uploads started nothing"


def silent_connections(base, full):
    """Connections that say nothing, or half a preface."""
    count = 2000 if full else 300
    with serving(base.fresh_copy()) as server:
        host, port = server.address.rsplit(":", 1)

        def attack():
            sockets = []
            for number in range(count):
                one = socket.create_connection((host, int(port)), timeout=30)
                one.sendall([b"", PREFACE[:12], PREFACE][number % 3])
                sockets.append(one)
            return lambda: None if not full else [one.close() for one in sockets[::2]]

        figures = assert_unharmed(server, attack, full)
        expired = metric(server, "charlstm_connections_expired_total")
        require(expired >= count / 2, f"{expired:.0f} of {count} connections expired")
    return f"{count} silent connections: {figures}"


def too_many_connections(base, full):
    """More connections than the maximum."""
    with serving(base.fresh_copy(), "--max-connections", "50") as server:
        held = [Connection(server.address) for _ in range(45)]
        client = Client(server.address)
        client.list_models()
        host, port = server.address.rsplit(":", 1)
        more = [socket.create_connection((host, int(port)), timeout=30) for _ in range(100)]
        wait_for(lambda: metric(server, "charlstm_connections_rejected_total") >= 90, 30,
                 "connections are rejected")
        client.list_models()
        log = server.log().count("too many connections")
        require(log <= 3, f"{log} lines in the log")
        for one in [*held, *more]:
            one.close()
        Client(server.address).list_models()
    return "connections beyond the maximum were closed, others served"


def stalled_transfers(base, full):
    """Imports, uploads and exports that stop; then the server is stopped."""
    count = 1000 if full else 200
    with serving(base.fresh_copy()) as server:
        export = message(rpc._model.ExportModelRequest(model="verse").SerializeToString())
        header = rpc._model.ImportModelHeader(name="stalled")
        header = message(rpc._model.ImportModelRequest(header=header).SerializeToString())
        spec = rpc._training.TrainingSpec(model="stalled")
        spec = message(rpc._training.TrainRequest(spec=spec).SerializeToString())
        connections = []

        def attack():
            for number in range(count):
                if number % 100 == 0:
                    connections.append(Connection(server.address, initial_window=10))
                connection = connections[-1]
                connection.call(IMPORT, header)
                connection.call(EXPORT, export, end=True)
                if number % 10 == 0:
                    connection.call(TRAIN, spec)

        seconds = 10 if full else 3
        idle = measure(server.address, seconds)
        before = memory_mb(server)
        with GoodClient(server.address) as good:
            attack()
            time.sleep(seconds)
            client = Client(server.address)
            # Takes the slot of a transfer that has been idle for some seconds.
            rpc.retry(lambda: train(client, "other"), seconds=30)
        during, grown = good.percentile(0.99), memory_mb(server) - before
        require(threads(server) < 100, f"{threads(server)} threads")
        require(grown <= MORE_MEMORY, f"memory grew by {grown:.0f} MB")
        begin = time.monotonic()
        require(server.stop() == 0, "the exit code is 0")
        stopped = time.monotonic() - begin
        require(stopped < 10, f"the server stopped after {stopped:.0f} s")
        for connection in connections:
            connection.close()
    return (f"{count} of each: p99 {idle:.0f} -> {during:.0f} ms with a training, "
            f"memory +{max(grown, 0):.0f} MB, stopped in {stopped:.1f} s")


def invented_methods(base, full):
    """Calls of methods that do not exist, with long names."""
    count = 20000 if full else 2000
    with serving(base.fresh_copy()) as server:

        def attack():
            connection = Connection(server.address)
            reader = threading.Thread(
                target=lambda: [None for _ in connection.frames(5)], daemon=True)
            reader.start()
            for number in range(count):
                path = f"/charlstm.v1.GenerationService/{'x' * 8000}{number}"
                try:
                    connection.call(path, message(b""), end=True)
                except OSError:
                    connection = Connection(server.address)
            return connection.close

        # Also requires that no connection remains.
        figures = assert_unharmed(server, attack, full)
    return f"{count} invented methods: {figures}"


def rapid_resets(base, full):
    """Calls that are reset as soon as they are begun."""
    count = 20000 if full else 4000
    with serving(base.fresh_copy()) as server:
        ends = []

        def attack():
            connection = Connection(server.address)
            burst = b""
            for number in range(count):
                stream = 2 * number + 1
                burst += headers(stream, LIST) + frame(RESET, 0, stream, CANCEL.to_bytes(4, "big"))
            with contextlib.suppress(OSError):
                connection.socket.sendall(burst)
            ends.extend(kind for kind, _, _ in connection.frames(3))
            return connection.close

        figures = assert_unharmed(server, attack, full)
    goaway = "closed with GOAWAY" if GOAWAY in ends else "absorbed"
    return f"{count} resets {goaway}: {figures}"


def protocol_errors(base, full):
    """Requests that break the protocol are answered, with short messages."""
    del full
    with serving(base.fresh_copy()) as server:

        def response_headers(path, data, **further):
            connection = Connection(server.address)
            connection.call(path, data, end=True, **further)
            for kind, stream, payload in connection.frames(10):
                if kind == HEADERS and stream == 1:
                    connection.close()
                    return payload
            raise AssertionError("no response")

        cases = {
            "a wrong content type": (LIST, message(b""), {"content_type": "text/html"}),
            "malformed protobuf": (LIST, message(b"\x0b\xff"), {}),
            "two messages": (LIST, message(b"") * 2, {}),
        }
        for name, (path, data, further) in cases.items():
            require(response_headers(path, data, **further), name)
        client = Client(server.address)
        try:
            client.generation.Generate(
                rpc._generation.GenerateRequest(model="x" * 100_000, prime="a"), timeout=30).next()
            raise AssertionError("accepted")
        except grpc.RpcError as error:
            require(error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"{error.code()}")
            require(len(error.details()) < 2000, f"{len(error.details())} characters of details")
    return "rejected with short messages (each status is tested in tests/protocol.rs)"


def huge_prompts(base, full):
    """A prompt of a million characters in every slot."""
    count = 200 if full else 60
    with serving(base.fresh_copy(), "--max-queued-chars", "5000000") as server:
        before = memory_mb(server)
        client = Client(server.address)
        prompt = corpus(900_000)
        calls, rejected = [], 0
        for _ in range(count):
            calls.append(client.generation.Generate(
                rpc._generation.GenerateRequest(model="verse", prime=prompt, max_chars=5),
                timeout=60))
        time.sleep(3)
        good = Client(server.address)
        rpc.retry(lambda: good.list_models())
        grown = memory_mb(server) - before
        for call in calls:
            call.cancel()
        for call in calls:
            try:
                for _ in call:
                    pass
            except grpc.RpcError as error:
                rejected += error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        require(rejected >= count / 2, f"only {rejected} of {count} were rejected")
        require(grown < 300, f"memory grew by {grown:.0f} MB")
    return f"{rejected} of {count} prompts of 0.9 million characters rejected, +{grown:.0f} MB"


PRINCIPAL = """
[[principal]]
name = "{name}"
token_sha256 = "{digest}"
roles = ["generate"]
"""


def principals(folder, names):
    """Writes a file of principals with their names as tokens."""
    path = pathlib.Path(folder) / "principals.toml"
    path.write_text("".join(
        PRINCIPAL.format(name=name, digest=hashlib.sha256(f"token-of-{name}".encode()).hexdigest())
        for name in names))
    path.chmod(0o600)
    return path


class Streams:
    """Streams of one principal, which count their characters."""

    def __init__(self, address, name, count):
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        stub = rpc._generation_services.GenerationServiceStub(self.channel)
        metadata = [("authorization", f"Bearer token-of-{name}")]
        self.chars = 0
        self.calls = []
        for seed in range(count):
            request = rpc._generation.GenerateRequest(
                model="verse", prime="arma ", max_chars=1_000_000)
            request.sampling.seed = seed
            call = stub.Generate(request, metadata=metadata, timeout=300)
            self.calls.append(call)
            threading.Thread(target=self._read, args=(call,), daemon=True).start()

    def _read(self, call):
        with contextlib.suppress(grpc.RpcError):
            for event in call:
                self.chars += len(event.text.text)

    def close(self):
        for call in self.calls:
            call.cancel()
        self.channel.close()


def greedy_caller(base, full):
    """One caller with hundreds of streams next to nine with one each."""
    names = [f"caller-{number}" for number in range(10)]
    folder = base.fresh_copy()
    file = principals(folder, names)
    seconds = 15 if full else 5
    many = 500 if full else 200

    def rates(first):
        with serving(folder, "--principals", str(file), "--threads", "1") as server:
            streams = [Streams(server.address, name, first if name == names[0] else 1)
                       for name in names]
            time.sleep(3)
            begin = [one.chars for one in streams]
            time.sleep(seconds)
            rate = [(one.chars - chars) / seconds for one, chars in zip(streams, begin)]
            for one in streams:
                one.close()
            return rate

    alone, attacked = rates(1), rates(many)
    parts = [after / before for before, after in zip(alone[1:], attacked[1:])]
    require(min(parts) >= 0.8 if full else min(parts) > 0.3,
            f"the others keep {min(parts):.2f} to {max(parts):.2f} of their speed")
    return (f"{many} streams: the nine others keep {min(parts):.2f} to {max(parts):.2f} of their "
            f"{sum(alone[1:]) / 9:.0f} characters per second; the greedy one had {alone[0]:.0f}, "
            f"has {attacked[0]:.0f}")


def overload(base, full):
    """Ten times as many calls as there is room for."""
    flags = ["--max-batch", "8", "--max-queue", "8"]
    seconds = 60 if full else 8
    with serving(base.fresh_copy(), *flags) as server:
        before = memory_mb(server)
        stopping = threading.Event()
        rejections, others = [], []

        def press():
            client = Client(server.address)
            while not stopping.is_set():
                begin = time.monotonic()
                try:
                    client.generate(model="verse", prime="arma ", chars=200, seed=1)
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                        others.append(f"{error.code()}: {error.details()}")
                        return
                    rejections.append(time.monotonic() - begin)
                    time.sleep(0.1)
                except rpc.Interrupted as error:
                    others.append(str(error))
                    return

        pressing = [threading.Thread(target=press, daemon=True) for _ in range(160)]
        for one in pressing:
            one.start()
        time.sleep(seconds)
        grown = memory_mb(server) - before
        stopping.set()
        for one in pressing:
            one.join(timeout=60)
        begin = time.monotonic()
        Client(server.address).generate(model="verse", prime="arma ", chars=20, seed=1)
        normal = time.monotonic() - begin
        # An exception in a thread would go unnoticed.
        require(not others, f"{len(others)} calls failed, one with {others[:1]}")
        require(rejections, "nothing was rejected")
        rejections.sort()
        p50 = rejections[len(rejections) // 2] * 1000
        require(grown <= MORE_MEMORY, f"memory grew by {grown:.0f} MB")
        require(normal <= 1, f"the next call took {normal:.1f} s")
    return (f"{len(rejections)} calls rejected (median {p50:.0f} ms, with 160 client threads in "
            f"one process), +{max(grown, 0):.0f} MB")


def few_open_files(base, full):
    """More connections than the system lets the server open."""
    del full
    folder = base.fresh_copy()
    prefix = ["prlimit", "--nofile=400:400"]
    with serving(folder, prefix=prefix) as server:
        require("is lowered" in server.log(), "the lower maximum is logged")
        host, port = server.address.rsplit(":", 1)
        held = [socket.create_connection((host, int(port)), timeout=30) for _ in range(300)]
        wait_for(lambda: metric(server, "charlstm_connections_rejected_total") > 100, 30,
                 "connections are rejected")
        for one in held:
            one.close()
        rpc.retry(lambda: Client(server.address).list_models())
    return "connections stay below the limit of open files"


def soak(base, minutes):
    """Mixed load: memory, open files and threads stay flat, no error is logged."""
    with serving(base.fresh_copy()) as server:
        samples = []
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(GoodClient(server.address, chars=100))
            begin = time.monotonic()
            number = 0
            client = Client(server.address)
            while time.monotonic() - begin < minutes * 60:
                number += 1
                client.generate(session=f"s{number % 50}", prime="arma " if number <= 50 else "",
                                model="verse" if number <= 50 else "", chars=50)
                if number % 200 == 0:
                    train(client, "soak")
                    models = client.list_models()
                    require(models, "models")
                if number % 20 == 0:
                    samples.append((memory_mb(server), open_files(server), threads(server)))
        quarter = len(samples) // 4
        early, late = samples[quarter], samples[-1]
        require(late[0] < early[0] * 1.1 + 10, f"memory {early[0]:.0f} -> {late[0]:.0f} MB")
        require(late[1] < early[1] + 20, f"open files {early[1]} -> {late[1]}")
        require(late[2] < early[2] + 20, f"threads {early[2]} -> {late[2]}")
        require(" ERROR " not in server.log(), "the log has an error")
    return (f"{minutes} min: memory {early[0]:.0f} -> {late[0]:.0f} MB, open files {early[1]} -> "
            f"{late[1]}, threads {early[2]} -> {late[2]}")


SCENARIOS = [
    cancelled_uploads, silent_connections, too_many_connections, few_open_files, stalled_transfers,
    invented_methods, rapid_resets, protocol_errors, huge_prompts, greedy_caller, overload,
]

# Enough to see that each kind of protection works, in half a minute.
SHORT = [cancelled_uploads, too_many_connections, few_open_files, rapid_resets, protocol_errors]
