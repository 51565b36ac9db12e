"""What a database costs a call, and how many statements it gets."""

import statistics
import threading
import time

from client import Client
from cluster import Cluster
from ledger import PROMPT, Broken
from server import Server

CHARS = 200
# Seconds between two heartbeats of a replica, and between two maintenances of all.
HEARTBEAT, MAINTENANCE = 3, 10
# Calls that fit into the reference texts.
CALLS_PER_SESSION = 15
STREAMS = 64


def cost(base, folder, postgres, _rng, calls):
    """Calls in sessions at one replica, and at a server with a store of its own."""
    alone = Server(base.copy(folder / "alone"))
    try:
        with Cluster(base, folder, postgres, count=1) as cluster:
            shared = cluster.replicas[0].address
            postgres.query("CREATE EXTENSION pg_stat_statements", cluster.database)
            idle = _idle(postgres, cluster.database, 30 if calls > 100 else 12)
            times = {alone.address: [], shared: []}
            postgres.query("SELECT pg_stat_statements_reset()", cluster.database)
            begin = time.monotonic()
            clients = {address: Client(address) for address in times}
            for number in range(calls):
                for address, client in clients.items():
                    times[address].append(_call(client, number))
            seconds = time.monotonic() - begin
            statements = _statements(postgres, cluster.database)
            for client in clients.values():
                client.close()
            rates = [_throughput(address, calls) for address in (alone.address, shared)]
    finally:
        alone.kill()
    sessions = -(-calls // CALLS_PER_SESSION)
    # A first call asks twice: whether the session exists, and for its creation.
    opened = statements.get("session_open", 0)
    if opened != calls + sessions or statements.get("session_commit", 0) != calls:
        raise Broken(f"{calls} calls took {statements}")
    regular = sum(statements.values()) - opened - calls
    if regular > _max_regular(seconds):
        raise Broken(f"{regular} other statements in {seconds:.0f} s: {statements}")
    medians = [statistics.median(times[address]) * 1000 for address in (alone.address, shared)]
    return (f"idle: {idle}; {calls} calls of {CHARS} characters: median {medians[0]:.1f} ms alone, "
            f"{medians[1]:.1f} ms with the database; {opened} opens, {calls} commits, "
            f"{regular} other statements in {seconds:.0f} s; {STREAMS} streams: "
            f"{rates[0]:.0f} and {rates[1]:.0f} characters/s")


def _idle(postgres, database, seconds):
    """Counts what a replica sends while it has nothing to do."""
    # Until notifications arrive, it polls every second.
    time.sleep(2 * HEARTBEAT)
    postgres.query("SELECT pg_stat_statements_reset()", database)
    time.sleep(seconds)
    statements = _statements(postgres, database)
    heartbeats, total = statements.get("replica_heartbeat", 0), sum(statements.values())
    if heartbeats < seconds // HEARTBEAT - 1 or total > _max_regular(seconds):
        raise Broken(f"an idle replica sent {statements} in {seconds} s")
    return f"{total} statements in {seconds} s, {heartbeats} of them heartbeats"


def _max_regular(seconds):
    """How many statements a replica sends at most besides those of calls."""
    return seconds / HEARTBEAT + seconds / MAINTENANCE + 2


def _call(client, number, prefix="c"):
    session, turn = f"{prefix}{number // CALLS_PER_SESSION}", number % CALLS_PER_SESSION
    begin = time.monotonic()
    client.generate(session=session, chars=CHARS, prime="" if turn else PROMPT,
                    seed=None if turn else 1, model="" if turn else "verse@1",
                    expected=turn and len(PROMPT) + turn * CHARS)
    return time.monotonic() - begin


def _throughput(address, calls):
    """Returns the characters per second of streams that call one after another."""
    each = max(2, calls // STREAMS)

    def run(stream):
        client = Client(address)
        for number in range(each):
            _call(client, number, f"t{stream}-")
        client.close()

    threads = [threading.Thread(target=run, args=(stream,)) for stream in range(STREAMS)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return STREAMS * each * CHARS / (time.monotonic() - begin)


def _statements(postgres, database):
    """Returns how often each function of the schema, and anything else, was called."""
    rows = postgres.query(
        "SELECT coalesce(substring(query FROM '((session|replica)_[a-z]+)\\('), 'other'), sum(calls) "
        "FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat%' AND dbid = "
        "(SELECT oid FROM pg_database WHERE datname = current_database()) GROUP BY 1", database)
    return {name: int(calls) for name, calls in (row.split("|") for row in rows.splitlines())}
