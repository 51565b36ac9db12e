"""Principals: their file, clients with their tokens, and what each may see."""

import collections
import hashlib
import itertools
import pathlib
import random
import threading
import time

import grpc

import client as rpc
from base import train
from client import Client, reason_of
from connections import certificate
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

NAMES = ["alice", "bob", "carol"]

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


def seed_of(number, task):
    """Returns the seed of a task of a principal: all have their own."""
    return 1000 * number + task


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

    def __init__(self, connect, number, references):
        """`connect` opens a connection with the token of a name; `references` has
        the text of each seed, generated without quotas."""
        self.connect = connect
        self.name = NAMES[number]
        self.client = connect(self.name)
        self.references = references
        self.chars = 0
        self.calls = collections.Counter()
        self.trainings = []
        self.failures = []
        self.lock = threading.Lock()
        # All principals use these ids; the texts differ by the seed.
        self.seeds = {f"shared-{task}": seed_of(number, task) for task in range(TASKS)}
        self.own = f"{self.name}-only"
        # What the others must not find.
        self.client.generate(session=self.own, model="verse", prime="arma ", chars=5, seed=1)
        self.exported = self.client.export(self.own)
        self._train()

    def _train(self):
        training, _ = train(self.client, f"book-of-{self.name}", chars=400)
        self.trainings.append(training)

    def run(self, until, principals):
        """Starts the threads; returns them."""
        jobs = [(self._generate, session, until) for session in self.seeds]
        jobs += [(self._access_others, until, principals), (self._train_often, until)]
        threads = [threading.Thread(target=self._guarded, args=job, daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, job, *arguments):
        try:
            job(*arguments)
        except Exception as error:  # noqa: BLE001 (reported at the end)
            self.failures.append(f"{self.name}: {error!r}")

    def _generate(self, session, until):
        """Continues a session whose id others use too, and compares its text."""
        client = self.connect(self.name)
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

    def _access_others(self, until, principals):
        """Tries to list and to access what belongs to the others."""
        copy = f"copy-of-{self.name}"
        allowed = {*self.seeds, self.own, copy}
        client = self.connect(self.name)
        while time.monotonic() < until:
            seen = set(client.list_sessions())
            require(seen <= allowed, f"{self.name} sees the sessions {seen - allowed}")
            listed = client.trainings.ListTrainings(
                rpc._training.ListTrainingsRequest(), timeout=30).trainings
            models = {one.spec.model for one in listed}
            require(models <= {f"book-of-{self.name}"}, f"{self.name} sees trainings of {models}")
            for other in principals:
                if other is not self:
                    self._access(client, other, copy)
            client.fork(self.own, copy)
            client.delete(copy)
            time.sleep(0.02)
        client.close()

    def _access(self, client, other, copy):
        """Tries each method on the session and the training of another principal."""
        training = other.trainings[0]
        for action in (
            lambda: client.get_session(other.own),
            lambda: client.delete(other.own),
            lambda: client.export(other.own),
            lambda: client.fork(other.own, copy),
            lambda: client.training_state(training),
            lambda: client.trainings.CancelTraining(
                rpc._training.CancelTrainingRequest(training_id=training), timeout=30),
            lambda: list(client.training_events(training)),
        ):
            expect(grpc.StatusCode.NOT_FOUND, action)
            self.calls["denied"] += 1
        expect(grpc.StatusCode.INVALID_ARGUMENT,
               lambda: client.import_session(other.exported, copy))
        self.calls["denied"] += 1

    def _train_often(self, until):
        while time.monotonic() < until:
            self._train()
            self.calls["train"] += 1
            time.sleep(2)

    def count_admitted(self):
        """Opens more streams and creates more sessions than the quotas allow; returns
        how many of each the server has admitted."""
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
    seconds = 180 if full else 15
    folder = base.fresh_copy()
    references = {}
    # Without quotas.
    with serving(folder) as server:
        client = Client(server.address)
        for number, task in itertools.product(range(len(NAMES)), range(TASKS)):
            seed = seed_of(number, task)
            references[seed], _ = client.generate(
                model="verse", prime="arma ", chars=REFERENCE_CHARS, seed=seed)
        client.close()
        server.stop()
    file = write_principals(folder, NAMES, QUOTAS)
    cert, key = certificate(folder)
    flags = ["--principals", str(file), "--tls-cert", str(cert), "--tls-key", str(key)]
    with serving(folder, *flags) as server:

        def connect(name):
            return Client(server.address, ca=cert.read_bytes(), token=token_of(name))

        principals = [Principal(connect, number, references) for number in range(len(NAMES))]
        begin = time.monotonic()
        threads = [thread for one in principals for thread in one.run(begin + seconds, principals)]
        # Longer than the burst of each principal lasts.
        time.sleep(3)
        first = [one.chars for one in principals]
        since = time.monotonic()
        time.sleep(begin + seconds - since - 1)
        passed = time.monotonic() - since
        rates = [(one.chars - chars) / passed * 60 for one, chars in zip(principals, first)]
        for thread in threads:
            thread.join(timeout=120)
            require(not thread.is_alive(), "a client hangs")
        failures = [failure for one in principals for failure in one.failures]
        require(not failures, f"{len(failures)} failures, one with {failures[:1]}")
        for name, rate in zip(NAMES, rates):
            part = rate / CHARS_PER_MINUTE
            # A short measurement has calls at its edges that count as a whole.
            require(abs(part - 1) <= (0.05 if full else 0.2),
                    f"{name} has {rate:.0f} characters per minute of {CHARS_PER_MINUTE}")
        for one in principals:
            counts = one.count_admitted()
            require(counts == (MAX_STREAMS, MAX_SESSIONS),
                    f"{one.name} has {counts} streams and sessions")
        calls = sum((one.calls for one in principals), collections.Counter())
        parts = ", ".join(f"{rate / CHARS_PER_MINUTE:.3f}" for rate in rates)
    return (f"{calls['generate']} texts, {calls['train']} trainings and {calls['denied']} attempts "
            f"to access what belongs to others: no answer was another's; {parts} of the quota of "
            f"characters, exactly {MAX_STREAMS} streams and {MAX_SESSIONS} sessions each")
