"""What may happen to replicas: each scenario returns a line, or raises."""

import json
import pathlib
import secrets
import shutil
import signal
import tempfile
import threading
import time

import grpc

import client as rpc
import models_and_trainings
from client import Client, reason_of
from cluster import Cluster
from cost import cost
from ledger import PROMPT, Broken
from traffic import Traffic

# Longer than a lease.
TAKEOVER_SECONDS = 12
OUTAGE_SECONDS = 20


def balanced(base, folder, postgres, rng, calls):
    """Calls through a load balancer, in sessions that any replica continues."""
    with Cluster(base, folder, postgres) as cluster:
        traffic = Traffic([cluster.address], base.reference, rng, calls=calls).start()
        traffic.join()
        for replica in cluster.replicas:
            traffic.verify(replica.address)
        return f"{calls} calls, {traffic.summary()}"


def mixed_kernels(base, folder, postgres, rng, calls):
    """One replica computes with the portable kernels, the others with the fastest."""
    flags = {0: ("--kernels", "portable")}
    with Cluster(base, folder, postgres, flags=flags) as cluster:
        traffic = Traffic([cluster.address], base.reference, rng, calls=calls).start()
        traffic.join()
        traffic.verify(cluster.address)
        return f"{calls} calls, {traffic.summary()}"


def kills(base, folder, postgres, rng, count):
    """kill -9 of replicas at random under load; their clients repeat their calls."""
    with Cluster(base, folder, postgres) as cluster:
        traffic = Traffic([cluster.address], base.reference, rng, calls=10**9, max_chars=20).start()
        for _ in range(count):
            time.sleep(rng.uniform(0.2, 1.5))
            cluster.restart(rng.randrange(3))
            if not traffic.is_running():
                break
        traffic.end()
        traffic.join()
        for replica in cluster.replicas:
            traffic.verify(replica.address)
        return f"{count} kills, {traffic.summary()}"


class SlowReader:
    """A call whose client reads one message, and the rest once `resumed` is set."""

    def __init__(self, address, name, seed):
        self.client, self.name, self.seed = Client(address), name, seed
        self.resumed, self.outcome = threading.Event(), None
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        request = rpc._generation.GenerateRequest(
            session_id=self.name, prime=PROMPT, max_chars=1_000_000, expected_position=0,
            model="verse@1")
        request.sampling.seed = self.seed
        try:
            for event in self.client.generation.Generate(request, timeout=120):
                if event.WhichOneof("event") == "text":
                    self.begun.set()
                    self.resumed.wait()
                if event.WhichOneof("event") == "finished":
                    self.outcome = "finished"
        except grpc.RpcError as error:
            self.outcome = reason_of(error) or error.code().name
        finally:
            self.begun.set()


def suspended(base, folder, postgres, rng, count):
    """SIGSTOP for longer than a lease; another replica takes over; SIGCONT."""
    outcomes = {}
    with Cluster(base, folder, postgres, count=2) as cluster:
        other = Client(cluster.replicas[1].address)
        for turn in range(count):
            names = [f"z{turn}-{n}" for n in range(4)]
            readers = [SlowReader(cluster.replicas[0].address, name, 1 + n)
                       for n, name in enumerate(names)]
            for reader in readers:
                if not reader.begun.wait(30) or reader.outcome:
                    raise Broken(f"{reader.name}: {reader.outcome}")
            cluster.replicas[0].signal(signal.SIGSTOP)
            time.sleep(TAKEOVER_SECONDS)
            positions = {}
            for n, name in enumerate(names):
                if n == 3:
                    # Deleted and created again while its call is suspended.
                    try:
                        other.delete(name)
                    except grpc.RpcError as error:
                        if error.code() != grpc.StatusCode.NOT_FOUND:
                            raise
                text, done = other.generate(session=name, chars=30, prime=PROMPT, seed=1 + n,
                                            expected=0, model="verse@1")
                base.reference.check(1 + n, len(PROMPT), text, name)
                positions[name] = done.position
            time.sleep(15 - TAKEOVER_SECONDS)
            cluster.replicas[0].signal(signal.SIGCONT)
            for reader in readers:
                reader.resumed.set()
                reader.thread.join(30)
                if reader.outcome in (None, "finished"):
                    raise Broken(f"the call of the suspended replica ended with {reader.outcome}")
                outcomes[reader.outcome] = outcomes.get(reader.outcome, 0) + 1
                reader.client.close()
            for name, position in positions.items():
                if other.position(name) != position:
                    raise Broken(f"{name}: the suspended replica moved it")
        other.close()
    return f"{count} suspensions, calls ended with {outcomes}"


def database_restarts(base, folder, postgres, rng, count):
    """The database is restarted in the middle of commits."""
    with Cluster(base, folder, postgres) as cluster:
        traffic = Traffic([cluster.address], base.reference, rng, calls=10**9, max_chars=20).start()
        for _ in range(count):
            time.sleep(rng.uniform(0.5, 2))
            postgres.restart()
        time.sleep(1)
        traffic.end()
        traffic.join()
        traffic.verify(cluster.address)
        return f"{count} restarts, {traffic.summary()}"


def outage(base, folder, postgres, rng, seconds):
    """All connections to the database are cut for a while."""
    with Cluster(base, folder, postgres) as cluster:
        traffic = Traffic([cluster.address], base.reference, rng, calls=10**9, max_chars=20).start()
        time.sleep(1)
        cuts = [threading.Thread(target=link.cut, args=(seconds,)) for link in cluster.links]
        for cut in cuts:
            cut.start()
        for cut in cuts:
            cut.join()
        time.sleep(3)
        traffic.end()
        traffic.join()
        traffic.verify(cluster.address)
        if not traffic.repeated.get("STORAGE_UNAVAILABLE"):
            raise Broken("no call failed because the storage was not available")
        return f"cut for {seconds} s, {traffic.summary()}"


def partition(base, folder, postgres, rng, seconds):
    """One replica is cut off from the database, but not from its clients."""
    with Cluster(base, folder, postgres, count=2) as cluster:
        one, two = (Client(replica.address) for replica in cluster.replicas)
        reader = SlowReader(cluster.replicas[0].address, "held", 1)
        reader.begun.wait(30)
        cut = threading.Thread(target=cluster.links[0].cut, args=(seconds,))
        cut.start()
        time.sleep(TAKEOVER_SECONDS)
        try:
            one.generate(session="new", chars=10, prime=PROMPT, seed=1, model="verse@1")
            raise Broken("a replica without its database served a session")
        except grpc.RpcError as error:
            if reason_of(error) != "STORAGE_UNAVAILABLE":
                raise Broken(f"the call failed with {error.code()} {error.details()}") from error
        text, _ = two.generate(session="held", chars=30, prime=PROMPT, seed=1, expected=0,
                               model="verse@1")
        base.reference.check(1, len(PROMPT), text, "held")
        reader.resumed.set()
        reader.thread.join(30)
        if reader.outcome in (None, "finished"):
            raise Broken(f"a call without a lease ended with {reader.outcome}")
        # Without a session, there is nothing to commit.
        one.generate(chars=10, prime=PROMPT, seed=1, model="verse@1")
        cut.join()
        for _ in range(100):
            try:
                one.generate(session="new", chars=10, prime=PROMPT, seed=1, model="verse@1")
                break
            except grpc.RpcError:
                time.sleep(0.1)
        else:
            raise Broken("the replica did not recover")
        one.close(), two.close()
        return f"cut for {seconds} s, the call ended with {reader.outcome}"


def snapshots(base, folder, _postgres, rng, calls):
    """Sessions that clients hold, at replicas with one key file and no database."""
    keys = folder / "keys"
    keys.write_text(secrets.token_hex(32) + "\n")
    keys.chmod(0o600)
    flags = {"all": ("--snapshot-key-file", str(keys))}
    with Cluster(base, folder, None, flags=flags) as cluster:
        client = Client(cluster.address)
        held, position = b"", len(PROMPT)
        for turn in range(calls):
            chars = rng.randrange(1, 30)
            request = rpc._generation.GenerateRequest(
                model="verse@1", max_chars=chars, return_session=True)
            if held:
                request.session_snapshot = held
            else:
                request.prime, request.sampling.seed = PROMPT, 2
            text = ""
            for event in client.generation.Generate(request, timeout=60):
                if event.WhichOneof("event") == "text":
                    text += event.text.text
                elif event.WhichOneof("event") == "finished":
                    held = event.finished.session_snapshot
            base.reference.check(2, position, text, f"call {turn}")
            position += chars
        client.close()
        return f"{calls} calls"


SCENARIOS = {
    # name: (function, size in the short suite, in the full suite)
    "cost": (cost, 60, 600),
    "balanced": (balanced, 600, 10_000),
    "kills": (kills, 3, 50),
    "suspended": (suspended, 1, 20),
    "database-restarts": (database_restarts, 1, 10),
    "outage": (outage, 6, OUTAGE_SECONDS),
    "partition": (partition, 16, OUTAGE_SECONDS),
    "mixed-kernels": (mixed_kernels, 300, 3_000),
    "snapshots": (snapshots, 30, 130),
    **models_and_trainings.SCENARIOS,
}


def run(name, base, postgres, rng, full, keep):
    """Runs one scenario in a temporary folder; returns (result, seconds)."""
    function, short, long = SCENARIOS[name]
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"charlstm-{name}-"))
    begin = time.monotonic()
    try:
        result = function(base, folder, postgres, rng, long if full else short)
    except BaseException:
        print(json.dumps({"scenario": name, "kept": str(folder)}), flush=True)
        raise
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return result, time.monotonic() - begin
