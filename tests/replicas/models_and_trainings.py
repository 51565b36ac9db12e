"""Models and trainings that replicas share: what must hold when they are
changed at the same time, and when replicas and the object store fail."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc

import client as rpc
from base import train, weights
from client import Client, reason_of, retry
from ledger import PROMPT
from object_store import ObjectStore
from server import ROOT, Server, StartFailed, program

# Long enough for several checkpoints; its last one is at the end of the training.
CORPUS = "".join(random.Random(7).choices("the quick brown fox. \n", k=60_000))
SPEC = {
    "hidden_size": 48, "num_layers": 1, "batch_size": 8,
    "sequence_length": 32, "epochs": 6, "recipe": "notebook", "seed": 11, "sample_chars": 10,
}

# Far longer than anything here takes.
PATIENCE = 120


class Replicas:
    """Servers that share one database and one object store."""

    def __init__(self, folder, postgres, store):
        self.folder = pathlib.Path(folder)
        database = f"postgres://charlstm@127.0.0.1:{postgres.port}/{postgres.new_database()}"
        self.flags = ["--database", database, "--object-store", store.url("test")]
        self.environment = store.environment()
        self.servers = {}

    def start(self, name, extra=()):
        """Starts a replica, or starts it again."""
        flags = [*self.flags, "--replica-name", name, *extra]
        self.servers[name] = Server(self.folder / name, flags, environment=self.environment)
        return Client(self.servers[name].address)

    def stop(self):
        for server in self.servers.values():
            server.signal(signal.SIGCONT)
            server.kill()


def scenario(function):
    """Runs a function with the replicas and the store that it needs."""
    def run(_base, folder, postgres, rng, size):
        store = ObjectStore(folder)
        replicas = Replicas(folder, postgres, store)
        try:
            return function(replicas, store, rng, size)
        except BaseException:
            for server in replicas.servers.values():
                print(f"--- {server.log_path}\n{server.log()[-3000:]}")
            raise
        finally:
            replicas.stop()
            store.stop()
    return run


def wait_until(condition, what, seconds=PATIENCE):
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"did not happen in {seconds} s: {what}")
        time.sleep(0.05)


def finished(client, training):
    return client.training_state(training) not in ("STATE_QUEUED", "STATE_RUNNING")


def outline(events):
    """The events that must come exactly once, and all sequence numbers."""
    names, sequences = [], []
    for event in events:
        sequences.append(event.sequence)
        kind = event.WhichOneof("event")
        if kind == "accepted":
            names.append("accepted")
        elif kind == "epoch":
            names.append(f"epoch {event.epoch.epoch}")
        elif kind == "finished":
            names.append("finished")
    return names, sequences


def whole_outline(epochs):
    """The names of `outline` for a training that was carried out once, in full."""
    return ["accepted", *(f"epoch {number}" for number in range(1, epochs + 1)), "finished"]


def small_model(client):
    """Trains a small model and returns its file."""
    training, _ = train(client, "small")
    assert client.training_state(training) == "STATE_SUCCEEDED"
    return client.export_model("small")


def continuation(client, model):
    """Returns what a model generates after the prompt."""
    return client.generate(model=model, chars=20, prime=PROMPT, seed=1)[0]


@scenario
def concurrent_models(replicas, _store, rng, rounds):
    """Two replicas publish and delete versions of the same names at the same time."""
    a, b = replicas.start("a"), replicas.start("b")
    data = small_model(a)
    published, errors = [], []

    def publish(client, rng):
        try:
            for _ in range(rounds):
                name = rng.choice(["x", "y"])
                version = client.import_model(data, name)
                published.append((name, version))
                if rng.random() < 0.3:
                    delete_model(client, f"{name}@{version}")
        except Exception as error:  # reported by the main thread
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(client, random.Random(rng.random())))
               for client in (a, b, a, b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(published) == len(set(published)), "a version number was given twice"
    time.sleep(2)
    for name in ("x", "y"):
        lists = [versions(client, name) for client in (a, b)]
        assert lists[0] == lists[1], lists
        for version in lists[0]:
            for client in (a, b):
                assert client.export_model(f"{name}@{version}") == data
    left = sum(len(versions(a, name)) for name in ("x", "y"))
    seconds = [seen_elsewhere(a, b, data, f"seen-{round}") for round in range(rounds // 2)]
    return (f"{len(published)} versions published, {left} left; a new version and its deletion "
            f"were seen on the other replica within {max(seconds):.2f} s")


def seen_elsewhere(a, b, data, name):
    """Publishes and deletes a model at one replica; returns the longer of the times until
    the other one generates with it, and until it does not any more."""
    a.import_model(data, name)
    published = time.monotonic()
    wait_until(lambda: is_served(b, name), f"the other replica serves {name}")
    first = time.monotonic() - published
    delete_model(a, name)
    deleted = time.monotonic()
    wait_until(lambda: not is_served(b, name), f"the other replica does not serve {name}")
    return max(first, time.monotonic() - deleted)


def is_served(client, model):
    try:
        continuation(client, model)
        return True
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
        return False


def delete_model(client, model):
    client.models.DeleteModel(rpc._model.DeleteModelRequest(model=model), timeout=30)


def versions(client, name):
    try:
        answer = client.models.GetModel(rpc._model.GetModelRequest(model=name), timeout=30)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return []
        raise
    return list(answer.versions)


@scenario
def training_takeover(replicas, store, rng, kills):
    """The replica that runs a training is killed at random moments."""
    only = replicas.start("undisturbed", ["--tensorboard"])
    training = only.start_training(CORPUS, **{**SPEC, "model": "undisturbed"})
    wait_until(lambda: finished(only, training), "the undisturbed training")
    expected = weights(only.export_model("undisturbed"))
    check_tensorboard(replicas, store, only, training)
    replicas.servers["undisturbed"].kill()

    for repetition in range(kills):
        clients = {name: replicas.start(name) for name in ("a", "b")}
        model = f"disturbed-{repetition}"
        training = clients["a"].start_training(CORPUS, **{**SPEC, "model": model})
        wait_until(lambda: runner(replicas, training) in clients, "a replica runs the training")
        time.sleep(rng.random() * 1.5)
        victim = runner(replicas, training) or "a"
        is_zombie = rng.random() < 0.5
        server = replicas.servers[victim]
        begin = time.monotonic()
        if is_zombie:
            server.signal(signal.SIGSTOP)
        else:
            server.kill()
        survivor = clients["b" if victim == "a" else "a"]
        wait_until(lambda: finished(survivor, training), "the training ends elsewhere")
        assert survivor.training_state(training) == "STATE_SUCCEEDED", survivor.training_state(training)
        if is_zombie:
            server.signal(signal.SIGCONT)
            # It notices that another replica has taken the training over.
            wait_until(lambda: retry(lambda: finished(clients[victim], training)),
                       "the zombie sees the end")
        events = list(survivor.training_events(training))
        names, sequences = outline(events)
        assert names == whole_outline(SPEC["epochs"]), names
        assert sequences == sorted(set(sequences)), sequences
        assert weights(survivor.export_model(model)) == expected, "other weights"
        # A replica that is killed while it publishes leaves a gap in the numbers.
        assert len(versions(survivor, model)) == 1, versions(survivor, model)
        if is_zombie:
            events = list(clients[victim].training_events(training))
            assert outline(events)[1] == sequences
        seconds = time.monotonic() - begin
        for name in clients:
            replicas.servers[name].kill()
    return f"{kills} takeovers, the last one in {seconds:.0f} s"


def check_tensorboard(replicas, store, client, training):
    """The event files are in the object store until the training is deleted."""
    runs = replicas.folder / "runs"
    copy_event_files(store, runs)
    assert [run.name for run in runs.iterdir()] == [training]
    reader = [sys.executable, ROOT / "tests/python/read_tensorboard.py", runs / training]
    read = json.loads(subprocess.run(reader, check=True, capture_output=True).stdout)
    epochs = [event.epoch for event in client.training_events(training)
              if event.WhichOneof("event") == "epoch"]
    assert [step for step, _ in read["loss/epoch"]] == [epoch.step for epoch in epochs], read
    request = rpc._training.DeleteTrainingRequest(training_id=training)
    client.trainings.DeleteTraining(request, timeout=30)
    shutil.rmtree(runs)
    copy_event_files(store, runs)
    assert not list(replicas.folder.rglob("events.out.tfevents.*")), "event files are left"


def copy_event_files(store, folder):
    """Copies the event files of all trainings, as the docs do."""
    sync = [sys.executable, pathlib.Path(__file__).with_name("s3_sync.py"), "s3", "sync",
            store.url("test/tensorboard"), folder]
    subprocess.run(sync, check=True, env={**os.environ, **store.environment()})


def runner(replicas, training):
    """Returns the replica that last logged that it runs a training."""
    found = None
    for name, server in replicas.servers.items():
        for line in server.log().splitlines():
            if training in line and "this replica runs a training" in line:
                stamp = line.split()[0]
                if found is None or stamp > found[0]:
                    found = (stamp, name)
    return found and found[1]


@scenario
def object_store_outage(replicas, store, _rng, seconds):
    """The object store rejects every request for some seconds."""
    a = replicas.start("a")
    data = small_model(a)
    text = continuation(a, "small")
    store.rejects = True
    begin = time.monotonic()
    # A loaded model continues to work.
    assert continuation(a, "small") == text
    try:
        a.import_model(data, "y")
        raise AssertionError("a model was published without its file")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        assert reason_of(error) == "STORAGE_UNAVAILABLE", error
    time.sleep(max(0, seconds - (time.monotonic() - begin)))
    assert store.rejected > 0
    store.rejects = False
    version = retry(lambda: a.import_model(data, "y"))
    assert versions(a, "y") == [version], "something of the failed attempt is visible"
    assert continuation(a, f"y@{version}") == text
    return f"rejected {store.rejected} requests"


@scenario
def ignored_preconditions(replicas, store, _rng, _size):
    """A store that ignores preconditions is rejected at startup."""
    store.ignores_preconditions = True
    try:
        replicas.start("a")
        raise AssertionError("the server started")
    except StartFailed as failed:
        assert failed.code == 1, failed
        assert "ignores preconditions" in failed.log, failed.log
    finally:
        store.ignores_preconditions = False
    replicas.start("a")
    return "rejected"


@scenario
def migration(replicas, _store, _rng, _size):
    """The data of one server is copied, twice, and used by replicas."""
    folder = replicas.folder / "single"
    single = Server(folder)
    client = Client(single.address)
    data = small_model(client)
    assert client.import_model(data, "small") == 2
    delete_model(client, "small@2")
    training, _ = train(client, "other")
    _, begun = client.generate(session="s", model="small", chars=30, prime=PROMPT, seed=3)
    last_call = {"session": "s", "chars": 30, "seed": 4, "expected": begun.position}
    text, _ = client.generate(**last_call)
    assert single.stop() == 0
    kept = folder.parent / "single-copy"
    shutil.copytree(single.data, kept)

    try:
        Server(folder, replicas.flags, environment=replicas.environment)
        raise AssertionError("the server used a folder with data of its own")
    except StartFailed as failed:
        assert "charlstm-server migrate" in failed.log, failed.log

    first, second = (migrate(single.data, replicas) for _ in range(2))
    assert "copied 2 model versions, 2 trainings, 1 sessions" in first, first
    assert re.search(r"copied 0 model versions \(2 .*0 trainings \(2 .*0 sessions \(1 ", second), second

    a = replicas.start("a")
    assert a.export_model("small@1") == data
    assert versions(a, "small") == [1]
    assert a.import_model(data, "small") == 3, "a number was used again"
    assert a.training_state(training) == "STATE_SUCCEEDED"
    # The session continues, and its last call can be repeated.
    assert a.generate(**last_call)[0] == text
    a.generate(session="s", chars=5, seed=5)
    # The folder itself still works.
    again = Server(folder.parent / "again", ["--data-dir", str(kept)])
    assert Client(again.address).generate(**last_call)[0] == text
    again.kill()
    return "copied twice"


def migrate(data, replicas):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CHARLSTM_")}
    environment.update(replicas.environment)
    command = [str(program()), "migrate", "--data-dir", str(data), *replicas.flags]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120,
                         check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    return run.stdout


SCENARIOS = {
    # name: (function, size in the short suite, in the full suite)
    "preconditions": (ignored_preconditions, 1, 1),
    "models": (concurrent_models, 8, 40),
    "trainings": (training_takeover, 1, 10),
    "store-outage": (object_store_outage, 2, 20),
    "migration": (migration, 1, 1),
}
