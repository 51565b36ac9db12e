"""What sessions need of PostgreSQL: its CPU time for each call, and bytes for each session."""

import os
import pathlib
import platform
import threading

from base import corpus, train
from client import Client
from cluster import Cluster
from ledger import PROMPT

# The network of the notebook: a state of 8 KB.
NETWORK = {"hidden_size": 512, "num_layers": 2}
CALLS_PER_SESSION = 5
CHARS = 40
THREADS = 16


def sizing(base, folder, postgres, _rng, calls):
    """Calls in sessions of a network of the usual size, at one replica."""
    with Cluster(base, folder, postgres, count=1) as cluster:
        address = cluster.replicas[0].address
        client = Client(address)
        train(client, "usual", chars=1000, **NETWORK)
        assert PROMPT in corpus(1000)
        sessions = -(-calls // CALLS_PER_SESSION // THREADS) * THREADS
        before = _cpu_seconds(postgres.process.pid)
        threads = [threading.Thread(target=_call, args=(address, number, sessions // THREADS))
                   for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = _cpu_seconds(postgres.process.pid) - before
        stored = len(client.list_sessions())
        assert stored == sessions, f"{stored} of {sessions} sessions were stored"
        client.close()
        size = int(postgres.query("SELECT pg_total_relation_size('sessions')", cluster.database))
    made = sessions * CALLS_PER_SESSION
    return (f"{made / seconds:.0f} calls for each second of a core of PostgreSQL "
            f"({made} calls of {CHARS} characters, {1000 * seconds / made:.2f} ms each), "
            f"{size / sessions / 1024:.0f} KB for each of {sessions} sessions, "
            f"on {os.cpu_count()} cores of {_processor()}")


def _call(address, thread, sessions):
    client = Client(address)
    for number in range(sessions):
        name, position = f"t{thread}-{number}", 0
        for turn in range(CALLS_PER_SESSION):
            _, done = client.generate(
                session=name, chars=CHARS, prime="" if turn else PROMPT, expected=position,
                model="" if turn else "usual@1", seed=None if turn else 1)
            position = done.position
    client.close()


def _cpu_seconds(parent):
    """Returns the CPU time of a process and of its children, including those that ended."""
    ticks = 0
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        is_parent = folder.name == str(parent)
        if is_parent or fields[1] == str(parent):
            # Fields 14 to 17 of proc(5): its own time, and that of its ended children.
            ticks += sum(map(int, fields[11:15 if is_parent else 13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


SCENARIOS = {
    # name: (function, size in the short suite, in the full suite)
    "sizing": (sizing, 160, 1_600),
}
