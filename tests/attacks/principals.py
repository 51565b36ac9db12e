"""Principals: their file, clients with their tokens, and what each may see."""

import collections
import hashlib
import pathlib
import random
import threading
import time

import grpc

import client as rpc
from base import train
from client import Client, reason_of
from victim import require, serving

ENTRY = """
[[principal]]
name = "{name}"
token_sha256 = "{digest}"
roles = ["generate", "train"]
"""

# Quotas of each principal of the scenario.
CHARS_PER_MINUTE = 30_000
MAX_STREAMS = 6
MAX_SESSIONS = 30
MAX_TRAININGS = 2

QUOTAS = f"""chars_per_minute = {CHARS_PER_MINUTE}
max_streams = {MAX_STREAMS}
max_sessions = {MAX_SESSIONS}
max_trainings = {MAX_TRAININGS}
"""

# Tasks of each principal that generate text in sessions.
TASKS = 4

# Characters of a reference text.
REFERENCE_CHARS = 3000


def token_of(name):
    """Returns the token of a principal of a test."""
    return f"token-of-{name}"


def write_principals(folder, names, quotas=""):
    """Writes a file of principals, each with the same quotas."""
    path = pathlib.Path(folder) / "principals.toml"
    path.write_text("".join(
        ENTRY.format(name=name, digest=hashlib.sha256(token_of(name).encode()).hexdigest()) + quotas
        for name in names))
    path.chmod(0o600)
    return path


class _Details(
    collections.namedtuple("_Details", "method timeout metadata credentials wait_for_ready compression"),
    grpc.ClientCallDetails,
):
    """Details of a call, with other metadata."""


class _WithToken(
    grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor,
):
    """Adds a token to each call."""

    def __init__(self, token):
        self.metadata = ("authorization", f"Bearer {token}")

    def _intercept(self, continuation, details, request):
        metadata = [*(details.metadata or ()), self.metadata]
        return continuation(_Details(
            details.method, details.timeout, metadata, details.credentials,
            details.wait_for_ready, details.compression), request)

    intercept_unary_unary = _intercept
    intercept_unary_stream = _intercept
    intercept_stream_unary = _intercept
    intercept_stream_stream = _intercept


class PrincipalClient(Client):
    """The calls of a principal."""

    def __init__(self, address, name):
        channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        super().__init__(address, channel=grpc.intercept_channel(channel, _WithToken(token_of(name))))
        self.inner = channel
        self.name = name

    def close(self):
        self.inner.close()


def expect(code, action):
    """Requires that a call fails with this code."""
    try:
        action()
    except grpc.RpcError as error:
        require(error.code() == code, f"{error.code()} {error.details()} instead of {code}")
        return
    require(False, f"a call succeeded that must fail with {code}")


class Principal:
    """One principal, which makes all kinds of calls and checks every answer."""

    def __init__(self, address, name, number):
        self.address = address
        self.name = name
        self.client = PrincipalClient(address, name)
        self.chars = 0
        self.calls = collections.Counter()
        self.trainings = []
        self.failures = []
        self.lock = threading.Lock()
        # All principals use these ids; the texts differ by the seed.
        self.seeds = {f"shared-{task}": 1000 * number + task for task in range(TASKS)}
        self.own = f"{name}-only"

    def prepare(self, reference):
        """Creates what the others must not find; `reference` computes texts of a
        seed without quotas."""
        self.references = {seed: reference(seed) for seed in self.seeds.values()}
        self.client.generate(session=self.own, model="verse", prime="arma ", chars=5, seed=1)
        self._train()

    def _train(self):
        training, _ = train(self.client, f"book-of-{self.name}", chars=400)
        self.trainings.append(training)

    def run(self, until, principals):
        """Starts the threads; returns them."""
        jobs = [lambda task=task: self._generate(task, until) for task in range(TASKS)]
        jobs.append(lambda: self._look_around(until, principals))
        jobs.append(lambda: self._train_often(until))
        threads = [threading.Thread(target=self._guarded, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, job):
        try:
            job()
        except Exception as error:  # noqa: BLE001 (reported at the end)
            self.failures.append(f"{self.name}: {error!r}")

    def _generate(self, task, until):
        """Continues a session whose id others use too, and compares its text."""
        client = PrincipalClient(self.address, self.name)
        session = f"shared-{task}"
        seed = self.seeds[session]
        expected = self.references[seed]
        draw = random.Random(seed)
        done = 0
        while time.monotonic() < until:
            chars = min(draw.choice([40, 150, 400]), REFERENCE_CHARS - done)
            first = {"prime": "arma ", "seed": seed, "model": "verse"} if done == 0 else {}
            text, _ = client.generate(session=session, chars=chars, **first)
            require(text == expected[done:done + chars],
                    f"the text of {session} at {done} is not that of its seed")
            done += chars
            with self.lock:
                self.chars += chars
                self.calls["generate"] += 1
            if done == REFERENCE_CHARS:
                client.delete(session)
                done = 0
        client.close()

    def _look_around(self, until, principals):
        """Looks for what belongs to the others."""
        allowed = {*self.seeds, self.own, f"copy-of-{self.name}"}
        client = PrincipalClient(self.address, self.name)
        denied = grpc.StatusCode.NOT_FOUND
        while time.monotonic() < until:
            seen = set(client.list_sessions())
            require(seen <= allowed, f"{self.name} sees the sessions {seen - allowed}")
            listed = client.trainings.ListTrainings(
                rpc._training.ListTrainingsRequest(), timeout=30).trainings
            models = {one.spec.model for one in listed}
            require(models <= {f"book-of-{self.name}"}, f"{self.name} sees trainings of {models}")
            for other in principals:
                if other is self:
                    continue
                expect(denied, lambda other=other: client.get_session(other.own))
                expect(denied, lambda other=other: client.delete(other.own))
                expect(denied, lambda other=other: client.export(other.own))
                expect(denied, lambda other=other: client.fork(other.own, "stolen"))
                training = other.trainings[0]
                expect(denied, lambda training=training: client.training_state(training))
                expect(denied, lambda training=training: client.trainings.CancelTraining(
                    rpc._training.CancelTrainingRequest(training_id=training), timeout=30))
                expect(denied, lambda training=training: list(client.training_events(training)))
                if self is not principals[0]:
                    data = principals[0].exported
                    expect(grpc.StatusCode.INVALID_ARGUMENT,
                           lambda data=data: client.import_session(data, f"copy-of-{self.name}"))
                self.calls["looked"] += 8
            client.fork(self.own, f"copy-of-{self.name}")
            client.delete(f"copy-of-{self.name}")
            time.sleep(0.02)
        client.close()

    def _train_often(self, until):
        while time.monotonic() < until:
            self._train()
            self.calls["train"] += 1
            time.sleep(2)

    def count_streams(self):
        """Returns how many of too many streams are admitted, and of too many
        sessions."""
        request = rpc._generation.GenerateRequest(model="verse", prime="arma ", max_chars=1_000_000)
        calls, admitted = [], 0
        for _ in range(MAX_STREAMS + 3):
            call = self.client.generation.Generate(request, timeout=120)
            calls.append(call)
            try:
                next(iter(call))
                admitted += 1
            except grpc.RpcError as error:
                require(reason_of(error) == "QUOTA", f"{error.code()} {error.details()}")
        for call in calls:
            call.cancel()
        # The server notices within a step.
        time.sleep(1)
        sessions = len(self.client.list_sessions())
        created = sessions
        for number in range(MAX_SESSIONS + 3 - sessions):
            try:
                self.client.generate(
                    session=f"more-{number}", model="verse", prime="arma ", chars=1, seed=1)
                created += 1
            except grpc.RpcError as error:
                require(reason_of(error) == "QUOTA", f"{error.code()} {error.details()}")
        return admitted, created


def three_principals(base, full):
    """Three principals make all kinds of calls at once, up to their quotas."""
    names = ["alice", "bob", "carol"]
    seconds = 180 if full else 15
    folder = base.fresh_copy()
    # Without quotas.
    with serving(folder) as server:
        client = Client(server.address)

        def reference(seed):
            text, _ = client.generate(model="verse", prime="arma ", chars=REFERENCE_CHARS, seed=seed)
            return text

        seeds = [1000 * number + task for number in range(3) for task in range(TASKS)]
        references = {seed: reference(seed) for seed in seeds}
        client.close()
        server.stop()
    file = write_principals(folder, names, QUOTAS)
    with serving(folder, "--principals", str(file)) as server:
        principals = [
            Principal(server.address, name, number) for number, name in enumerate(names)]
        for one in principals:
            one.prepare(references.__getitem__)
        principals[0].exported = principals[0].client.export(principals[0].own)
        # Past the burst of each principal.
        begin = time.monotonic()
        threads = [thread for one in principals for thread in one.run(begin + seconds, principals)]
        time.sleep(3)
        first = [one.chars for one in principals]
        since = time.monotonic()
        time.sleep(begin + seconds - since - 1)
        passed = time.monotonic() - since
        rates = [(one.chars - chars) / passed * 60 for one, chars in zip(principals, first)]
        for thread in threads:
            thread.join(timeout=120)
        failures = [failure for one in principals for failure in one.failures]
        require(not failures, f"{len(failures)} failures, one with {failures[:1]}")
        for name, rate in zip(names, rates):
            part = rate / CHARS_PER_MINUTE
            # A short measurement has calls at its edges that count as a whole.
            require(abs(part - 1) <= (0.05 if full else 0.2),
                    f"{name} has {rate:.0f} characters per minute of {CHARS_PER_MINUTE}")
        for one in principals:
            counts = one.count_streams()
            require(counts == (MAX_STREAMS, MAX_SESSIONS),
                    f"{one.name} has {counts} streams and sessions")
        calls = sum((one.calls for one in principals), collections.Counter())
        parts = ", ".join(f"{rate / CHARS_PER_MINUTE:.3f}" for rate in rates)
    return (f"{calls['generate']} texts, {calls['train']} trainings and {calls['looked']} attempts "
            f"on what belongs to others: no answer was another's; {parts} of the quota of "
            f"characters, exactly {MAX_STREAMS} streams and {MAX_SESSIONS} sessions each")
