"""Clients that generate, fork, delete, export, import and publish at random."""

import random
import threading

import grpc

from client import SHUTDOWN, Client, Interrupted, reason_of
from ending import print_stacks
from ledger import PROMPT, Broken

# Errors that say that the server is about to stop, or refuse a busy session.
EXPECTED = {"SERVER_STOPPING", "SESSION_BUSY", "STORAGE_UNAVAILABLE", "OVERLOADED"}


class Workload:
    """Threads that use disjoint sets of sessions until the server is gone."""

    def __init__(self, address, ledger, model_file, rng, threads=4, publish=True):
        self.address = address
        self.ledger = ledger
        self.model_file = model_file
        self.publish = publish
        self.failure = None
        self.calls = 0
        self.stopping = threading.Event()
        self.threads = [
            threading.Thread(target=self._run, args=(index, random.Random(rng.random())))
            for index in range(threads)
        ]

    def start(self):
        for thread in self.threads:
            thread.start()

    def join(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=120)
            if thread.is_alive():
                print_stacks()
                raise Broken("a client hangs although its server is gone")
        if self.failure is not None:
            raise self.failure

    def _run(self, index, rng):
        client = Client(self.address)
        try:
            while not self.stopping.is_set():
                self._step(client, index, rng)
                self.calls += 1
        except Interrupted:
            pass
        except grpc.RpcError as error:
            if reason_of(error) not in EXPECTED and error.code() not in (
                    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED):
                self.failure = Broken(f"unexpected error {error.code()}: {error.details()}")
        except Broken as error:
            self.failure = error
        finally:
            client.close()

    def _step(self, client, index, rng):
        name = f"s{index}-{rng.randrange(8)}"
        entry = self.ledger.begin(name, 1 + (index + int(name[-1])) % 4)
        draw = rng.random()
        alive = entry.position > 0 and not entry.deleted
        if draw < 0.60 or not alive:
            self._generate(client, name, entry, rng)
        elif draw < 0.70:
            self._leave(client, name, entry, rng)
        elif draw < 0.80:
            self._fork(client, name, entry, rng)
        elif draw < 0.88:
            self._delete(client, name, entry)
        elif draw < 0.95 or not self.publish:
            self._copy(client, name, entry)
        else:
            self._publish(client, rng)

    def _room(self, entry, chars):
        return entry.position + chars < 4000

    def _generate(self, client, name, entry, rng):
        chars = rng.randrange(1, 60)
        if entry.deleted or entry.position == 0 or not self._room(entry, chars):
            if entry.position and not entry.deleted:
                self._delete(client, name, entry)
            entry.position, entry.deleted = 0, False
        first = entry.position == 0
        begin = entry.position
        entry.pending = begin + chars + (len(PROMPT) if first else 0)
        try:
            text, finished = client.generate(
                session=name, chars=chars, prime=PROMPT if first else "",
                seed=entry.seed if first else None, expected=begin,
                model="verse@1" if first else "")
        except Interrupted as interruption:
            entry.delivered = interruption.text
            raise
        self.ledger.reference.check(entry.seed, begin or len(PROMPT), text, name)
        self._finish(name, entry, finished)

    def _finish(self, name, entry, finished):
        """Notes an acknowledged call, which a clean stop may have ended early."""
        if finished.position != entry.pending and finished.reason != SHUTDOWN:
            raise Broken(f"{name}: finished at {finished.position}, not {entry.pending}")
        entry.position, entry.pending, entry.cancelled = finished.position, None, False
        self.ledger.acknowledged += 1

    def _leave(self, client, name, entry, rng):
        """Cancels a call midway, then repeats it from its beginning."""
        chars = 40
        if not self._room(entry, chars):
            return
        begin = entry.position
        entry.pending, entry.cancelled = begin + chars, True
        text, finished = client.generate(
            session=name, chars=chars, expected=begin, stop_after=rng.randrange(1, 20))
        self.ledger.reference.check(entry.seed, begin, text, name)
        if finished is not None:
            self._finish(name, entry, finished)
            return
        while True:
            try:
                again, finished = client.generate(session=name, chars=chars, expected=begin)
                break
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.ABORTED:
                    raise
            except Interrupted as interruption:
                entry.delivered = interruption.text
                raise
        self.ledger.reference.check(entry.seed, begin, again, name)
        if finished.reason != SHUTDOWN and not again.startswith(text):
            raise Broken(f"{name}: the repeated call gives another text")
        self._finish(name, entry, finished)

    def _fork(self, client, name, entry, rng):
        new = f"{name}-f{rng.randrange(3)}"
        copy = self.ledger.begin(new, entry.seed)
        if copy.position and not copy.deleted:
            self._delete(client, new, copy)
        copy.position, copy.deleted, copy.uncertain = entry.position, False, True
        client.fork(name, new)
        copy.uncertain = False
        self.ledger.acknowledged += 1

    def _delete(self, client, name, entry):
        entry.uncertain = True
        client.delete(name)
        entry.uncertain, entry.deleted = False, True
        self.ledger.acknowledged += 1

    def _copy(self, client, name, entry):
        """Exports a session and imports it under another id."""
        new = f"{name}-i"
        copy = self.ledger.begin(new, entry.seed)
        data = client.export(name)
        if copy.position and not copy.deleted:
            self._delete(client, new, copy)
        copy.position, copy.deleted, copy.uncertain = entry.position, False, True
        client.import_session(data, new)
        copy.uncertain = False
        self.ledger.acknowledged += 1

    def _publish(self, client, rng):
        name = f"copy{rng.randrange(1000)}"
        with self.ledger.lock:
            known = self.ledger.models.get(name, 0)
            self.ledger.pending_models[name] = known + 1
            self.ledger.models.setdefault(name, 0)
        version = client.import_model(self.model_file, name)
        with self.ledger.lock:
            self.ledger.models[name] = version
            self.ledger.pending_models.pop(name, None)
        self.ledger.acknowledged += 1
