"""Programs of different versions on one database."""

import json
import os
import shutil
import subprocess
import time

import grpc

from base import train
from client import Client
from cluster import Cluster, postgres_programs
from ledger import PROMPT, Broken
from models_and_trainings import CORPUS, SPEC, finished, outline, wait_until, whole_outline
from server import ROOT, Server, program
from traffic import traffic_to

GOLDEN = ROOT / "tests/golden/database-0.1"
# Of each text.
GOLDEN_CHARS = 400
# Of each call that is made in a golden session.
CHARS = 40


def record(base, folder, postgres):
    """Writes the golden files: what the program leaves in the database and the object
    store, and what follows in its sessions. For a new version of the schema, use another
    folder and let `upgrade` read both."""
    sessions = {}
    with Cluster(base, folder, postgres, count=1) as cluster:
        client = Client(cluster.replicas[0].address)
        for seed in (1, 2, 3):
            name, first = f"golden-{seed}", 30 * seed
            _, done = client.generate(session=name, chars=first, prime=PROMPT, seed=seed,
                                      model="verse@1")
            # Every later call can be repeated with what is stored here.
            client.generate(session=name, chars=CHARS, expected=done.position)
            sessions[name] = {"position": done.position + CHARS,
                              "last_call_position": done.position,
                              "text": base.reference.texts[seed][:GOLDEN_CHARS]}
        training, _ = train(client, "trained")
        events = len(list(client.training_events(training)))
        client.close()
        cluster.replicas[0].stop()
        dump = [str(postgres_programs() / "pg_dump"), "-h", "127.0.0.1", "-p", str(postgres.port),
                "-U", "charlstm", "--inserts", "--no-owner", "--no-privileges", cluster.database]
        shutil.rmtree(GOLDEN, ignore_errors=True)
        GOLDEN.mkdir()
        text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
        # Commands of psql that older versions of it do not know.
        lines = [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
        (GOLDEN / "database.sql").write_text("\n".join(lines) + "\n")
        shutil.copytree(folder / "objects", GOLDEN / "objects")
        contents = {"sessions": sessions, "training": {"id": training, "events": events}}
        (GOLDEN / "contents.json").write_text(json.dumps(contents, indent=1) + "\n")


def upgrade(_base, folder, postgres, _rng, _size):
    """This version uses the data of an earlier one, next to a later one."""
    database = postgres.new_database()
    postgres.load(GOLDEN / "database.sql", database)
    before = postgres.query("SELECT count(*) FROM _sqlx_migrations", database)
    shutil.copytree(GOLDEN / "objects", folder / "objects")
    url = f"postgres://charlstm@127.0.0.1:{postgres.port}/{database}"
    flags = ["--database", url, "--object-store", f"file://{folder}/objects"]
    servers = {}

    def start(name):
        servers[name] = Server(folder / name, [*flags, "--replica-name", name])
        return Client(servers[name].address)

    contents = json.loads((GOLDEN / "contents.json").read_text())
    try:
        one, two = start("one"), start("two")
        _check_contents(one, two, contents)
        after = postgres.query("SELECT count(*) FROM _sqlx_migrations", database)
        _add_later_version(postgres, database)
        servers["one"].kill()
        one = start("one")
        _check_next_to_later_version(one, contents)
    finally:
        for server in servers.values():
            server.kill()
    return (f"{len(contents['sessions'])} sessions of {before} migrations continued with {after}; "
            "a later version is tolerated, and its sessions are rejected")


def _check_contents(one, two, contents):
    for name, session in contents["sessions"].items():
        if two.position(name) != session["position"]:
            raise Broken(f"{name} is at {two.position(name)}")
        # The last call of the earlier version, and the next one at another replica.
        for client, begin in ((one, session["last_call_position"]), (two, session["position"])):
            text, _ = client.generate(session=name, chars=CHARS, expected=begin)
            at = begin - len(PROMPT)
            if text != session["text"][at:at + CHARS]:
                raise Broken(f"{name} continues at {begin} with {text!r}")
    training = contents["training"]
    state = two.training_state(training["id"])
    events = len(list(two.training_events(training["id"])))
    if state != "STATE_SUCCEEDED" or events != training["events"]:
        raise Broken(f"the training is {state} with {events} events")
    if two.list_models() != {"verse": 1, "trained": 1}:
        raise Broken(f"there are the models {two.list_models()}")
    # And it can be extended.
    train(two, "trained")
    if one.generate(model="trained@2", chars=5, prime=PROMPT, seed=1)[0] == "":
        raise Broken("the new version generates nothing")


def _add_later_version(postgres, database):
    """What a later program adds: a migration, and a session of its arithmetic."""
    postgres.query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) "
        "VALUES (9999, 'later', true, '\\x00', 0); ALTER TABLE sessions ADD COLUMN later integer; "
        "UPDATE sessions SET revision = 9 WHERE id = 'golden-3'", database)


def _check_next_to_later_version(client, contents):
    try:
        client.generate(session="golden-3", chars=5)
        raise Broken("a session of a later arithmetic was continued")
    except grpc.RpcError as error:
        clear = "revision 9" in error.details() and "revision 1" in error.details()
        if error.code() != grpc.StatusCode.FAILED_PRECONDITION or not clear:
            raise Broken(f"a session of a later arithmetic: {error.code()} {error.details()}") \
                from error
    session = contents["sessions"]["golden-1"]
    begin = session["position"] + CHARS
    text, _ = client.generate(session="golden-1", chars=CHARS, expected=begin)
    at = begin - len(PROMPT)
    if text != session["text"][at:at + CHARS]:
        raise Broken(f"golden-1 continues at {begin} with {text!r}")
    client.generate(session="new", chars=5, prime=PROMPT, seed=1, model="verse@1")


def rolling_upgrade(base, folder, postgres, rng, epochs):
    """Under load, every replica is stopped and another program takes its place: that of
    the environment variable CHARLSTM_PREVIOUS_SERVER is replaced by the one under test."""
    previous = os.environ.get("CHARLSTM_PREVIOUS_SERVER")
    with Cluster(base, folder, postgres, path=previous) as cluster:
        before = _migrations(postgres, cluster)
        with traffic_to(cluster, base, rng) as traffic:
            first = Client(cluster.replicas[0].address)
            spec = {**SPEC, "epochs": epochs, "model": "trained"}
            training = first.start_training(CORPUS, **spec)
            cluster.path = program()
            for number, replica in enumerate(cluster.replicas):
                time.sleep(2)
                if replica.stop() != 0:
                    raise Broken(f"replica {number} did not stop cleanly")
                cluster.replicas[number] = cluster.launch(number)
            last = Client(cluster.replicas[2].address)
            wait_until(lambda: finished(last, training), "the training ends")
        names, _ = outline(last.training_events(training))
        if names != whole_outline(epochs) or last.list_models() != {"verse": 1, "trained": 1}:
            raise Broken(f"the training: {names}, {last.list_models()}")
        after = _migrations(postgres, cluster)
    what = f"from {previous}" if previous else "the same program"
    return f"{what}, {before} and {after} migrations, {traffic.summary()}"


def _migrations(postgres, cluster):
    return postgres.query("SELECT count(*) FROM _sqlx_migrations", cluster.database)


SCENARIOS = {
    # name: (function, size in the short suite, in the full suite)
    "upgrade": (upgrade, 1, 1),
    "rolling-upgrade": (rolling_upgrade, 8, 40),
}
