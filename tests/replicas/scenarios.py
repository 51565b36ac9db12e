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
import clients
import clock
import models_and_trainings
import restored
import sizing
import upgrade
from client import Client, reason_of
from cluster import Cluster
from cost import cost
from ledger import PROMPT, Broken
from partition import TAKEOVER_SECONDS, partition
from slow_reader import SlowReader
from traffic import Traffic, traffic_to

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
        with traffic_to(cluster, base, rng) as traffic:
            for _ in range(count):
                time.sleep(rng.uniform(0.2, 1.5))
                cluster.restart(rng.randrange(3))
                if not traffic.is_running():
                    break
        return f"{count} kills, {traffic.summary()}"


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
        with traffic_to(cluster, base, rng) as traffic:
            for _ in range(count):
                time.sleep(rng.uniform(0.5, 2))
                postgres.restart()
            time.sleep(1)
        return f"{count} restarts, {traffic.summary()}"


def outage(base, folder, postgres, rng, seconds):
    """All connections to the database are cut for a while."""
    with Cluster(base, folder, postgres) as cluster:
        with traffic_to(cluster, base, rng) as traffic:
            time.sleep(1)
            cuts = [threading.Thread(target=link.cut, args=(seconds,)) for link in cluster.links]
            for cut in cuts:
                cut.start()
            for cut in cuts:
                cut.join()
            time.sleep(3)
        if not traffic.repeated.get("STORAGE_UNAVAILABLE"):
            raise Broken("no call failed because the storage was not available")
        return f"cut for {seconds} s, {traffic.summary()}"


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
    **clock.SCENARIOS,
    **models_and_trainings.SCENARIOS,
    **clients.SCENARIOS,
    **upgrade.SCENARIOS,
    **restored.SCENARIOS,
    **sizing.SCENARIOS,
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
