"""Clients that call sessions at random, and repeat each call until it succeeds."""

import contextlib
import random
import threading
import time

import grpc

from client import Client, Interrupted, reason_of
from ending import print_stacks
from ledger import PROMPT, Broken

# Errors after which a client repeats the same call, here or at another replica.
REPEATED = {"SESSION_BUSY", "SESSION_FENCED", "STORAGE_UNAVAILABLE", "COMMIT_UNKNOWN",
            "SERVER_STOPPING", "OVERLOADED"}

# Until a client gives up: several leases and an outage.
GIVE_UP_SECONDS = 90


class Traffic:
    """Threads that use disjoint sets of sessions for a number of calls."""

    def __init__(self, addresses, reference, rng, sessions=200, calls=10_000, threads=8, max_chars=40):
        self.addresses = addresses
        self.reference = reference
        self.max_chars = max_chars
        self.positions = {}
        self.repeated = {}
        self.failure = None
        self.left = calls
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self._run, args=(
                [f"s{n}" for n in range(number, sessions, threads)], random.Random(rng.random())))
            for number in range(threads)
        ]

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def is_running(self):
        return self.failure is None and any(thread.is_alive() for thread in self.threads)

    def end(self):
        """Lets the calls end that run."""
        with self.lock:
            self.left = 0

    def join(self):
        for thread in self.threads:
            thread.join(timeout=600)
            if thread.is_alive():
                print_stacks()
                raise Broken("a client hangs")
        if self.failure is not None:
            raise self.failure

    def _next(self):
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def _run(self, names, rng):
        clients = [Client(address) for address in self.addresses]
        try:
            while self.failure is None and self._next():
                self._call(clients, rng.choice(names), rng)
        except Exception as error:  # Reported by `join`.
            self.failure = error
        finally:
            for client in clients:
                client.close()

    def _call(self, clients, name, rng):
        begin = self.positions.get(name, 0)
        first = begin == 0
        seed = 1 + int(name[1:]) % 4
        chars = rng.randrange(1, self.max_chars)
        if begin + chars > 4000:
            return
        arrived, give_up = "", time.monotonic() + GIVE_UP_SECONDS
        while True:
            client = rng.choice(clients)
            try:
                text, done = client.generate(
                    session=name, chars=chars, prime=PROMPT if first else "",
                    seed=seed if first else None, expected=begin,
                    model="verse@1" if first else "")
                break
            except Interrupted as error:
                arrived, cause = max(arrived, error.text, key=len), "interrupted"
            except grpc.RpcError as error:
                cause = reason_of(error)
                lost = cause is None and error.code() in (
                    grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED)
                if not lost and cause not in REPEATED:
                    raise Broken(f"{name} at {begin}: {error.code()} {error.details()}") from error
                cause = cause or "interrupted"
            with self.lock:
                self.repeated[cause] = self.repeated.get(cause, 0) + 1
            if time.monotonic() > give_up:
                raise Broken(f"{name} at {begin}: no success in {GIVE_UP_SECONDS} s: {cause}")
            time.sleep(rng.uniform(0.05, 0.4))
        self.reference.check(seed, begin or len(PROMPT), text, name)
        if not text.startswith(arrived):
            raise Broken(f"{name}: a repeated call does not begin with what had arrived")
        end = begin + chars + (len(PROMPT) if first else 0)
        # A replica that is stopped ends its calls early, with what was sent.
        if done.position != end and len(text) == chars:
            raise Broken(f"{name}: finished at {done.position}, not {end}")
        self.positions[name] = done.position

    def verify(self, address):
        """Compares the positions of all sessions with what was acknowledged."""
        client = Client(address)
        for name, position in self.positions.items():
            found = client.position(name)
            if found != position:
                raise Broken(f"{address}: {name} is at {found}, and {position} was acknowledged")
        if sorted(client.list_sessions()) != sorted(self.positions):
            raise Broken("other sessions are listed than were created")
        client.close()

    def summary(self):
        repeated = ", ".join(f"{n} {cause}" for cause, n in sorted(self.repeated.items()))
        return f"{len(self.positions)} sessions; repeated: {repeated or 'none'}"


@contextlib.contextmanager
def traffic_to(cluster, base, rng):
    """Calls through the load balancer of a cluster while the body runs. After it, every
    replica must have what was acknowledged."""
    traffic = Traffic([cluster.address], base.reference, rng, calls=10**9, max_chars=20).start()
    try:
        yield traffic
    finally:
        traffic.end()
    traffic.join()
    for replica in cluster.replicas:
        traffic.verify(replica.address)
