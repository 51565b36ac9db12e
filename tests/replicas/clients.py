"""The command-line client with several servers: it continues on another one."""

import os
import shutil
import subprocess
import threading
import time

from client import Client
from cluster import Cluster
from ledger import PROMPT, Broken
from free_port import free_port
from server import Server, program

LENGTH = 30_000
# The server is killed once so much of the text has arrived.
BEFORE_KILL = 1_000
# A name in the hosts file.
NAME = "replicas.test"


def several_addresses(base, folder, postgres, rng, count):
    """A server is killed in the middle of a call: with `--addr` of several addresses, and
    with a name that has several."""
    with Cluster(base, folder, postgres, count=1) as cluster:
        undisturbed = _generate(cluster.replicas[0].address, None)
        done = [_by_addresses(cluster, undisturbed, turn, rng) for turn in range(count)]
        if _can_replace_hosts():
            done += [_by_name(cluster, undisturbed, turn, rng) for turn in range(count)]
            by_name = f"and {count} times with a name of two addresses"
        else:
            by_name = "(a name of two addresses: not tried, needs a mount)"
    return (f"{count} times with two addresses {by_name}; killed after "
            f"{min(done)} to {max(done)} of {LENGTH} characters")


def _by_addresses(cluster, undisturbed, turn, rng):
    first, second = (_launch(cluster, f"a{turn}-{n}", f"127.0.0.1:{free_port()}")
                     for n in range(2))
    addresses = f"{first.address},{second.address}"
    return _kill_one(addresses, (), first, second, f"a{turn}", undisturbed, rng)


def _by_name(cluster, undisturbed, turn, rng):
    port = free_port()
    first, second = (_launch(cluster, f"n{turn}-{n}", f"127.0.0.{n + 1}:{port}") for n in range(2))
    hosts = cluster.folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {NAME}\n127.0.0.2 {NAME}\n")
    script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", script, "sh", str(hosts))
    return _kill_one(f"{NAME}:{port}", prefix, first, second, f"n{turn}", undisturbed, rng)


def _kill_one(address, prefix, first, second, session, undisturbed, rng):
    """Kills the first server in the middle of the call of a client, which must get the
    whole text all the same. Returns how much had arrived."""
    killed_at = []

    def watch(arrived):
        if not killed_at and arrived >= BEFORE_KILL * (1 + rng.random()):
            first.kill()
            killed_at.append(arrived)

    try:
        text = _generate(address, session, prefix, watch)
        if text != undisturbed:
            at = next((n for n, (a, b) in enumerate(zip(text, undisturbed)) if a != b), None)
            raise Broken(f"{session}: {len(text)} characters, different from {at} on")
        if not killed_at:
            raise Broken("the text had arrived before the server was killed")
        client = Client(second.address)
        if client.position(session) != len(PROMPT) + LENGTH:
            raise Broken(f"{session} is at {client.position(session)}")
        client.close()
    finally:
        second.kill()
    return killed_at[0]


def _generate(address, session, prefix=(), watch=lambda arrived: None):
    """Runs the client and returns the text."""
    command = [*prefix, str(program().with_name("charlstm-client")), "--addr", address,
               "generate", "--model", "verse@1", "--prime", PROMPT, "--seed", "1",
               "--length", str(LENGTH), "--no-echo"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CHARLSTM_")}
    process = subprocess.Popen(command + (["--session", session] if session else []), env=clean,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    text = b""
    while data := os.read(process.stdout.fileno(), 256):
        text += data
        watch(len(text))
        # Slower than the server, so that it is killed in the middle.
        time.sleep(0.002)
    reader.join()
    if process.wait() != 0:
        raise Broken(f"the client failed: {errors[0].decode(errors='replace')}")
    return text.decode().removesuffix("\n")


def _launch(cluster, name, address):
    """Starts a replica in addition to those of the cluster."""
    flags = ["--listen", address, *cluster.storage(cluster.postgres.port), "--replica-name", name]
    return Server(cluster.folder / name, flags)


def _can_replace_hosts():
    """Returns whether this system lets a test replace the hosts file."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    test = ["unshare", "--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


SCENARIOS = {
    # name: (function, size in the short suite, in the full suite)
    "clients": (several_addresses, 1, 5),
}
