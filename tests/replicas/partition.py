"""A replica that is cut off from the database, but not from its clients."""

import threading
import time

import grpc

from client import Client, reason_of
from cluster import Cluster
from ledger import PROMPT, Broken
from namespace import Namespace, can_use_namespaces
from slow_reader import SlowReader

# Longer than a lease.
TAKEOVER_SECONDS = 12


def partition(base, folder, postgres, _rng, seconds):
    """By network namespaces or, if these are not permitted, by a proxy that forwards
    nothing."""
    namespace = Namespace() if can_use_namespaces() else None
    try:
        namespaces = {0: namespace} if namespace else {}
        with Cluster(base, folder, postgres, count=2, namespaces=namespaces) as cluster:
            outcome = _cut_off(base, cluster, namespace or cluster.links[0], seconds)
    finally:
        if namespace:
            namespace.delete()
    by = "network namespaces" if namespace else "a proxy: network namespaces are not permitted"
    return f"cut for {seconds} s by {by}; {outcome}"


def _cut_off(base, cluster, link, seconds):
    one, two = (Client(replica.address) for replica in cluster.replicas)
    reader = SlowReader(cluster.replicas[0].address, "held", 1)
    if not reader.begun.wait(30) or reader.outcome:
        raise Broken(f"the call did not begin: {reader.outcome}")
    cut = threading.Thread(target=link.cut, args=(seconds,))
    cut.start()
    time.sleep(TAKEOVER_SECONDS)
    reason = _expect_rejected(one)
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
    begin = time.monotonic()
    while True:
        try:
            one.generate(session="new", chars=10, prime=PROMPT, seed=1, model="verse@1")
            break
        except grpc.RpcError as error:
            if time.monotonic() - begin > 60:
                raise Broken("the replica did not recover") from error
            time.sleep(0.1)
    if two.position("held") != len(PROMPT) + 30:
        raise Broken("the replica that was cut off moved a session")
    one.close(), two.close()
    return (f"the call ended with {reader.outcome}, others were rejected with {reason!r}; "
            f"recovered in {time.monotonic() - begin:.1f} s")


def _expect_rejected(client):
    """Returns why the replica does not serve a session."""
    try:
        client.generate(session="new", chars=10, prime=PROMPT, seed=1, model="verse@1")
    except grpc.RpcError as error:
        if reason_of(error) != "STORAGE_UNAVAILABLE":
            raise Broken(f"the call failed with {error.code()} {error.details()}") from error
        if "cannot accept changes" not in error.details():
            raise Broken(f"the error does not say why: {error.details()}") from error
        return error.details()
    raise Broken("a replica without its database served a session")
