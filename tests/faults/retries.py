"""Late duplicates, interrupted retries and new branches."""

import time

import grpc

from client import Client
from ledger import PROMPT, Broken
from server import Server


def interleavings(base, folder, rng, count):
    """Late duplicates, interrupted retries and new branches in one session."""
    base.copy(folder)
    server = Server(folder)
    client = Client(server.address)
    reference = base.reference
    prefix = len(PROMPT)
    for number in range(count):
        name = f"i{number}"
        seed = 1 + number % 4
        first = rng.randrange(5, 30)
        text, done = client.generate(session=name, chars=first, prime=PROMPT, seed=seed,
                                     expected=0, model="verse@1")
        reference.check(seed, prefix, text, name)
        begin, chars = done.position, rng.randrange(5, 40)
        text, done = client.generate(session=name, chars=chars, expected=begin)
        reference.check(seed, begin, text, name)
        end = done.position
        action = number % 4
        if action == 0:
            # A late duplicate that is dropped midway never moves the session back.
            client.generate(session=name, chars=chars, expected=begin,
                            stop_after=rng.randrange(1, 5))
            settle(client, name)
            if client.position(name) != end:
                raise Broken(f"{name}: a dropped duplicate moved the session from {end} "
                             f"to {client.position(name)}")
        elif action == 1:
            again, done = client.generate(session=name, chars=chars, expected=begin)
            if (again, done.position) != (text, end):
                raise Broken(f"{name}: the repeated call differs")
        elif action == 2:
            # Other parameters: a new branch from the same beginning.
            _, done = client.generate(session=name, chars=7, seed=99, expected=begin)
            if done.position != begin + 7:
                raise Broken(f"{name}: a new branch ended at {done.position}")
        else:
            # A model published in between does not answer the repeat of a first call.
            if number < 8:
                client.import_model(base.model_file, "verse")
            other = f"{name}-first"
            client.generate(session=other, chars=20, prime=PROMPT, seed=seed, expected=0,
                            model="verse@1", stop_after=3)
            settle(client, other)
            again, done = client.generate(session=other, chars=20, prime=PROMPT, seed=seed,
                                          expected=0, model="verse@1")
            reference.check(seed, prefix, again, other)
            if client.get_session(other).version != 1:
                raise Broken(f"{other}: the repeat moved to another model version")
        try:
            client.generate(session=name, chars=1, expected=end + 1000)
            raise Broken(f"{name}: a wrong expected_position was accepted")
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise
    client.close()
    server.stop()
    return f"{count} interleavings"


def settle(client, name):
    """Waits until no call is generating in a session."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if not client.get_session(name).busy:
                return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return
        time.sleep(0.002)
    raise Broken(f"{name} stays busy")
